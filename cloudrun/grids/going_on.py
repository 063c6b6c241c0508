"""Coming back to a grid, from any folder of its project: going on to its end, and moving its machines' deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import UsageError
from cloudrun.core.events import Observer
from cloudrun.core.records import GridRecord, RunRecord, UnitRecord
from cloudrun.core.states import GridState
from cloudrun.grids.grid import Changed, Finished, Wishes, run_grid
from cloudrun.grids.machines import units_ever_of
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.grid import Grid
from cloudrun.prices import usd_per_hour
from cloudrun.runs import attaching
from cloudrun.runs.prepared import Job, settings_from


def attach_grid(
    ledger: Ledger,
    reference: str,
    *,
    observe: Observer,
    profile: str | None = None,
    changed: Changed = lambda _tally, _pool: None,
    over: Callable[[RunRecord], None] = lambda _: None,
) -> Finished:
    """As the command that submitted it, without its `--detach`: machines that live are taken over with what they have,
    the rest gets others. Being told to stop leaves those that were detached to their cells.

    Raises NotFound, UsageError where it is over, a process has it, or its code, data or environment has changed.
    """
    grid = ledger.grid(reference)
    if grid.state in (GridState.DONE, GridState.CANCELLED):
        raise UsageError(f"{grid.grid_id} is {grid.state} already", next_step=f"cloudrun results --grid {grid.grid_id}")
    root = Path(grid.spec["root"])
    job = Job(root / grid.script, tuple(grid.spec["arguments"]), {}, grid.name, root / grid.spec["cwd"])
    settings = settings_from(grid.settings)
    if profile is not None:
        settings = replace(settings, profile=profile)
    wishes = Wishes(**{**grid.spec.get("wishes", {}), "again": False})
    cells = Grid.from_json(grid.spec["grid"])
    return run_grid(
        job, cells, settings, wishes,
        ledger=ledger, observe=observe, changed=changed, over=over, only=grid.grid_id,
    )  # fmt: skip


def extend_grid(
    ledger: Ledger, reference: str, by_s: float, *, observe: Observer, profile: str | None = None
) -> list[UnitRecord]:
    """Move the deadlines of all of a grid's machines. Returns them.

    Raises NotFound, UsageError where it has none or its budget does not pay for that, what `attaching.extend` raises.
    """
    grid = ledger.grid(reference)
    units = units_ever_of(ledger, grid.grid_id)
    living = [unit for unit in units if unit.ended_at is None]
    if not living:
        raise UsageError(f"{grid.grid_id} has no machine", next_step="cloudrun ps")
    _check_budget(grid, units, by_s)
    return [attaching.extend(ledger, unit.instance_id, by_s, observe=observe, profile=profile) for unit in living]


def _check_budget(grid: GridRecord, units: list[UnitRecord], by_s: float) -> None:
    """Raises UsageError where the machines could cost more than was said."""
    now = SystemClock().now()
    most_usd = 0.0
    for unit in units:
        price = usd_per_hour(unit.instance_type, unit.place.region)
        until = unit.ended_at or max(now, unit.deadline + timedelta(seconds=by_s + budget.POWER_OFF_S))
        life_s = (until - unit.created_at).total_seconds()
        most_usd += budget.cost_usd(price.usd_per_hour if price else 0.0, life_s)
    if grid.budget_usd is not None and most_usd > grid.budget_usd:
        raise UsageError(
            f"{grid.grid_id} could cost ${most_usd:.4f} then, and its budget is ${grid.budget_usd:g}",
            next_step="give it less time, or go on with a higher --budget by the command that submitted it",
        )
