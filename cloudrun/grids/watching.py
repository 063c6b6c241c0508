"""How far grids are: from the ledger, and where no process goes on with them, as their machines and buckets tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cloudrun.core import rundir
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError
from cloudrun.core.events import nobody
from cloudrun.core.records import GridRecord, RunRecord, UnitRecord
from cloudrun.core.states import GridState, RunState
from cloudrun.grids.cells import ON_UNITS
from cloudrun.grids.inherited import cells_on_units
from cloudrun.grids.machines import GRID_TAG, units_of
from cloudrun.grids.rows import failed_of, retries_of
from cloudrun.ledger import Ledger
from cloudrun.plan.endings import verdict
from cloudrun.runs import bucket, watching
from cloudrun.runs.stored import MANIFEST
from cloudrun.units.clients import is_alive
from cloudrun.units.connection import connected
from cloudrun.wiring import Cloud

ASKERS = 8  # of a bucket, at a time
SUCCEEDED, QUEUED = RunState.SUCCEEDED, RunState.QUEUED


@dataclass(frozen=True)
class SeenGrid:
    """A grid that is not over, or has machines. `attended`: a process on some computer goes on with it.

    `there`: how many of the cells that the ledger has on machines are what there, by word: done, failed, running,
    waiting, lost (the machine has gone with it), unknown (it does not say). Only where nobody attends.
    """

    grid: GridRecord
    counts: Mapping[RunState, int]
    units: tuple[UnitRecord, ...]
    attended: bool
    there: Mapping[str, int] = field(default_factory=Counter)
    problems: tuple[str, ...] = ()

    @property
    def done(self) -> int:
        """Cells that have succeeded, be they home or not."""
        return self.counts[SUCCEEDED] + self.there["done"]

    @property
    def failed(self) -> int:
        return failed_of(self.counts) + self.there["failed"]

    @property
    def cancelled(self) -> int:
        return self.counts[RunState.CANCELLED]

    @property
    def running(self) -> int:
        if not self.attended and self.there:
            return self.there["running"] + self.there["unknown"]
        return sum(self.counts[state] for state in ON_UNITS)

    @property
    def left(self) -> int:
        """Cells that no machine has."""
        over = self.done + self.failed + self.cancelled
        return self.grid.cells - over - self.running - self.there["waiting"]

    @property
    def next_step(self) -> str:
        name = self.grid.grid_id
        if self.attended:
            return ""
        if self.grid.state in (GridState.DONE, GridState.CANCELLED):
            return f"cloudrun reap {' '.join(unit.instance_id for unit in self.units)}"
        tried_again = self.failed and retries_of(self.grid)
        if not (self.running or self.there["waiting"] or self.left or tried_again):
            return f"cloudrun pull {name}"
        return f"cloudrun attach {name} or the same command goes on with it, cloudrun cancel {name} ends it"


def look_at_grids(ledger: Ledger, profile: str | None = None) -> list[SeenGrid]:
    """Those that are not over or have machines, oldest first."""
    tagged = {launch.launch_id: launch.request.tags.get(GRID_TAG) for launch in ledger.launches()}
    units = [(tagged.get(unit.launch_id), unit) for unit in ledger.units()]
    seen = []
    for grid in reversed(ledger.grids()):
        on_it = tuple(unit for grid_id, unit in units if grid_id == grid.grid_id)
        if (each := _look_at(ledger, grid, on_it, profile)) is not None:
            seen.append(each)
    return seen


def glance(ledger: Ledger, grid: GridRecord, profile: str | None = None) -> SeenGrid | None:
    """As `look_at_grids`, at one, for a few seconds at most; None where it is over, or its machines do not say."""
    units = tuple(units_of(ledger, grid.grid_id))
    return watching.within(watching.GLANCE_S, lambda: _look_at(ledger, grid, units, profile), lambda: None)


def _look_at(ledger: Ledger, grid: GridRecord, units: tuple[UnitRecord, ...], profile: str | None) -> SeenGrid | None:
    counts = ledger.counts(grid.grid_id)
    if grid.state is not GridState.OPEN and not units and not any(counts[state] for state in ON_UNITS):
        return None
    attended = is_alive(ledger.client(grid.client_id), SystemClock().now())
    there, problems = (Counter[str](), ()) if attended else _there(ledger, grid.grid_id, profile)
    return SeenGrid(grid, counts, units, attended, there, tuple(dict.fromkeys(problems)))


def forsaken(ledger: Ledger, machines: Container[str]) -> list[str]:
    """Ids of the grids that have some of those machines, and no process that goes on with them."""
    now = SystemClock().now()
    return [
        grid.grid_id
        for grid in ledger.grids()
        if grid.state is GridState.OPEN
        and not is_alive(ledger.client(grid.client_id), now)
        and any(unit.instance_id in machines for unit in units_of(ledger, grid.grid_id))
    ]


def _there(ledger: Ledger, grid_id: str, profile: str | None) -> tuple[Counter[str], Sequence[str]]:
    """What the cells on machines do, by one connection for each machine; and what keeps some from being known."""
    on_units = {name: [cell.run for cell in cells] for name, cells in cells_on_units(grid_id, ledger).items()}
    there, problems = Counter[str](), list[str]()
    if not on_units:
        return there, problems
    units = [ledger.unit(name) for name in on_units]
    found = watching.described(units, profile)

    def look(unit: UnitRecord) -> tuple[Iterable[str], str]:
        runs = on_units[unit.instance_id]
        try:
            return _on_unit(ledger, unit, found[unit.place], runs), ""
        except watching.Gone as gone:
            return _in_bucket(ledger, _cloud(found[unit.place]), runs), str(gone)
        except CloudrunError as error:
            return ["unknown"] * len(runs), str(error)

    for words, problem in watching.each_of(units, look, watching.LOOKERS):
        told = Counter(words)
        there += told
        if problem and (told["lost"] or told["unknown"]):
            problems.append(problem)
    return there, problems


def _cloud(found: watching.Found) -> Cloud | None:
    return None if isinstance(found, CloudrunError) else found[0]


def _on_unit(ledger: Ledger, unit: UnitRecord, found: watching.Found, runs: Sequence[RunRecord]) -> list[str]:
    if isinstance(found, CloudrunError):
        raise found
    cloud = watching.runs_at(unit, found[0], found[1].get(unit.instance_id))
    with connected(cloud, ledger, unit, nobody, timeout_s=watching.LOOK_S) as connection:
        known = {each.run_dir: each.status for each in connection.agent.runs()}
    words = []
    for run in runs:
        status = known.get(rundir.run_dir(run.run_id, run.attempts))
        if status is None or (status.state == "exited" and status.reason == "interrupted"):
            words.append("lost")
        elif status.state == "exited":
            words.append("done" if verdict(status).state is SUCCEEDED else "failed")
        else:
            words.append("waiting" if status.state == "queued" else "running")
    return words


def _in_bucket(ledger: Ledger, cloud: Cloud | None, runs: Sequence[RunRecord]) -> list[str]:
    """Of a machine that has gone: what it has put there before is done, however it ended."""

    def look(run: RunRecord) -> str:
        store = ledger.attempts(run.run_id)[-1].store
        if cloud is None or not store:
            return "lost"
        name, prefix = bucket.split(store)
        try:
            return "done" if cloud.storage().exists(name, prefix + MANIFEST) else "lost"
        except CloudrunError:
            return "unknown"

    return watching.each_of(runs, look, ASKERS)
