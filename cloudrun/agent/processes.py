"""What the kernel knows about processes: who is who across reuse of pids, who descends from whom, what they took."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from typing import Any, Iterable, NamedTuple

PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER = 36, 37  # <linux/prctl.h>
CLD_EXITED = 1  # <signal.h>; the other ends are by a signal
_CHILDREN = os.path.exists(f"/proc/{os.getpid()}/task/{os.getpid()}/children")  # CONFIG_PROC_CHILDREN


class Process(NamedTuple):
    """A line of /proc/<pid>/stat. Times are in the kernel's ticks, memory in bytes."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    user_ticks: int  # its own and of the children it has waited for
    system_ticks: int
    threads: int
    started: str
    memory_bytes: int
    wait_status: int  # of one that has ended and is not reaped yet

    def ended(self) -> bool:
        return self.state == "Z" and self.threads <= 1  # with more, only the first thread of several has ended


@functools.lru_cache(maxsize=None)
def boot_id() -> str:
    """Names this boot of the machine, or of the container that is one; "" where the kernel does not say (no Linux)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            # a container has its host's boot id, but a first process of its own
            return f"{stream.read().strip()}.{start_time(1)}"
    except OSError:
        return ""


def look(pid: int) -> Process | None:
    """What the kernel says of `pid`, dead or not as long as it is not reaped; None where there is none, or no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stream:
            text = stream.read(4096)
    except OSError:
        return None
    # the second field is the program's name in parentheses and may hold anything, parentheses too
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 50:
        return None
    user, system, user_below, system_below = (int(field) for field in fields[11:15])
    return Process(
        pid=pid,
        state=fields[0].decode("ascii", "replace"),
        parent=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        user_ticks=user + user_below,
        system_ticks=system + system_below,
        threads=int(fields[17]),
        started=fields[19].decode("ascii", "replace"),
        memory_bytes=int(fields[21]) * _page_bytes(),
        wait_status=int(fields[49]),
    )


def everybody() -> list[Process]:
    """Every process there is; empty where there is no /proc."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    return [process for process in map(look, pids) if process is not None]


def start_time(pid: int) -> str:
    """When `pid` started, in the kernel's own ticks; "" where there is no such process or no /proc.

    Together with the boot id it tells a process from a later one with the same pid.
    """
    process = look(pid)
    return process.started if process else ""


def is_same(pid: int, started: str, boot: str) -> bool:
    """Whether `pid` still is the process that was recorded. Where the kernel cannot tell, the answer is no."""
    return bool(started) and boot == boot_id() and start_time(pid) == started


def age_s(started: str) -> float:
    """Seconds since a start time, by a clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / os.sysconf("SC_CLK_TCK")


def booted_at() -> float:
    """When this boot began, in seconds since 1970 by the present clock; 0.0 where the kernel does not say."""
    first = start_time(1)
    return time.time() - age_s(first) if first else 0.0


def ticks_s(ticks: int) -> float:
    return ticks / os.sysconf("SC_CLK_TCK")


def storage_bytes(pid: int) -> tuple[int, int]:
    """Bytes that `pid`, and the children it has waited for, read from and wrote to storage; zeros where unknown."""
    try:
        with open(f"/proc/{pid}/io", "rb", buffering=0) as stream:
            fields = dict(line.split(b": ") for line in stream.read(4096).splitlines())
        return int(fields[b"read_bytes"]), int(fields[b"write_bytes"])
    except (OSError, KeyError, ValueError):
        return 0, 0


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    return bool(_noted(pid, "status", b"SigCgt:", 16) >> (number - 1) & 1)


def peak_bytes(pid: int) -> int:
    """The most memory that the program of `pid` has had at once; 0 where unknown."""
    return _noted(pid, "status", b"VmHWM:") * 1024


def own_bytes(process: Process) -> int:
    """Its memory, with an equal share of what it shares with others, as far as the kernel tells."""
    return _noted(process.pid, "smaps_rollup", b"Pss:") * 1024 or process.memory_bytes


def _noted(pid: int, document: str, name: bytes, base: int = 10) -> int:
    """A number in /proc/<pid>/<document>; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/{document}", "rb", buffering=0) as stream:
        for line in stream.read(16384).splitlines():
            if line.startswith(name):
                return int(line.split()[1], base)
    return 0


def load() -> None:
    """Load what `adopt_orphans` needs, for a process that will fork others that need it at once."""
    _libc()


def adopt_orphans(wanted: bool = True) -> bool:
    """Become the parent of every orphaned descendant, so that a job's daemons can be found; or no longer be it.

    False where impossible.
    """
    libc = _libc()
    return libc is not None and libc.prctl(PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0) == 0


def adopts_orphans() -> bool:
    libc = _libc()
    if libc is None:
        return False
    import ctypes

    answer = ctypes.c_int()
    return libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0) == 0 and bool(answer.value)


def children(parent: int) -> list[int]:
    """The pids whose parent is `parent`; empty where there is no /proc."""
    if not _CHILDREN:
        return [process.pid for process in everybody() if process.parent == parent]
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{parent}/task")
    except OSError:
        return found
    for thread in threads:  # a child is listed with the thread that made it
        with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children", "rb", buffering=0) as stream:
            text = b""
            while chunk := stream.read(65536):
                text += chunk
            found += map(int, text.split())
    return found


def tree(roots: Iterable[int]) -> list[Process]:
    """The processes of `roots` and all their descendants, as far as they live."""
    if not _CHILDREN:
        return _tree_of_everybody(set(roots))
    found: dict[int, Process] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        process = None if pid in found else look(pid)
        if process is not None:
            found[pid] = process
            waiting += children(pid)
    return list(found.values())


def below(folder: str) -> list[int]:
    """The pids whose working directory is in `folder`, as far as the kernel tells us; never our own."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        with contextlib.suppress(OSError):
            if name.isdigit() and int(name) != os.getpid():
                place = os.readlink(f"/proc/{name}/cwd")
                if (place + "/").startswith(folder + "/"):
                    found.append(int(name))
    return found


def signal_group(group: int, number: int) -> None:
    """Signal a process group that may be gone already."""
    if group <= 1:  # what a job may have written down as its own: all processes, or this one's group
        return
    with contextlib.suppress(ProcessLookupError, PermissionError, OverflowError):  # macOS: EPERM for a group of zombies
        os.killpg(group, number)


def signal_one(pid: int, number: int) -> None:
    if pid > 1:  # as for groups
        with contextlib.suppress(ProcessLookupError, PermissionError, OverflowError):
            os.kill(pid, number)


def peek() -> Any:
    """A child that has ended and is not reaped yet (its `si_pid`, `si_code`, `si_status`), or None where there is none.

    It stays readable in /proc until `os.wait4` reaps it. Raises ChildProcessError where there are no children.
    """
    return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)


def open_pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when `pid` ends; None where the kernel has none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError, OverflowError):
        return None


def wake_on_child() -> int:
    """A descriptor that becomes readable when a child ends."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the descriptor is written for handled signals only
    return reader


@functools.lru_cache(maxsize=None)
def _libc() -> Any:
    try:
        import ctypes

        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "prctl") else None
    except (ImportError, OSError):  # no ctypes, or no Linux
        return None


@functools.lru_cache(maxsize=None)
def _page_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE")


def _tree_of_everybody(wanted: set[int]) -> list[Process]:
    processes = everybody()
    found: dict[int, Process] = {}
    while True:
        more = {p.pid: p for p in processes if p.pid not in found and (p.pid in wanted or p.parent in found)}
        if not more:
            return list(found.values())
        found.update(more)
