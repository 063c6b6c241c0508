"""The way to the unit's warden, for whoever needs one: it is started where there is none, and asked over its socket."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any, Sequence

from cloudrun.agent import compiled, locks, processes
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir, read_object

CONNECT_S = 2.0  # how long one that has just been started may take to listen
TAKEN_S = 10.0  # how long to wait for a supervisor; the warden is a process of its own and may be stopped
RUNNING_S = 60.0  # and for its job to run
KEEPER_S = 0.2  # between two wardens that are started: one that cannot live must not take the machine with it
DONE = b"!"  # the warden has looked
# the folder that the package is in, or its archive
PLACE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
AGENT = compiled.version_of(PLACE)  # wardens of another version make room
_MAIN = "import sys; sys.path.insert(0, sys.argv[1]); from cloudrun.agent.warden import main; main(*sys.argv[2:])"


def ensure() -> bool:
    """Make sure that the unit has a warden. False where it cannot have one.

    Its lock is held from here on to its end, and its socket listens before it runs.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        with os.fdopen(locks.open_lock(rundir.WARDEN_LOCK), "r+b", buffering=0) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _wake(lock)
                return True
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                if os.path.isdir(rundir.WARDEN_SOCKET):
                    shutil.rmtree(rundir.WARDEN_SOCKET)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(rundir.WARDEN_SOCKET)
                listener.bind(rundir.WARDEN_SOCKET)
                os.chmod(rundir.WARDEN_SOCKET, 0o600)
                listener.listen(64)
                _start([lock.fileno(), listener.fileno()])
        return True
    except OSError:
        return False


def keep() -> None:
    """Start another warden whenever the unit's is killed, as long as runs wait: there may be no job then whose
    supervisor does. A process of its own, and one for a unit."""
    with os.fdopen(locks.open_lock(rundir.KEEPER_LOCK), "r+b", buffering=0) as mine:
        try:
            fcntl.flock(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        mine.truncate(0)
        mine.write(json.dumps({"pid": os.getpid()}).encode("ascii"))
        while True:
            with os.fdopen(locks.open_lock(rundir.WARDEN_LOCK), "r+b", buffering=0) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # until it has gone
            if not _anybody_waits() or not ensure():
                return
            time.sleep(KEEPER_S)


def kept() -> bool:
    return locks.is_held(rundir.KEEPER_LOCK)


def dismiss_keeper() -> None:
    """The warden goes because it shall: nobody is to bring it back."""
    if kept():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(rundir.KEEPER_LOCK, "rb") as noted:
            os.kill(int(json.loads(noted.read(1024))["pid"]), signal.SIGKILL)


def _anybody_waits() -> bool:
    """Or was to begin when the warden was killed, and may have no supervisor yet."""
    with contextlib.suppress(OSError):
        for name in os.listdir(rundir.RUNS):
            run = RunDir(Path(rundir.RUNS, name))
            if os.path.lexists(run.queued):
                known = read_object(run.status)
                if not os.path.lexists(run.status) or (known is not None and known.get("state") == "starting"):
                    return True
    return False


def _wake(lock: IO[bytes]) -> None:
    """A job that stops all of its user's processes, or the warden, shall not keep it from its duties."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        pid = json.loads(lock.read(1024) or b"{}")["pid"]
        if isinstance(pid, int) and pid > 1:
            os.kill(pid, signal.SIGCONT)


def look() -> bool:
    """Have the warden look around now, and one of this version be there then. False where there can be none."""
    return tell({"do": "look"}, answered=True)


def tell(message: dict[str, Any], descriptors: Sequence[int] = (), *, answered: bool = False) -> bool:
    """Hand the warden a message, and descriptors with it. False where there is none.

    It may still drop it; unless `answered`: then it is told until one has done as it says, or is too busy to answer.
    """
    give_up = time.monotonic() + CONNECT_S
    payload = json.dumps(dict(message, agent=AGENT)).encode("ascii")
    while ensure():
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(CONNECT_S)
                connection.connect(rundir.WARDEN_SOCKET)
                socket.send_fds(connection, [payload], list(descriptors))
                if not answered or _is_answered(connection):
                    return True
        except OSError:
            pass
        if time.monotonic() >= give_up:
            return False
        time.sleep(0.01)
    return False


def _is_answered(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == DONE  # an end without it: it was of another version, which has made room
    except socket.timeout:
        return True


def start(run: RunDir, lock: IO[bytes]) -> bool:
    """Let the warden start a supervisor for `run`, with the lock; wait until its job runs, or could not.

    False where no supervisor has come of it.
    """
    for _ in range(2):  # the first may be of another version, which makes room
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                told = tell({"do": "start", "run_dir": str(run.root)}, [lock.fileno(), theirs.fileno()])
            if not told:
                return False
            if is_taken(ours, TAKEN_S):
                _hears(ours, RUNNING_S)
                return True
    return False


def is_taken(ready: socket.socket, timeout_s: float) -> bool:
    """Whether a supervisor says that it is there. Where not, none will ever think that it has said so."""
    if _hears(ready, timeout_s):
        return True
    ready.shutdown(socket.SHUT_RD)  # from here on its word fails; what it has said until now can be read
    ready.setblocking(False)
    return _hears(ready, 0)


def _hears(ready: socket.socket, timeout_s: float) -> bool:
    return bool(select.select([ready], [], [], timeout_s)[0]) and ready.recv(1) != b""


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
                arguments = [PLACE, *map(str, kept)]
                command = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _MAIN, *arguments]
                os.execv(sys.executable, command)  # noqa: S606
        finally:
            os._exit(1)
    os.waitpid(first, 0)
    if adopts:
        processes.adopt_orphans()
