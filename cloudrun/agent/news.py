"""What became of the unit, as `news.json` tells its clients and the next warden."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from cloudrun.agent import processes
from cloudrun.core import rundir
from cloudrun.core.rundir import never_waiting, read_object

HEARTBEAT_S = 10.0  # how often it is written where nothing is new


class News:
    """The fields of `core.records.UnitNews`, and `heartbeat_at`, `warden_pid` and `boot_id`.

    What an earlier warden of the same boot has heard is still known.
    """

    def __init__(self) -> None:
        self._written: dict[str, Any] = {}
        self._written_at = float("-inf")
        earlier = read_object(Path(rundir.NEWS)) or {}
        self._earlier_boot = earlier.get("boot_id")
        if self._earlier_boot != processes.boot_id():
            earlier = {}
        self.interruption_at: float | None = _number(earlier.get("interruption_at"))
        self.rebalance_at: float | None = _number(earlier.get("rebalance_at"))
        self._rebalance_known = self.rebalance_at is not None
        self._power_off_at: float | None = None
        self._why = ""

    def other_boot(self, moment: float) -> bool:
        """Whether this warden is this boot's first, and something of `moment` an earlier boot's."""
        if self._earlier_boot is None:  # there are no news, or a machine that went down has spoilt them
            return moment < processes.booted_at()
        return bool(self._earlier_boot != processes.boot_id())

    def hear(self, news: dict[str, Any]) -> None:
        """What the provider says now."""
        self.interruption_at = _number(news.get("interruption_at"))
        if "rebalance_at" in news:
            self.rebalance_at = _number(news["rebalance_at"])

    def rebalance_is_new(self) -> bool:
        """Whether there is a recommendation that nobody has acted on; asked once, it is old."""
        if self.rebalance_at is None or self._rebalance_known:
            return False
        self._rebalance_known = True
        return True

    def power_off(self, why: str) -> None:
        if self._power_off_at is None:
            self._power_off_at, self._why = time.time(), why

    def stay(self) -> None:
        """There is no reason, or none any more, to power off."""
        self._power_off_at, self._why = None, ""

    def write(self) -> None:
        """Bring the file up to date. Not durably: who reads it asks for what is true now."""
        current = {
            "interruption_at": self.interruption_at,
            "rebalance_at": self.rebalance_at,
            "power_off_at": self._power_off_at,
            "why": self._why,
            "warden_pid": os.getpid(),
            "boot_id": processes.boot_id(),
        }
        now = time.monotonic()
        if current == self._written and now < self._written_at + HEARTBEAT_S:
            return
        temporary = rundir.NEWS + ".tmp"
        with contextlib.suppress(OSError):
            with open(temporary, "w", encoding="ascii", opener=never_waiting) as stream:
                json.dump(dict(current, heartbeat_at=time.time()), stream)
            os.replace(temporary, rundir.NEWS)
            self._written, self._written_at = current, now


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
