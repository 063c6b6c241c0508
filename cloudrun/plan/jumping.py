"""The way to a machine that only another host can reach: OpenSSH's own client opens it, with what the user has set up
for that host (~/.ssh/config, keys, agent, known_hosts)."""

from __future__ import annotations

import re

# neither may begin with a hyphen, which would be an option to ssh
_JUMP = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.+-]*)@)?"
    r"(?:(?P<host>[A-Za-z0-9_][A-Za-z0-9_.-]*)|\[(?P<address>[0-9A-Fa-f:]+)\])"
    r"(?::(?P<port>[1-9]\d{0,4}))?"
)
_OPTIONS = {
    "BatchMode": "yes",  # nobody is there to type a passphrase
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "10",
    # a jump host that has gone away ends the connection, after as long as a machine's own going away would
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
}


def check_jump(jump: str) -> str:
    """The jump host as it was written, `[user@]host[:port]` or a `Host` of ~/.ssh/config. Raises ValueError."""
    found = _JUMP.fullmatch(jump)
    if found is None or int(found["port"] or 0) > 65535:
        raise ValueError(f"{jump!r} is no jump host, as in user@bastion.example.com or user@bastion.example.com:2222")
    return jump


def jump_command(jump: str, host: str = "%h", port: int | str = "%p") -> list[str]:
    """The command whose standard input and output are a connection to `host`; by default OpenSSH's placeholders, as a
    ProxyCommand has them. Raises ValueError."""
    return [*_client(jump), "-W", f"[{host}]:{port}", _destination(jump)]


def login_command(jump: str) -> list[str]:
    """What a person types to log in there once, and accept its key."""
    found = _match(jump)
    port = ["-p", found["port"]] if found["port"] else []
    return ["ssh", *port, _destination(jump)]


def _client(jump: str) -> list[str]:
    words = ["ssh"]
    for option, value in _OPTIONS.items():
        words += ["-o", f"{option}={value}"]
    port = _match(jump)["port"]
    return [*words, "-p", port] if port else words


def _destination(jump: str) -> str:
    found = _match(jump)
    user = f"{found['user']}@" if found["user"] else ""
    return user + (found["host"] or found["address"])


def _match(jump: str) -> re.Match[str]:
    found = _JUMP.fullmatch(check_jump(jump))
    assert found is not None  # noqa: S101  # for the type checker: it was checked
    return found
