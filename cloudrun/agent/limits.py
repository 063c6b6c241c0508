"""What a job takes of its unit, sampled while it runs and added up as its processes end, and what it may take."""

from __future__ import annotations

import os
import resource
import time
from typing import Any, Callable, Iterable

from cloudrun.agent import processes
from cloudrun.agent.processes import Process

FIRST_S = 0.05  # when to look first: most of a job's memory is not there before
LIMITED_S = 0.2  # how often to look where memory or disk have a limit
UNLIMITED_S = 1.0  # and where only the record wants to know
FLOOR_SLACK_BYTES = 1 << 20  # what a fork takes before it is another program
SHARE = 0.05  # the most of one processor that looking may take, however large the tree


class Meter:
    """The usage of one job, whose living processes `members` lists."""

    def __init__(self, spec: dict[str, Any], members: Callable[[], list[Process]]) -> None:
        self._members = members
        self._limits = {name: spec.get(name) for name in ("wall_time_s", "memory_bytes", "disk_bytes")}
        self._period_s = LIMITED_S if self._limits["memory_bytes"] or self._limits["disk_bytes"] else UNLIMITED_S
        self.next_sample = time.monotonic() + FIRST_S
        self._cpu_user_s = 0.0
        self._cpu_system_s = 0.0
        self._peak_bytes = 0
        self._floor_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + FLOOR_SLACK_BYTES
        self._memory_bytes = 0
        self._buried = (0, 0)  # read from and written to storage by those that have ended
        self._read_bytes = 0
        self._written_bytes = 0

    def reap(self, pid: int) -> int | None:
        """Reap our child `pid` where it has ended, and count what it took, with whoever it had waited for. Returns its
        wait status, None while it lives. Raises ChildProcessError where there is no such child."""
        # What one that has ended wrote, newer kernels (seen with 6.18) tell nobody but root. But whoever reaps it is
        # charged with it, and may look at himself.
        before = processes.storage_bytes(os.getpid())
        reaped, wait_status, used = os.wait4(pid, os.WNOHANG)
        if reaped == 0:
            return None
        after = processes.storage_bytes(os.getpid())
        self._bury_storage((after[0] - before[0], after[1] - before[1]))
        self._add(used)
        return wait_status

    def _add(self, used: Any) -> None:
        """Add the `rusage` of a child that was reaped."""
        self._cpu_user_s += used.ru_utime
        self._cpu_system_s += used.ru_stime
        peak_bytes = used.ru_maxrss * 1024  # Linux counts in KiB
        # a process that has started another program counts from before it did so, with what it was a copy of
        if peak_bytes > self._floor_bytes or not self._peak_bytes:
            self._peak_bytes = max(self._peak_bytes, peak_bytes)

    def add_recorded(self, usage: dict[str, Any]) -> None:
        """Add what somebody else has counted of a process that ended (`ended.json`)."""
        known: dict[str, Any] = {name: value for name, value in usage.items() if isinstance(value, (int, float))}
        self._cpu_user_s += known.get("cpu_user_s", 0.0)
        self._cpu_system_s += known.get("cpu_system_s", 0.0)
        self._peak_bytes = max(self._peak_bytes, known.get("peak_memory_bytes", 0))
        self._bury_storage((known.get("read_bytes", 0), known.get("written_bytes", 0)))

    def sample(self) -> list[Process]:
        """Look at the job's processes, at most every `next_sample`; returns them."""
        begun = time.monotonic()
        members = [process for process in self._members() if process.state != "Z"]
        self._memory_bytes = self._memory(members)
        self._peak_bytes = max(self._peak_bytes, self._memory_bytes)
        if len(members) == 1:
            self._peak_bytes = max(self._peak_bytes, processes.peak_bytes(members[0].pid))
        self._count_storage(process.pid for process in members)
        now = time.monotonic()
        self.next_sample = now + max(self._period_s, (now - begun) / SHARE)
        return members

    def _memory(self, members: list[Process]) -> int:
        memory_bytes = sum(process.memory_bytes for process in members)
        if len(members) == 1 or memory_bytes <= min(self._peak_bytes, self._limits["memory_bytes"] or memory_bytes):
            return memory_bytes
        # what forks share would count once for each; to tell takes longer, and matters only here
        return sum(processes.own_bytes(process) for process in members)

    def breach(self, age_s: float) -> str:
        """The limit that the job has passed as of the last sample, by its name among `rundir.REASONS`, or ""."""
        taken = {"wall_time_s": age_s, "memory_bytes": self._memory_bytes, "disk_bytes": self._written_bytes}
        for name, reason in (("wall_time_s", "wall_time"), ("memory_bytes", "memory"), ("disk_bytes", "disk")):
            limit = self._limits[name]
            if limit is not None and taken[name] > limit:
                return reason
        return ""

    def due_in_s(self, age_s: float) -> float:
        """How long to wait at most before the next look."""
        due = max(0.0, self.next_sample - time.monotonic())
        if self._limits["wall_time_s"] is not None:
            due = min(due, max(0.01, self._limits["wall_time_s"] - age_s))
        return due

    def usage(self) -> dict[str, Any]:
        """The fields of `core.records.Usage`."""
        return {
            "cpu_user_s": round(self._cpu_user_s, 6),
            "cpu_system_s": round(self._cpu_system_s, 6),
            "peak_memory_bytes": self._peak_bytes,
            "read_bytes": self._read_bytes,
            "written_bytes": self._written_bytes,
        }

    def _bury_storage(self, taken: tuple[int, int]) -> None:
        self._buried = (self._buried[0] + taken[0], self._buried[1] + taken[1])
        self._count_storage(())

    def _count_storage(self, living: Iterable[int]) -> None:
        # never less than before: what ended without anybody waiting for it is in no count any more
        read, written = self._buried
        for pid in living:
            more = processes.storage_bytes(pid)
            read, written = read + more[0], written + more[1]
        self._read_bytes = max(self._read_bytes, read)
        self._written_bytes = max(self._written_bytes, written)


def of_dead(process: Process) -> dict[str, Any]:
    """The usage of a process that has ended and is not reaped yet, as `ended.json` tells it. Where the kernel does not
    say what such a one wrote (see `Meter.reap`), that is what was sampled."""
    read, written = processes.storage_bytes(process.pid)
    return {
        "cpu_user_s": processes.ticks_s(process.user_ticks),
        "cpu_system_s": processes.ticks_s(process.system_ticks),
        "peak_memory_bytes": 0,
        "read_bytes": read,
        "written_bytes": written,
    }
