"""The warden's preimported parents: processes that fork the jobs of an environment instead of starting Python anew.

Nothing depends on them: a parent that dies, hangs or misbehaves only means that the next job is a fresh process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Mapping

from cloudrun.agent import jobenv
from cloudrun.agent.parent import BOOT, GO, LENGTH, READY
from cloudrun.core.rundir import RunDir

MOST = 2  # parents at a time; each is about 130 MB of memory with scikit-learn, shared with its jobs
LEAST_MEMORY = 1 << 30  # bytes available, below which no parent is started
ANSWER_S = 4.0  # how long a parent may take for a fork before its job is started freshly
# What may be imported ahead of a job. Nothing here starts OpenMP threads or opens a GPU at import.
PRELOADABLE = frozenset({"cloudpickle", "joblib", "numpy", "pandas", "scipy", "sklearn", "threadpoolctl"})
# What scripts of every kind import, and what a parent has that has nothing else: of the standard library, and quick.
USUAL = (
    "argparse", "collections", "csv", "dataclasses", "datetime", "functools", "itertools", "json", "logging", "math",
    "os", "pathlib", "random", "re", "sys", "time",
)  # fmt: skip
# Read once, when the libraries are loaded.
THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
# Variables that the interpreter, the C library or a preloaded module looks at when it starts.
READ_AT_START = (
    "PYTHON", "LD_", "LC_", "LANG", "LOCPATH", "MALLOC_", "GLIBC_TUNABLES", "GCONV_PATH", "OMP_", "GOMP_", "KMP_",
    "OPENBLAS_", "GOTO_", "MKL_", "BLIS_", "NUMEXPR_", "VECLIB_", "NPY_", "NUMPY_", "SCIPY_", "SKLEARN_", "PANDAS_",
    "JOBLIB_", "LOKY_",
)  # fmt: skip
# And those of such a name that each job has for itself: loky asks for its number of CPUs whenever it needs it.
READ_LATER = frozenset({"PYTHONPATH", "LOKY_MAX_CPU_COUNT"})


class Parent:
    """One parent process, a child of this process."""

    def __init__(self, python: str, modules: list[str], environment: dict[str, str]) -> None:
        """Start it in the background. Raises OSError where that is impossible."""
        self.modules = frozenset(modules)
        self.ready = False  # to fork; it has imported what it could
        self.used = time.monotonic()
        archive = str(Path(__file__).parent.parent.parent)  # the archive, or the folder that holds the package
        self.channel, theirs = socket.socketpair()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [python, "-c", BOOT, archive, str(theirs.fileno()), *(modules or USUAL)],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except BaseException:
            self.channel.close()
            raise
        self.channel.settimeout(ANSWER_S)

    def alive(self) -> bool:
        """Whether it has not hung up; notes whether it has become ready."""
        try:
            readable = select.select([self.channel], [], [], 0)[0]
            if not readable:
                return True
            if self.channel.recv(1) == READY and not self.ready:
                self.ready = True
                return True
        except OSError:
            pass
        return False

    def fork(self, run: RunDir, spec: Mapping[str, Any], lock: int, ready: int) -> int:
        """Have it fork a supervisor and return its pid. Raises OSError where nothing was and will be started."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                request = {"root": os.path.abspath(run.root), "spec": dict(spec), "environ": dict(os.environ)}
                body = json.dumps(request).encode("ascii")
                socket.send_fds(self.channel, [LENGTH.pack(len(body))], [lock, ready, theirs.fileno()])
                self.channel.sendall(body)
            ours.settimeout(ANSWER_S)
            answer = ours.recv(LENGTH.size, socket.MSG_WAITALL)
            if len(answer) != LENGTH.size:
                raise ConnectionError("the parent has forked nothing")
            ours.sendall(GO)  # from here on it is the supervisor's
            return int(LENGTH.unpack(answer)[0])

    def close(self) -> None:
        """End it; jobs that it has forked go on."""
        self.channel.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Parents:
    """At most two parents, the least recently used of which goes."""

    def __init__(self, available: Callable[[], int] | None = None) -> None:
        self._available = available or available_memory
        self._parents: dict[tuple[str, ...], Parent] = {}
        self._hopeless: set[tuple[str, ...]] = set()  # whose parents have ended before they were ready

    def fits(self, spec: Mapping[str, Any]) -> Parent | None:
        """The parent that can fork this job as if it were started freshly, or None."""
        if not _forkable(spec):
            return None
        key = _key(spec)
        parent = self._living(key)
        if parent is None or not parent.ready:
            return None
        return parent

    def start(self, run: RunDir, spec: Mapping[str, Any], lock: int, ready: int) -> int | None:
        """Have the job's supervisor forked. Returns its pid, or None where the job is to be started freshly.

        `lock` and `ready` are descriptors of which the supervisor gets copies. Blocks for at most some seconds.
        """
        parent = self.fits(spec)
        if parent is None:
            return None
        parent.used = time.monotonic()
        try:
            return parent.fork(run, spec, lock, ready)
        except OSError:
            self._drop(_key(spec))
            return None

    def is_coming(self, spec: Mapping[str, Any]) -> bool:
        """Whether a parent that saves this job its imports will be ready soon; where there is none it is started."""
        if not preloadable(spec.get("preload") or []):
            return False
        self.warm(spec)
        parent = self._parents.get(_key(spec))
        return parent is not None and parent.alive() and not parent.ready

    def warm(self, spec: Mapping[str, Any]) -> None:
        """Start a parent for more jobs like this one, where there is none. It is ready some seconds later."""
        modules = preloadable(spec.get("preload") or [])
        if not _forkable(spec):
            return
        key = _key(spec)
        parent = self._living(key)
        if key in self._hopeless:
            return
        if parent is not None:
            if parent.modules.issuperset(modules):
                return
            modules = sorted(parent.modules.union(modules))
        if self._available() < LEAST_MEMORY:
            return
        self._drop(key)
        while len(self._parents) >= MOST:
            self._drop(min(self._parents, key=lambda key: self._parents[key].used))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
        environment.pop("PYTHONPATH", None)  # each job has its own
        environment.update({name: spec["env"][name] for name in THREAD_SETTINGS if name in spec["env"]})
        environment["PYTHONUNBUFFERED"] = "1"
        with contextlib.suppress(OSError):
            self._parents[key] = Parent(jobenv.program(spec), modules, environment)

    def close(self) -> None:
        """End all parents; jobs that they have forked go on."""
        for key in list(self._parents):
            self._drop(key)

    def _living(self, key: tuple[str, ...]) -> Parent | None:
        parent = self._parents.get(key)
        if parent is None or parent.alive():
            return parent
        if not parent.ready:
            self._hopeless.add(key)
        self._drop(key)
        return None

    def _drop(self, key: tuple[str, ...]) -> None:
        parent = self._parents.pop(key, None)
        if parent is not None:
            parent.close()


def preloadable(modules: list[str]) -> list[str]:
    """Those that may be imported ahead, sorted, each once."""
    return sorted({name for name in modules if name.partition(".")[0] in PRELOADABLE})


def available_memory() -> int:
    """Bytes that new processes can have without swapping; 0 where the kernel does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0


def _key(spec: Mapping[str, Any]) -> tuple[str, ...]:
    """What jobs of one parent have in common. Those that import nothing heavy have one that has not either: to fork and
    end a process with all that takes longer than to start an interpreter."""
    variables = {**os.environ, **spec["env"]}
    settings = [variables.get(name, "") for name in THREAD_SETTINGS]
    return (jobenv.program(spec), "heavy" if preloadable(spec.get("preload") or []) else "light", *settings)


def _forkable(spec: Mapping[str, Any]) -> bool:
    """Whether a fork of a parent of this environment could be what this job's own process would be."""
    argv = spec["argv"]
    if spec.get("fresh") or len(argv) < 2 or "/" not in argv[0] or not argv[1].endswith(".py") or argv[1][0] == "-":
        return False
    program = Path(jobenv.program(spec))
    if not program.name.startswith("python") or not (program.parent.parent / "pyvenv.cfg").exists():
        return False
    return not any(_read_at_start(name, value) for name, value in spec["env"].items())


def _read_at_start(name: str, value: str) -> bool:
    """Whether this variable would have made the parent itself another one."""
    if name in THREAD_SETTINGS or name in READ_LATER:
        return False
    if name == "PYTHONUNBUFFERED":
        return value != "1"
    return name.startswith(READ_AT_START) and os.environ.get(name) != value
