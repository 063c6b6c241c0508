"""How OpenSSH's own client is told to log in to a unit: with the key and the host key that the ledger has only."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from cloudrun.core.records import SshTarget
from cloudrun.plan.jumping import jump_command


def known_hosts_line(target: SshTarget, name: str) -> str:
    """The one host that may answer, under a name of its own: addresses are used again by other machines."""
    key_type, key = target.host_key.split()[:2]
    return f"{name} {key_type} {key}\n"


def ssh_words(target: SshTarget, name: str, known_hosts: Path, command: Sequence[str] = ()) -> list[str]:
    """The words of an `ssh` command. `name` is the one in `known_hosts`. `command` is run in place of a shell: one word
    is a text for the login shell there, several are words as they are."""
    options = {
        "HostKeyAlias": name,
        "UserKnownHostsFile": _quoted(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "IdentityFile": _quoted(target.key_path),
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "PreferredAuthentications": "publickey",
        "ForwardAgent": "no",
        "ServerAliveInterval": "10",
        "LogLevel": "ERROR",
    }
    if target.jump:  # that host's own settings, keys and known_hosts are the user's
        options["ProxyCommand"] = shlex.join(jump_command(target.jump))
    words = ["ssh", "-F", "/dev/null"]  # the user's own settings are for other hosts
    for option, value in options.items():
        words += ["-o", f"{option}={value}"]
    words += ["-p", str(target.port), f"{target.user}@{target.host}"]
    if not command:
        return words
    return [*words, "--", command[0] if len(command) == 1 else shlex.join(command)]


def _quoted(path: Path) -> str:
    """As ssh_config wants it: in quotes for spaces, % doubled."""
    return '"' + str(path).replace("%", "%%") + '"'
