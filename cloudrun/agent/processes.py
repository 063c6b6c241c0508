"""What the kernel knows about processes: who is who across reuse of pids, and who descends from us."""

from __future__ import annotations

import contextlib
import os
import signal
import time

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>


def boot_id() -> str:
    """Names this boot of the machine; "" where the kernel does not say (no Linux)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def start_time(pid: int) -> str:
    """When `pid` started, in the kernel's own ticks; "" where there is no such process or no /proc.

    Together with the boot id it tells a process from a later one with the same pid.
    """
    return _stat_fields(pid).get("start_time", "")


def is_same(pid: int, started: str, boot: str) -> bool:
    """Whether `pid` still is the process that was recorded. Where the kernel cannot tell, the answer is no."""
    return bool(started) and boot == boot_id() and start_time(pid) == started


def adopt_orphans() -> bool:
    """Become the parent of every orphaned descendant, so that a job's daemons can be found. False where impossible."""
    try:
        import ctypes

        return bool(ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):  # no ctypes, or no Linux
        return False


def children(parent: int) -> list[int]:
    """The pids whose parent is `parent`; empty where there is no /proc."""
    try:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []
    return [pid for pid in pids if _stat_fields(pid).get("parent") == str(parent)]


def signal_group(group: int, number: int) -> None:
    """Signal a process group that may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
        os.killpg(group, number)


def end_descendants(timeout_s: float) -> bool:
    """Kill and reap every child of this process, and, where orphans are adopted, theirs in turn.

    True when nobody is left; False when the time was up first (a process in uninterruptible sleep).
    """
    give_up = time.monotonic() + timeout_s
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return True
        if pid:
            continue
        if time.monotonic() >= give_up:
            return False
        for child in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def _stat_fields(pid: int) -> dict[str, str]:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            text = stream.read().decode("ascii", "replace")
    except OSError:
        return {}
    # the second field is the program's name in parentheses and may hold anything, parentheses too
    fields = text[text.rfind(")") + 2 :].split()
    if len(fields) < 20:
        return {}
    return {"state": fields[0], "parent": fields[1], "start_time": fields[19]}
