"""The orders of the unit's owner, as its warden knows them: what `orders.json` says, and since when."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Callable

from cloudrun.agent import power
from cloudrun.core import rundir
from cloudrun.core.rundir import read_object


class Orders:
    """`current` is None as long as there are none. `of_another_boot(moment)` says whether the machine was started again
    since."""

    def __init__(self, of_another_boot: Callable[[float], bool]) -> None:
        self.current: dict[str, Any] | None = None  # `core.records.UnitOrders`
        self.given_at = time.time()
        self._of_another_boot = of_another_boot
        self._begun = time.time()
        self._seen: Any = None

    def read(self) -> None:
        """Take what is new; what makes no sense changes nothing."""
        try:
            info = os.stat(rundir.ORDERS)
        except OSError:
            self.current = None
            return
        seen = (info.st_ino, info.st_mtime_ns)
        if seen == self._seen:
            return
        self._seen = seen
        orders = read_object(Path(rundir.ORDERS))
        if orders is None or not power.can_be_followed(orders):
            return
        self.current, self.given_at = orders, info.st_mtime
        if self._of_another_boot(self.given_at) and self.given_at < self._begun:
            # a machine that was started again: its owner may be about to move the deadline
            overdue = self._begun + power.OVERDUE_GRACE_S
            self.current = dict(orders, deadline=max(float(orders["deadline"]), overdue))
            self.given_at = self._begun
