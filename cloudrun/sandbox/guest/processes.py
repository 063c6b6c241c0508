"""Which processes belong to a unit, where no namespace says so: by descent, and by a mark in their environment."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

MARK = "CLOUDRUN_UNIT"
_OOM_SCORE = 500  # of 1000: as if it held half of all memory more than it does
_PR_SET_CHILD_SUBREAPER = 36
_SWEEP_TIMEOUT_S = 5.0


def adopt_orphans() -> None:
    """Become the parent of every orphan below this process, so that none is lost from sight. On Linux only."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)


def be_first_to_go() -> None:
    """Let the kernel end a process of this unit, rather than one of the user's own, when memory runs out."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as stream:
        stream.write(f"{_OOM_SCORE}\n")


def descendants(ancestor: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting.extend(below)
    return found


def marked(directory: str) -> set[int]:
    """Processes that were started with the mark of the unit in `directory`, as far as they may be looked at."""
    mark = f"{MARK}={directory}"
    if not os.path.isdir("/proc/self"):
        return {int(line.split(None, 1)[0]) for line in _ps("axEww", "pid=,command=") if f"{mark} " in f"{line} "}
    found = set()
    for pid in _pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as stream:
            if mark.encode() in stream.read().split(b"\0"):
                found.add(pid)
    return found


def of_user(uid: int) -> set[int]:
    """Every process of a user that only one unit has."""
    if not os.path.isdir("/proc/self"):
        return {int(pid) for pid, owner in (line.split() for line in _ps("ax", "pid=,uid=")) if int(owner) == uid}
    found = set()
    for pid in _pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid == uid:
                found.add(pid)
    return found


def kill_marked(directory: str, uid: int | None) -> None:
    """End them all, and those they start meanwhile; where the unit has a user of its own, all of that user's."""
    give_up = time.monotonic() + _SWEEP_TIMEOUT_S
    while time.monotonic() < give_up:
        alive = marked(directory) | (of_user(uid) if uid else set())
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _parents() -> dict[int, int]:
    if not os.path.isdir("/proc/self"):
        pairs = (line.split() for line in _ps("ax", "pid=,ppid="))
        return {int(pid): int(parent) for pid, parent in pairs}
    found = {}
    for pid in _pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stream:
            found[pid] = int(stream.read().rpartition(b")")[2].split()[1])
    return found


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _ps(flags: str, columns: str) -> list[str]:
    listed = subprocess.run(["ps", flags, "-o", columns], capture_output=True, text=True, check=False)
    return listed.stdout.splitlines()
