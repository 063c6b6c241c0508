"""How long a grid will take on so many units and what that costs, from what a cell is expected to take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from statistics import median

from cloudrun.core.records import MachineTimes
from cloudrun.plan import budget
from cloudrun.plan.costs import AT_LIST_PRICES, usd_text
from cloudrun.plan.quantities import counted, duration_text

MANY = 20_000  # cells from which on the last ones of a slot are no part of the whole that matters


@dataclass(frozen=True)
class Estimate:
    """`seconds` and `usd` are None where nobody knows how long a cell takes; `most_usd` is what the units' deadlines,
    `deadline_s` after their launch, or the budget (`is_budget`) allow at most, of the dearest type, with what was spent
    before. `usd_per_hour` is of one unit, 0 where it has no list price."""

    cells: int
    units: int
    slots: int
    usd_per_hour: float
    seconds: float | None
    usd: float | None
    most_usd: float
    deadline_s: float
    is_budget: bool = False

    def __str__(self) -> str:
        what = counted(self.cells, "cell")
        where = f"{counted(self.units, 'unit')}, {self.slots} at a time on each"
        if self.seconds is None or self.usd is None:
            return f"{what} to run on {where}: nobody knows yet how long one takes; {self._most}"
        cost = f", some {usd_text(self.usd)} with overhead" if self.usd_per_hour else ""
        return f"{what} to run on {where}: some {duration_text(self.seconds)}{cost}; {self._most}"

    @property
    def _most(self) -> str:
        if not self.usd_per_hour:
            return "of no known price"
        most = f"at most {usd_text(self.most_usd)} {AT_LIST_PRICES}"
        if self.is_budget:
            return f"{most}, the budget"
        them = "it" if self.units == 1 else "all"
        return f"{most}, if {them} ran until the deadline, for {duration_text(self.deadline_s)}"


def estimate(
    cells: int,
    expected_s: Sequence[float] | None,
    *,
    units: int,
    slots: int,
    usd_per_hour: float,
    beside: MachineTimes,
    deadline_s: float,
    budget_usd: float | None,
    dearest_usd_per_hour: float = 0.0,
    spent_usd: float = 0.0,
) -> Estimate:
    """`expected_s`: of each cell, in the order in which they begin; None where nobody knows. `units`: the most that
    there may be; no more are used than have work. `beside`: what one takes beside its work. `dearest_usd_per_hour`: of
    the types that may be rented instead. `spent_usd`: on units that have ended already."""
    used = max(1, min(units, math.ceil(cells / slots)))
    most = spent_usd + used * budget.least_usd(max(usd_per_hour, dearest_usd_per_hour), deadline_s)
    is_budget = budget_usd is not None and budget_usd < most
    if budget_usd is not None:
        most = min(most, budget_usd)
    if expected_s is None:
        return Estimate(cells, used, slots, usd_per_hour, None, None, most, deadline_s, is_budget)
    lives = [beside.boot_s + beside.provision_s + each + beside.end_s for each in busy_s(expected_s, used, slots)]
    usd = sum(budget.cost_usd(usd_per_hour, life_s) for life_s in lives)
    return Estimate(cells, used, slots, usd_per_hour, max(lives), usd, most, deadline_s, is_budget)


def busy_s(expected_s: Sequence[float], units: int, slots: int) -> list[float]:
    """For how long each unit works where a cell begins as soon as there is a slot: the last ones run beside idle slots,
    so that six cells on four slots take as long as eight."""
    if len(expected_s) > MANY:
        return [sum(expected_s) / (units * slots)] * units
    free = [(0.0, place) for place in range(units * slots)]
    heapify(free)
    ends = [0.0] * units
    for seconds in expected_s:
        since, place = free[0]
        heapreplace(free, (since + seconds, place))
        ends[place % units] = max(ends[place % units], since + seconds)
    return ends


def usual_times(seen: Sequence[MachineTimes], environment: str, otherwise: MachineTimes) -> MachineTimes:
    """What a machine takes beside its work, as those `seen` have (medians); `otherwise` where there are none.

    An environment that none of them had is built anew: that takes as long as it took where one was built.
    """
    if not seen:
        return otherwise
    same = [each.provision_s for each in seen if each.environment == environment]
    built = [each.provision_s for each in seen if each.provision_s >= otherwise.provision_s / 2]
    provision_s = median(same) if same else median(built) if built else otherwise.provision_s
    return MachineTimes(median(each.boot_s for each in seen), provision_s, median(each.end_s for each in seen))


def work_s(queued: int, running: int, expected_s: float, slots: int) -> float:
    """Until all is done, on so many slots: what runs is half done on average, and the last one is waited for."""
    return max(expected_s / 2, (queued + running / 2) * expected_s / max(1, slots)) if queued or running else 0.0
