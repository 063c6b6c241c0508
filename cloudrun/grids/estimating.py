"""What a grid will take and cost, from what the ledger knows of its cells and of machines like those it will have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cloudrun.core.clock import SystemClock
from cloudrun.core.records import MachineTimes, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.grids.machines import units_ever_of
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.estimate import Estimate, estimate, usual_times
from cloudrun.plan.scheduling import Backlog, Limits, Terms, UnitView, decide

# What a machine takes beside its work until one has been seen: guesses, like those for booting.
UNSEEN = {"sandbox": MachineTimes(3.0, 2.0, 1.0), "aws": MachineTimes(60.0, 40.0, 30.0)}
WHOLE_S = 2.0  # by so much a deadline may be nearer for being a whole second


@dataclass(frozen=True)
class Outlook:
    """A grid before its command does anything: `living` machines work on it, `launch` are asked for at first, each with
    a deadline `deadline_s` from then. `why`: fewer than it has work for. `estimate` is of the cells that wait."""

    living: int
    launch: int
    deadline_s: float
    why: str
    estimate: Estimate


def outlook(
    ledger: Ledger,
    grid_id: str,
    cells: int,
    expected_s: Sequence[float] | None,
    *,
    settings: Settings,
    region: str,
    environment: str,
    limits: Limits,
    terms: Callable[[str], Terms],
) -> Outlook:
    """Of `cells` that wait in the grid ("": a new one); `expected_s` as for `plan.estimate`, `environment` the
    fingerprint of theirs."""
    now = SystemClock().now().timestamp()
    ever = units_ever_of(ledger, grid_id) if grid_id else []
    living = [_at_work(unit, terms(unit.instance_type)) for unit in ever if unit.ended_at is None]
    spent_usd = _ended_usd(ever, terms)
    mean_s = sum(expected_s) / len(expected_s) if expected_s else None
    first = decide(now, Backlog(cells, 0, mean_s, max(expected_s or [0.0]) or None), living, limits, spent_usd)
    reckoned = estimate(
        cells,
        expected_s,
        units=len(living) + first.launch or limits.max_units,
        slots=limits.slots,
        usd_per_hour=limits.usd_per_hour,
        beside=usual_times(ledger.machine_times(settings.provider, region), environment, UNSEEN[settings.provider]),
        deadline_s=limits.deadline_s,
        budget_usd=limits.budget_usd,
        dearest_usd_per_hour=max((terms(name).usd_per_hour for name in settings.fallback_types), default=0.0),
        spent_usd=spent_usd,
    )
    is_short = first.launch > 0 and first.deadline < now + limits.deadline_s - WHOLE_S
    deadline_s = first.deadline - now if is_short else limits.deadline_s
    return Outlook(len(living), first.launch, deadline_s, first.why, reckoned)


def _at_work(unit: UnitRecord, terms: Terms) -> UnitView:
    """One that has as much as it can work on at a time."""
    since, until = unit.created_at.timestamp(), unit.deadline.timestamp()
    return UnitView(unit.instance_id, "ready", terms.slots, terms.slots, since, until, terms.usd_per_hour)


def _ended_usd(units: Iterable[UnitRecord], terms: Callable[[str], Terms]) -> float:
    """What those that have ended have cost, in earlier sessions too."""
    return sum(
        budget.cost_usd(terms(unit.instance_type).usd_per_hour, (unit.ended_at - unit.created_at).total_seconds())
        for unit in units
        if unit.ended_at is not None
    )
