"""Which machines are a grid's, and how far it is, from the ledger alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudrun.clients import is_alive
from cloudrun.core.clock import SystemClock
from cloudrun.core.records import GridRecord, LaunchRecord, UnitRecord
from cloudrun.core.states import GridState, RunState, is_terminal
from cloudrun.ledger import Ledger

GRID_TAG = "cloudrun:grid"  # on each machine of a grid: its id


def launches_of(ledger: Ledger, grid_id: str) -> dict[str, LaunchRecord]:
    """A grid's launches by id, whichever client of it they were."""
    return {launch.launch_id: launch for launch in ledger.launches() if launch.request.tags.get(GRID_TAG) == grid_id}


def units_of(ledger: Ledger, grid_id: str) -> list[UnitRecord]:
    """Those that are not known to be terminated."""
    launches = launches_of(ledger, grid_id)
    return [unit for unit in ledger.units() if unit.launch_id in launches]


@dataclass(frozen=True)
class SeenGrid:
    """A grid that is not over, or has machines. `attended`: a process on some computer goes on with it."""

    grid: GridRecord
    counts: Mapping[RunState, int]
    units: tuple[UnitRecord, ...]
    attended: bool

    @property
    def failed(self) -> int:
        return sum(count for state, count in self.counts.items() if is_terminal(state) and state is not SUCCEEDED)

    @property
    def running(self) -> int:
        return sum(count for state, count in self.counts.items() if not is_terminal(state) and state is not QUEUED)

    @property
    def left(self) -> int:
        return self.grid.cells - self.counts[SUCCEEDED] - self.failed - self.running

    @property
    def next_step(self) -> str:
        if self.attended:
            return ""
        if self.grid.state is GridState.OPEN:
            return f"the same submit goes on with it, cloudrun cancel {self.grid.grid_id} ends it"
        return f"cloudrun reap {' '.join(unit.instance_id for unit in self.units)}"


SUCCEEDED, QUEUED = RunState.SUCCEEDED, RunState.QUEUED


def look_at_grids(ledger: Ledger) -> list[SeenGrid]:
    """Oldest first."""
    seen = []
    tagged = {launch.launch_id: launch.request.tags.get(GRID_TAG) for launch in ledger.launches()}
    units = [(tagged.get(unit.launch_id), unit) for unit in ledger.units()]
    now = SystemClock().now()
    for grid in reversed(ledger.grids()):
        on_it = tuple(unit for grid_id, unit in units if grid_id == grid.grid_id)
        if grid.state is GridState.OPEN or on_it:
            attended = is_alive(ledger.client(grid.client_id), now)
            seen.append(SeenGrid(grid, ledger.counts(grid.grid_id), on_it, attended))
    return seen
