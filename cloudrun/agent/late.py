"""Jobs that wait for their parent: of many that import the same, the first ones too are forks of one that does so once.

Each core would import it for itself otherwise, all at the same time, and those that come next once more.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any, Iterator

from cloudrun.agent.wards import Ward

PATIENCE_S = 6.0  # for a parent; whoever wants the job started waits for ten
LOOK_S = 0.02


@dataclass(frozen=True)
class Late:
    """One of them. `lock` and `ready` are descriptors of its own, as `supervisor` has them."""

    ward: Ward
    spec: dict[str, Any]
    lock: int
    ready: int
    until: float


class LateStarts:
    def __init__(self) -> None:
        self._waiting: list[Late] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, parents: Any, ward: Ward, spec: dict[str, Any], lock: int, ready: int) -> bool:
        """Whether it waits; not without `parents` (None), or where there are no more jobs to come that it is for."""
        with contextlib.suppress(Exception):  # whatever is wrong with a parent: a fresh process is as good
            if parents is not None and spec.get("more") and not parents.fits(spec) and parents.is_coming(spec):
                self._waiting.append(self._late(ward, spec, lock, ready))
                return True
        return False

    @staticmethod
    def _late(ward: Ward, spec: dict[str, Any], lock: int, ready: int) -> Late:
        return Late(ward, spec, os.dup(lock), os.dup(ready), time.monotonic() + PATIENCE_S)

    def due(self, parents: Any) -> Iterator[Late]:
        """Those that are to begin now, be it freshly; their descriptors are closed after each."""
        for late in list(self._waiting):
            if time.monotonic() > late.until or parents.fits(late.spec) or not parents.is_coming(late.spec):
                self._waiting.remove(late)
                try:
                    yield late
                finally:
                    os.close(late.lock)
                    os.close(late.ready)
