"""The way to the unit's warden, for whoever needs one: it is started where there is none, and asked over its socket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import sys
import time
from typing import IO, Any, Sequence

from cloudrun.agent import processes
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir

CONNECT_S = 2.0  # how long one that has just been started may take to listen
TAKEN_S = 10.0  # how long to wait for a supervisor; the warden is a process of its own and may be stopped
RUNNING_S = 60.0  # and for its job to run
# the package's folder, or the archive that it is in; wardens of another version make room
AGENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_MAIN = "import sys; sys.path.insert(0, sys.argv[1]); from cloudrun.agent.warden import main; main(*sys.argv[2:])"


def ensure() -> bool:
    """Make sure that the unit has a warden. False where it cannot have one.

    Its lock is held from here on to its end, and its socket listens before it runs.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        with open(rundir.WARDEN_LOCK, "ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(rundir.WARDEN_SOCKET)
                listener.bind(rundir.WARDEN_SOCKET)
                os.chmod(rundir.WARDEN_SOCKET, 0o600)
                listener.listen(64)
                _start([lock.fileno(), listener.fileno()])
        return True
    except OSError:
        return False


def tell(message: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
    """Hand the warden a message, and descriptors with it. False where there is none; it may still drop it."""
    give_up = time.monotonic() + CONNECT_S
    payload = json.dumps(dict(message, agent=AGENT)).encode("ascii")
    while ensure():
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(CONNECT_S)
                connection.connect(rundir.WARDEN_SOCKET)
                socket.send_fds(connection, [payload], list(descriptors))
                return True
        except OSError:
            if time.monotonic() >= give_up:
                return False
            time.sleep(0.01)
    return False


def start(run: RunDir, lock: IO[bytes]) -> bool:
    """Let the warden start a supervisor for `run`, with the lock; wait until its job runs, or could not.

    False where no supervisor has come of it.
    """
    for _ in range(2):  # the first may be of another version, which makes room
        reader, writer = os.pipe()
        try:
            told = tell({"do": "start", "run_dir": str(run.root)}, [lock.fileno(), writer])
            os.close(writer)
            if not told:
                return False
            if _hears(reader, TAKEN_S):
                _hears(reader, RUNNING_S)
                return True
        finally:
            os.close(reader)
    return False


def _hears(reader: int, timeout_s: float) -> bool:
    return bool(select.select([reader], [], [], timeout_s)[0]) and os.read(reader, 1) != b""


def _start(kept: list[int]) -> None:
    """A daemon in a session of its own, which inherits the descriptors `kept` and nothing else."""
    adopts = processes.adopts_orphans()
    if adopts:  # it shall not be the child of a job's supervisor, which ends all its children with the job
        processes.adopt_orphans(False)
    first = os.fork()
    if first == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                null = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(null, descriptor)
                for descriptor in kept:
                    os.set_inheritable(descriptor, True)
                os.umask(0o077)
                arguments = [AGENT, *map(str, kept)]
                command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _MAIN, *arguments]
                os.execv(sys.executable, command)  # noqa: S606
        finally:
            os._exit(1)
    os.waitpid(first, 0)
    if adopts:
        processes.adopt_orphans()
