"""Units, limits and one decision, for tests of the planner."""

from __future__ import annotations

import dataclasses
from typing import Any

from cloudrun.plan.scheduling import Backlog, Decision, Limits, UnitView, decide

NOW = 1_000_000.0
LIMITS = Limits(max_units=8, slots=2, usd_per_hour=0.1, boot_s=60.0, deadline_s=4 * 3600.0)


def limits(**changes: Any) -> Limits:
    return dataclasses.replace(LIMITS, **changes)


def unit(name: str, busy: int = 0, state: Any = "ready", *, age_s: float = 100.0, left_s: float = 7200.0) -> UnitView:
    return UnitView(name, state, 2, busy, NOW - age_s, NOW + left_s, 0.1)


def decided(queued: int, *units: UnitView, spent: float = 0.0, **changes: Any) -> Decision:
    expected_s = changes.pop("expected_s", None)
    words = {word: changes.pop(word) for word in ("stopped", "barred") if word in changes}
    running = sum(each.busy for each in units)
    return decide(NOW, Backlog(queued, running, expected_s), units, limits(**changes), spent, **words)
