"""The end of a whole grid because the user says so: what waits never runs, what runs is ended and brought home."""

from __future__ import annotations

from cloudrun import reaper
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import GridRecord
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.grids.gathering import end_cells
from cloudrun.grids.machines import units_of
from cloudrun.ledger import Ledger
from cloudrun.plan.endings import Ending
from cloudrun.runs.homecoming import end_queued
from cloudrun.units.clients import is_alive

BATCH = 500
OWNER_S = 120.0  # for the process that has the grid to bring home what it had on machines
POLL_S = 0.2


def cancel_grid(
    ledger: Ledger, reference: str, *, grace_s: float, observe: Observer, profile: str | None = None
) -> GridRecord:
    """End a grid: by the process that has it, where that lives, which is waited for; else from here.

    Raises NotFound, UsageError where it is over.
    """
    grid = ledger.grid(reference)
    if grid.state in (GridState.DONE, GridState.CANCELLED):
        raise UsageError(f"{grid.grid_id} is {grid.state} already", next_step=f"cloudrun results --grid {grid.grid_id}")
    ledger.end_grid(grid.grid_id, GridState.CANCELLED, "it was asked to end")
    clock = SystemClock()
    end = clock.monotonic() + OWNER_S
    while is_alive(ledger.client(ledger.grid(grid.grid_id).client_id), clock.now()):
        if clock.monotonic() > end:
            observe(Note(f"the process that has {grid.grid_id} is still ending what runs", "warning"))
            return ledger.grid(grid.grid_id)
        clock.sleep(POLL_S)
    end_left(ledger, grid.grid_id, "it was asked to end", grace_s=grace_s, observe=observe, profile=profile)
    return ledger.grid(grid.grid_id)


def end_left(
    ledger: Ledger, grid_id: str, why: str, *, grace_s: float, observe: Observer, profile: str | None = None
) -> None:
    """What is left of a grid that no living process has: its queue, the cells on machines, and the machines."""
    ending = Ending(RunState.CANCELLED, EndReason.CANCELLED, why)
    after = -1
    while batch := ledger.cells(grid_id, after=after, limit=BATCH, states=[RunState.QUEUED]):
        with ledger.together():
            for cell in batch:
                end_queued(ledger, cell.run_id, ending)
        after = batch[-1].number
    end_cells(ledger, grid_id, ending, grace_s=grace_s, observe=observe, profile=profile)
    if left := [unit.instance_id for unit in units_of(ledger, grid_id)]:
        reaper.reap(ledger, units=left, observe=observe, profile=profile).require_complete()
