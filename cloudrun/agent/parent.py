"""A process that has imported an environment's heavy modules and forks jobs, which then need not import them.

It is started with `BOOT`, by the environment's own Python, and told what to do by the warden over a socket. One thread,
and it computes nothing: what it has imported must be as if each fork had imported it.

What the imports leave behind, found with numpy 2.4, scipy 1.17 and scikit-learn from PyPI on Linux: numpy's and scipy's
OpenBLAS start their worker threads at import (pthreads, one pool each). Their fork handlers end the pools before a fork
and start them again when they are needed, in parent and child. scikit-learn loads libgomp, which starts nothing before
its first parallel region; a pool of it that has run would be missing in a fork, which then hangs. pandas imports
pyarrow where it is installed (and scikit-learn imports pandas), whose jemalloc has a background thread that is not
missed: in a fork, its own handler switches it off, and whoever frees memory gives it back. So a process that still has
another thread after a first fork has one of the wrong kind, and gives up.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Callable, Collection, Iterator, NoReturn

from cloudrun.agent import forked, passport, supervisor
from cloudrun.core.rundir import RunDir

# Runs before the agent's first import, and keeps nothing alive: `python -c BOOT <pyz> <descriptor> <module>...`.
# The alarm ends an import that hangs. What `main` returns runs the job, called by the interpreter: see `forked`.
BOOT = """\
main = frozenset(globals())
import sys, os, _signal
_signal.alarm(120)
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]
startup, path, importers = frozenset(sys.modules), list(sys.path), frozenset(sys.path_importer_cache)
for name in sys.argv[3:]:
    try:
        __import__(name)
    except Exception:
        pass
loaded = frozenset(sys.modules)
sys.path.insert(0, sys.argv[1])
from cloudrun.agent import parent
del sys.path[0]
sys.excepthook = parent.main(int(sys.argv[2]), startup, loaded, path, importers, main)
raise KeyboardInterrupt
"""
READY = b"R"
HARMLESS = frozenset({"jemalloc_bg_thd"})  # threads that no fork misses
LENGTH = struct.Struct("!Q")
GO = b"!"
BECOME_S = 20.0  # how long a fork may take to become the job; a script on a slow disk is read and compiled in it


def main(
    descriptor: int,
    startup: Collection[str],
    loaded: Collection[str],
    path: list[str],
    importers: Collection[str],
    names: Collection[str],
) -> Callable[..., None]:
    """Serve the warden until it hangs up. Returns in the fork that is a job only."""
    os.set_inheritable(descriptor, False)
    channel = socket.socket(fileno=descriptor)
    interpreter = forked.Interpreter(
        startup=frozenset(startup),
        loaded=frozenset(loaded),
        path=path,
        importers=frozenset(importers),
        main=frozenset(names),
        added=_added(),
    )
    sys.argv[2:] = []
    del sys.argv[0]
    passport.this_platform()  # what supervisors need is found once, here: this takes a process
    codecs.lookup("ascii")
    forked.find_title()
    forked.set_title("cloudrun: preimported " + sys.executable)
    gc.collect()
    gc.freeze()  # a collection in a fork would touch, and so copy, every object there is
    if not _may_fork():
        os._exit(3)
    signal.alarm(0)
    channel.sendall(READY)
    while True:
        hook = _serve_one(channel, interpreter)
        if hook is not None:
            return hook


def _added() -> dict[str, str]:
    """The variables that the interpreter's start and the imports have set: a job that imports the same has them too."""
    with open("/proc/self/environ", "rb") as stream:
        given = dict(entry.partition(b"=")[::2] for entry in stream.read().split(b"\0") if entry)
    return {name: value for name, value in os.environ.items() if given.get(os.fsencode(name)) != os.fsencode(value)}


def _may_fork() -> bool:
    """Whether no thread is there that a fork would miss: OpenBLAS's have ended with the first one."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return not [name for name in _threads() if name not in HARMLESS]


def _threads() -> Iterator[str]:
    """The names of all threads but this one."""
    for thread in os.listdir("/proc/self/task"):
        if thread != str(os.getpid()):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                yield Path("/proc/self/task/{}/comm".format(thread)).read_text("utf-8", "replace").rstrip("\n")


def _serve_one(channel: socket.socket, interpreter: forked.Interpreter) -> Callable[..., None] | None:
    """Read a request and fork its supervisor. The warden's end is ours. Returns something in a job only."""
    try:
        head, descriptors, _, _ = socket.recv_fds(channel, LENGTH.size, 3)
        if len(head) < LENGTH.size or len(descriptors) != 3:
            os._exit(0)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        request = json.loads(_receive(channel, LENGTH.unpack(head)[0]))
    except (OSError, EOFError, ValueError):
        os._exit(0)
    # Twice, so that the supervisor is nobody's child but the warden's, which adopts orphans.
    first = os.fork()
    if first:
        for descriptor in descriptors:
            os.close(descriptor)
        os.waitpid(first, 0)
        return None
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        channel.close()
        return _supervise(request, descriptors, interpreter)
    except BaseException:  # noqa: BLE001  # nothing here may go on as the parent
        os._exit(1)


def _receive(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _supervise(request: dict[str, Any], descriptors: list[int], interpreter: forked.Interpreter) -> Callable[..., None]:
    """Supervisor and job part here: the job waits until the supervisor asks for it. Returns in the job only."""
    run, spec = RunDir(Path(request["root"])), request["spec"]
    os.environ.clear()
    os.environ.update(request["environ"])
    ours, theirs = socket.socketpair()
    job = os.fork()
    if job:
        theirs.close()
        _supervise_and_exit(run, spec, descriptors, job, ours)
    try:
        for descriptor in descriptors:
            os.close(descriptor)
        ours.close()
        if theirs.recv(1) != GO:
            os._exit(0)  # the supervisor is gone
        hook = forked.become(run, spec, interpreter)
        theirs.sendall(GO)
        theirs.close()
        return hook
    except BaseException:  # noqa: BLE001  # whatever it is: the supervisor starts a fresh process instead
        os._exit(1)


def _supervise_and_exit(
    run: RunDir, spec: dict[str, Any], descriptors: list[int], job: int, channel: socket.socket
) -> NoReturn:
    lock, ready, control = descriptors
    forked.set_title("cloudrun: supervisor of {}".format(run.root.name))
    # The warden may have given up waiting: what starts is what it says starts.
    os.write(control, LENGTH.pack(os.getpid()))
    if os.read(control, 1) != GO:
        os._exit(0)
    os.close(control)
    spawn = _Spawn(job, channel)
    supervisor.supervise_and_exit(run, spec, os.fdopen(lock, "ab"), ready, spawn=spawn)


class _Spawn:
    """Tells the fork that waits to be the job; where it cannot be, the job is a fresh process."""

    def __init__(self, job: int, channel: socket.socket) -> None:
        self.forked = False
        self._job = job
        self._channel = channel

    def __call__(self, run: RunDir, spec: dict[str, Any]) -> int:
        with self._channel, contextlib.suppress(OSError):
            self._channel.settimeout(BECOME_S)
            self._channel.sendall(GO)
            self.forked = self._channel.recv(1) == GO
        if self.forked:
            return self._job
        os.kill(self._job, signal.SIGKILL)
        os.waitpid(self._job, 0)
        return supervisor.spawn_fresh(run, spec)
