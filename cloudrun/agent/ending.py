"""Wishes for a job's end: `cancel.json`, by whomever and for whatever reason, and what a supervisor makes of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from typing import Any

from cloudrun.agent import durable, processes
from cloudrun.core.rundir import REASONS, RunDir, never_waiting, read_object, write_json

UNKILLABLE_S = 30.0  # a process in uninterruptible sleep outlives SIGKILL; nobody shall wait for it for ever


def wish(run: RunDir, grace_s: float, reason: str) -> None:
    """Wish for the job's end: SIGTERM to its group, `grace_s` seconds, SIGKILL.

    Of several wishes the first one's reason stays, and the earliest time to kill counts. Raises OSError (a full disk).
    """
    earlier = read(run)
    if os.path.isdir(run.cancel):  # a job that wants to be spared
        durable.remove_tree(str(run.cancel))
    write_json(run.cancel, {"grace_s": grace_s, "reason": earlier[1] if earlier else reason})


def read(run: RunDir) -> tuple[float, str] | None:
    """The wish there is: seconds of grace, and the reason."""
    request = read_object(run.cancel)
    if request is None:
        return None
    grace_s, reason = request.get("grace_s"), request.get("reason")
    return (
        float(grace_s) if isinstance(grace_s, (int, float)) and grace_s == grace_s else 0.0,  # NaN is none
        reason if reason in REASONS else "cancelled",
    )


def note(run: RunDir, end: dict[str, Any]) -> None:
    """Write `ended.json`, for a supervisor after this one. Not durably: it is of no use after a reboot."""
    temporary = f"{run.ended}.tmp{os.getpid()}"
    with contextlib.suppress(OSError):
        with open(temporary, "w", encoding="ascii", opener=never_waiting) as stream:
            json.dump(end, stream)
        os.replace(temporary, run.ended)


class Ending:
    """One job's end as its supervisor brings it about. `reason` is "" as long as nobody wants it."""

    def __init__(self, run: RunDir, group: int) -> None:
        self.reason = ""
        self._run = run
        self._group = group
        self._kill_at = float("inf")
        self._seen: Any = None

    def hear(self) -> None:
        """Look for a wish, and do what is due."""
        found = self._changed()
        if found is not None:
            self.begin(*found)
        if time.monotonic() >= self._kill_at:
            processes.signal_group(self._group, signal.SIGKILL)

    def begin(self, grace_s: float, reason: str) -> None:
        self._kill_at = min(self._kill_at, time.monotonic() + grace_s)
        if not self.reason:
            self.reason = reason
            processes.signal_group(self._group, signal.SIGTERM)
            processes.signal_group(self._group, signal.SIGCONT)  # a stopped job could not hear it

    def breach(self, grace_s: float, reason: str) -> None:
        """End the job because of a limit; whoever supervises it next shall know as well."""
        if not self.reason:
            with contextlib.suppress(OSError):  # a full disk
                wish(self._run, grace_s, reason)
            self.begin(grace_s, reason)

    def given_up(self) -> bool:
        return time.monotonic() >= self._kill_at + UNKILLABLE_S

    def _changed(self) -> tuple[float, str] | None:
        try:
            info = os.lstat(self._run.cancel)
        except OSError:
            return None
        now = (info.st_ino, info.st_mtime_ns, info.st_size)
        if now == self._seen:
            return None
        self._seen = now
        return read(self._run)
