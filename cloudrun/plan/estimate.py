"""How long a grid will take on so many units and what that costs, from what a cell is expected to take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloudrun.plan import budget
from cloudrun.plan.costs import AT_LIST_PRICES, usd_text
from cloudrun.plan.quantities import duration_text


@dataclass(frozen=True)
class Estimate:
    """`seconds` and `usd` are None where nobody knows how long a cell takes; `most_usd` is what the units' deadlines,
    or the budget, allow at most, of the dearest type, with what was spent before. `usd_per_hour` is of one unit, 0
    where it has no list price."""

    cells: int
    units: int
    slots: int
    usd_per_hour: float
    seconds: float | None
    usd: float | None
    most_usd: float

    def __str__(self) -> str:
        what = "1 cell" if self.cells == 1 else f"{self.cells} cells"
        where = f"{self.units} {'unit' if self.units == 1 else 'units'}, {self.slots} at a time on each"
        price = f"at most {usd_text(self.most_usd)} {AT_LIST_PRICES}" if self.usd_per_hour else "of no known price"
        if self.seconds is None or self.usd is None:
            return f"{what} to run on {where}: nobody knows yet how long one takes; {price}"
        cost = f", some {usd_text(self.usd)} with overhead" if self.usd_per_hour else ""
        return f"{what} to run on {where}: some {duration_text(self.seconds)}{cost}; {price}"


def estimate(
    cells: int,
    expected_s: float | None,
    *,
    units: int,
    slots: int,
    usd_per_hour: float,
    boot_s: float,
    deadline_s: float,
    budget_usd: float | None,
    dearest_usd_per_hour: float = 0.0,
    spent_usd: float = 0.0,
) -> Estimate:
    """`expected_s`: the mean of a cell. `units`: the most that there may be; no more are used than have work.
    `dearest_usd_per_hour`: of the types that may be rented instead. `spent_usd`: on units that have ended already."""
    used = max(1, min(units, math.ceil(cells / slots)))
    most = spent_usd + used * budget.least_usd(max(usd_per_hour, dearest_usd_per_hour), deadline_s)
    if budget_usd is not None:
        most = min(most, budget_usd)
    if expected_s is None:
        return Estimate(cells, used, slots, usd_per_hour, None, None, most)
    seconds = boot_s + work_s(cells, 0, expected_s, used * slots)
    return Estimate(cells, used, slots, usd_per_hour, seconds, used * budget.cost_usd(usd_per_hour, seconds), most)


def work_s(queued: int, running: int, expected_s: float, slots: int) -> float:
    """Until all is done, on so many slots: what runs is half done on average, and the last one is waited for."""
    return max(expected_s / 2, (queued + running / 2) * expected_s / max(1, slots)) if queued or running else 0.0
