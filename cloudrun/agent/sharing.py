"""Environments from unit to unit: one lets another in for a single copy, the other fetches it there with `ssh`.

The key is made for one copy. Its public half is admitted on the source as long as the client that asked for it is
there, for a single command that can do nothing but send that one environment. The private half is never on a disk.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, Iterator

from cloudrun.agent import environments, shipping, summon
from cloudrun.agent.call import Call, Input
from cloudrun.agent.errors import AgentError
from cloudrun.agent.locks import folder_lock
from cloudrun.core import rundir, wire

SHARED_S = 900.0  # after that long no copy is waited for
CONNECT_S = 6.0  # a source that lets us in does so at once
SILENT_S = 20.0  # a copy that stands still for so long is broken off
LAST_WORDS_S = 0.5  # for ssh to say why
POLL_S = 1.0
KEYS = ".ssh/authorized_keys"
MARK = "cloudrun-copy"  # in the comment of each line of ours, with the process that takes it away again
HOST = "source"  # what the other unit is called here, whatever its address
_SERVE = "import sys; sys.path.insert(0, sys.argv[1]); from cloudrun.agent.sharing import main; main(*sys.argv[2:])"
_PUBLIC = re.compile(r"ssh-ed25519 [A-Za-z0-9+/=]+")
_ADDRESS = re.compile(r"[0-9A-Za-z][0-9A-Za-z.:-]*")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


# -- the source --------------------------------------------------------------------------------------------------------


def seal(call: Call) -> dict[str, Any]:
    fingerprint = environments.checked(call.arguments["fingerprint"])
    with shipping.explained():
        return dict(call.while_alive(lambda: environments.seal(fingerprint)))


def share(call: Call) -> dict[str, Any]:
    """Let the owner of a key fetch one environment, from PROGRESS to the client's FILE_END, or its end."""
    fingerprint, key = environments.checked(call.arguments["fingerprint"]), str(call.arguments["key"])
    if not _PUBLIC.fullmatch(key):
        raise AgentError("usage", "the key is not one line of an ed25519 key")
    command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _SERVE, summon.PLACE, os.getcwd(), fingerprint]
    quoted = shlex.join(command).replace('"', '\\"')
    line = f'restrict,command="{quoted}" {key} {MARK}-{os.getpid()}'
    with shipping.explained(), _told_to_end(), _admitted(line):
        call.send(wire.PROGRESS, {})
        give_up = time.monotonic() + SHARED_S
        while time.monotonic() < give_up and not select.select([call.stdin], [], [], POLL_S)[0]:
            call.alive()
        call.frame()
    return {}


@contextlib.contextmanager
def _told_to_end() -> Iterator[None]:
    """A signal that ends this process lets it tidy up first: sshd may send one when the client has gone."""

    def leave(number: int, _frame: Any) -> None:
        raise SystemExit(128 + number)

    former = {number: signal.signal(number, leave) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _admitted(line: str) -> Iterator[None]:
    try:
        _edit([line], [])
        yield
    finally:
        _edit([], [line])


def _edit(more: list[str], gone: list[str]) -> None:
    """Change the list of keys, whole or not at all; lines of processes that were killed go too."""
    os.makedirs(os.path.dirname(KEYS), mode=0o700, exist_ok=True)
    path = os.path.realpath(KEYS)
    with folder_lock(os.path.dirname(path), lambda: None):
        lines = []
        mode = 0o600
        with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
            mode = os.fstat(file.fileno()).st_mode & 0o777
        kept = [each for each in lines if each not in gone and not _is_forgotten(each)]
        temporary = f"{path}.{os.getpid()}"
        try:
            with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
                os.fchmod(file.fileno(), mode)
                file.writelines(f"{each}\n" for each in [*kept, *more])
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def _is_forgotten(line: str) -> bool:
    found = re.search(rf" {MARK}-(\d+)$", line)
    return found is not None and not os.path.exists(f"/proc/{found[1]}")


def main(home: str, fingerprint: str) -> None:
    """The one command that the key is good for: the environment on standard output."""
    try:
        os.chdir(home)
        environments.send(environments.checked(fingerprint), sys.stdout.buffer)
    except (OSError, AgentError) as error:
        sys.exit(str(error))  # on standard error, and by ssh to the other side


# -- the unit that has not got it --------------------------------------------------------------------------------------


def fetch(call: Call) -> dict[str, Any]:
    """Get an environment from another unit; returns `files` and `bytes`, none where it was there already."""
    arguments = call.arguments
    fingerprint = environments.checked(arguments["fingerprint"])
    with shipping.explained(), folder_lock(os.path.dirname(rundir.env_dir(fingerprint)), call.alive):
        if os.path.exists(rundir.env_ready(fingerprint)):
            return {"files": 0, "bytes": 0}
        return dict(call.while_alive(lambda: _fetch(fingerprint, arguments)))


def _fetch(fingerprint: str, arguments: dict[str, Any]) -> dict[str, Any]:
    with environments.unfinished(fingerprint) as part, _ssh(part, arguments) as process:
        assert process.stdout is not None  # noqa: S101  # mypy: it is a pipe
        try:
            with Input(process.stdout.fileno(), "the other unit", SILENT_S) as stream:
                return environments.receive(fingerprint, arguments["digest"], stream.reader, part)
        except (AgentError, wire.WireError) as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORDS_S)
            raise AgentError("transfer", f"{error}{_last_words(part)}") from None


def _last_words(part: str) -> str:
    with contextlib.suppress(OSError), open(os.path.join(part, "stderr"), encoding="utf-8", errors="replace") as file:
        lines = file.read(10_000).strip().splitlines()
        return f" ({lines[-1]})" if lines else ""
    return ""


@contextlib.contextmanager
def _ssh(part: str, arguments: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """`ssh` to the source, which knows by the key what is wanted. It has ended when the block is left."""
    address, user = str(arguments["address"]), str(arguments["user"])
    host_key = str(arguments["host_key"])
    if not (_ADDRESS.fullmatch(address) and _USER.fullmatch(user) and _PUBLIC.match(host_key)):
        raise AgentError("usage", f"{user}@{address} is no unit that could be asked")
    with open(os.path.join(part, "known_hosts"), "w", encoding="ascii") as file:
        file.write(f"{HOST} {host_key}\n")
    options = {
        "BatchMode": "yes",
        "Ciphers": "aes128-gcm@openssh.com,aes256-gcm@openssh.com,aes128-ctr",
        "Compression": "no",
        "ConnectTimeout": f"{CONNECT_S:.0f}",
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlgorithms": "ssh-ed25519",
        "HostKeyAlias": HOST,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "IdentityFile": "/dev/stdin",
        "PreferredAuthentications": "publickey",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": os.path.join(part, "known_hosts"),
    }
    command = ["ssh", "-F", "/dev/null", "-T", "-p", str(int(arguments["port"])), "-l", user]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    with _in_memory(str(arguments["key"])) as key, open(os.path.join(part, "stderr"), "wb") as errors:
        try:
            process = subprocess.Popen([*command, "--", address], stdin=key, stdout=subprocess.PIPE, stderr=errors)
        except FileNotFoundError:
            raise AgentError("transfer", "there is no ssh on this unit") from None
        with process:
            try:
                yield process
            finally:
                process.kill()


@contextlib.contextmanager
def _in_memory(key: str) -> Iterator[int]:
    """A file without a name. ssh opens /dev/stdin anew, from its beginning, as often as it wants to; as its standard
    input the file is at its end, so that nothing of it is sent to the other side."""
    if not sys.platform.startswith("linux"):
        raise AgentError("transfer", "environments are copied between machines with Linux only")
    with os.fdopen(os.memfd_create("key"), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(key.encode("ascii"))
        file.flush()
        yield file.fileno()
