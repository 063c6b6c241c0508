"""A grid from its command to its end: cells into the ledger, what is done taken from there, the rest on a pool."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from cloudrun import datasets, runs, wiring
from cloudrun.cells import Cell, Cells, Tally
from cloudrun.clients import is_alive
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import LedgerError, UsageError
from cloudrun.core.events import Observer
from cloudrun.core.ids import new_id
from cloudrun.core.records import GridRecord, RunRecord, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import GridState, RunState, UnitState, is_terminal
from cloudrun.leases import present
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import Stay, shares
from cloudrun.plan.fingerprint import cell_key
from cloudrun.plan.grid import Grid
from cloudrun.plan.pricing import usd_per_hour, vcpus
from cloudrun.plan.scheduling import Limits
from cloudrun.pool import Pool
from cloudrun.prepared import Job, Prepared, submission
from cloudrun.pulling import requeue_unseen
from cloudrun.submit import checked

BATCH = 1000  # cells that are written in one transaction
BOOT_S = 60.0  # from asking EC2 for a machine to its first cell, until one has been seen to boot
UNFINISHED = tuple(state for state in RunState if not is_terminal(state))
T = TypeVar("T")


@dataclass(frozen=True)
class Wishes:
    """How a grid is to be run. `units`: so many; `max_units`: as many as are worth it, up to that."""

    units: int = 1
    max_units: int | None = None
    slots: int | None = None  # cells at a time on a unit; None: its vCPUs divided by `cpus`
    cpus: int = 1  # that one cell computes on
    budget_usd: float | None = None
    retries: int = 0
    keep_going: bool = False
    again: bool = False


@dataclass(frozen=True)
class Finished:
    """A grid when its command returns. `why`: what kept it from being done; "" where it is."""

    grid: GridRecord
    tally: Tally
    spent_usd: float
    why: str = ""


Changed = Callable[[Tally, Pool | None], None]


def run_grid(
    job: Job,
    grid: Grid,
    settings: Settings,
    wishes: Wishes,
    *,
    ledger: Ledger,
    observe: Observer,
    changed: Changed = lambda _tally, _pool: None,
    over: Callable[[RunRecord], None] = lambda _: None,
) -> Finished:
    """Run every cell that has not succeeded before. The same command goes on with a grid that was left in the middle.

    `over` is called with each cell's run as it ends, `changed` whenever something has moved. Raises UsageError before
    anything is launched, where another process goes on with the same grid too; and what `Pool.run` raises.
    """
    cloud, image, plan = checked(job, settings, ledger, observe)
    limits = limits_of(wishes, settings, cloud.place.region)
    plan = on_its_share(plan, limits, wishes)
    with present(ledger, SystemClock()) as client_id:
        grid_run = GridRun(plan, grid, wishes, ledger, client_id, observe, over)
        tally = grid_run.tally
        changed(tally, None)
        pool = Pool(
            cloud, ledger, settings, image, limits, observe, client_id, changed=lambda pool: changed(tally, pool)
        )
        if not grid_run.is_over():
            try:
                pool.run(grid_run.cells, grid_run.joined)
            finally:
                write_costs(ledger, pool)
        return grid_run.finish(pool.why, pool.ended_usd)


class GridRun:
    """A grid in this client's hands, from its record in the ledger to its end: its cells are work for a pool.

    Raises UsageError where another process goes on with it.
    """

    def __init__(
        self,
        plan: Prepared,
        grid: Grid,
        wishes: Wishes,
        ledger: Ledger,
        client_id: str,
        observe: Observer,
        over: Callable[[RunRecord], None] = lambda _: None,
    ) -> None:
        self._ledger = ledger
        with ledger.together():  # two processes that begin it at the same moment are one after the other
            self.record = _begun(plan, grid, wishes, ledger, client_id)
        taken = _fill(self.record, plan, grid, ledger, again=wishes.again)
        self.tally = _tally(self.record, ledger, taken)
        self.joined: list[tuple[UnitRecord, list[Cell]]] = []
        if not self.is_over():
            self.joined = _left_behind(self.record, self.tally, ledger, client_id)
        self.cells = Cells(
            ledger, self.record.grid_id, plan, self.tally, observe,
            retries=wishes.retries, keep_going=wishes.keep_going, over=over,
        )  # fmt: skip

    def is_over(self) -> bool:
        """Whether each of its cells is."""
        return self.tally.succeeded + self.tally.failed >= self.tally.cells

    def finish(self, why_not: str = "", spent_usd: float = 0.0, *, is_cut: bool = False) -> Finished:
        """Write down its end. `why_not`: what the pool says of cells that are left; `is_cut`: they were cancelled."""
        tally, grid_id = self.tally, self.record.grid_id
        is_done = not tally.left and not tally.elsewhere and not is_cut
        why = self.cells.stopped() or ("" if is_done else why_not)
        self._ledger.end_grid(grid_id, GridState.DONE if is_done else GridState.STOPPED, why)
        return Finished(self._ledger.grid(grid_id), tally, spent_usd, why)


# -- before it ---------------------------------------------------------------------------------------------------------


def limits_of(wishes: Wishes, settings: Settings, region: str) -> Limits:
    """For a pool's planner. Raises UsageError for a budget where nobody knows the price."""
    price = usd_per_hour(settings.instance_type, region)
    if wishes.budget_usd is not None and price is None:
        raise UsageError(
            f"nobody here knows what a {settings.instance_type} costs in {region}, so no budget can be kept",
            next_step="use a common type such as m7i.large, or leave out --budget and set an early --deadline",
        )
    slots = wishes.slots or max(1, (vcpus(settings.instance_type) or 1) // wishes.cpus)
    return Limits(
        max_units=wishes.max_units or wishes.units,
        slots=slots,
        usd_per_hour=price.usd_per_hour if price else 0.0,
        boot_s=BOOT_S,
        deadline_s=settings.deadline_s,
        min_units=0 if wishes.max_units else wishes.units,
        budget_usd=wishes.budget_usd,
    )


def on_its_share(plan: Prepared, limits: Limits, wishes: Wishes) -> Prepared:
    """A cell that shares its unit computes on its own part of it."""
    return replace(plan, threads=wishes.cpus) if limits.slots > 1 or wishes.cpus > 1 else plan


def _begun(plan: Prepared, grid: Grid, wishes: Wishes, ledger: Ledger, client_id: str) -> GridRecord:
    """The grid of this very command that is not over, else a new one. Raises UsageError where somebody else has it."""
    identity = _identity(plan, grid)
    record = ledger.find_grid(identity)
    if record is not None and record.state in (GridState.OPEN, GridState.STOPPED) and not wishes.again:
        alive = is_alive(ledger.client(record.client_id), SystemClock().now())
        if alive or not ledger.take_grid(record.grid_id, client_id, of=record.client_id):
            raise UsageError(
                f"another process goes on with this very grid, {record.grid_id}",
                next_step=f"cloudrun results --grid {record.grid_id} shows how far it is",
            )
        if record.state is GridState.STOPPED:
            ledger.reopen_grid(record.grid_id)
        return ledger.grid(record.grid_id)
    goods = plan.shipment
    record = GridRecord(
        grid_id=new_id("g"),
        name=plan.job.name or runs.new_run(plan, SystemClock().now()).name,
        script=goods.script,
        state=GridState.OPEN,
        created_at=SystemClock().now(),
        identity=identity,
        cells=grid.size,
        spec={"root": str(goods.root), "cwd": goods.cwd, "arguments": plan.job.arguments, "grid": grid.to_json()},
        settings=submission(plan)["settings"],
        budget_usd=wishes.budget_usd,
        client_id=client_id,
    )
    ledger.begin_grid(record)
    return record


def _identity(plan: Prepared, grid: Grid) -> str:
    """What the same command with the same code, data and environment has again: and nothing of how it is run."""
    lines = [
        "cloudrun grid 1",
        plan.shipment.script,
        plan.shipment.cwd,
        plan.code_digest,
        datasets.digest(plan.data),
        plan.environment.fingerprint,
        json.dumps(plan.job.arguments),
        json.dumps(grid.to_json()),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _fill(record: GridRecord, plan: Prepared, grid: Grid, ledger: Ledger, *, again: bool) -> int:
    """See to it that every cell is in the ledger, as a run that has succeeded, or goes on, or waits. Returns how many
    had succeeded before."""
    now = SystemClock().now()
    data_digest = datasets.digest(plan.data)
    template = runs.new_run(plan, now)
    taken = 0
    for batch in _batches(enumerate(grid.cells())):
        keys = {
            number: cell_key(plan.code_digest, params, data_digest, plan.environment.fingerprint, plan.job.arguments)
            for number, params in batch
        }
        there = {cell.number: cell for cell in ledger.cells(record.grid_id, after=batch[0][0] - 1, limit=len(batch))}
        known = {} if again else ledger.runs_by_cell(keys.values())
        added: list[tuple[int, RunRecord | str]] = []
        for number, params in batch:
            cell = there.get(number)
            run_id, state = known.get(keys[number], ("", RunState.LOST))
            if cell is not None and (cell.state is RunState.SUCCEEDED or not is_terminal(cell.state)):
                taken += cell.state is RunState.SUCCEEDED
            elif state is RunState.SUCCEEDED:
                added.append((number, run_id))
                taken += 1
            else:
                added.append((number, replace(template, run_id=new_id("r"), params=params, cell_key=keys[number])))
        if added:
            ledger.add_cells(record.grid_id, added)
    return taken


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _tally(record: GridRecord, ledger: Ledger, taken: int) -> Tally:
    counts = ledger.counts(record.grid_id)
    failed = sum(counts[state] for state in RunState if is_terminal(state) and state is not RunState.SUCCEEDED)
    return Tally(record.cells, counts[RunState.SUCCEEDED], taken, failed)


def write_costs(ledger: Ledger, pool: Pool) -> None:
    """What each run cost of the units that it was on: worth knowing, and no reason for anything to fail."""
    with suppress(LedgerError):
        cells = {attempt.run_id for attempt in ledger.attempts_on(pool.used)}
        units = {attempt.instance_id for attempt in ledger.attempts_of(cells)}
        stays: dict[str, list[Stay]] = defaultdict(list)
        for attempt in ledger.attempts_on(units):
            ended = (attempt.ended_at or SystemClock().now()).timestamp()
            stays[attempt.instance_id].append((attempt.run_id, attempt.started_at.timestamp(), ended))
        cost: dict[str, float] = defaultdict(float)
        for each in stays.values():
            for run_id, usd in shares(pool.limits.usd_per_hour, each).items():
                cost[run_id] += usd
        for batch in _batches(cells.intersection(cost)):
            with ledger.together():
                for run_id in batch:
                    ledger.set_cost(run_id, cost[run_id])


# -- what another client has left -------------------------------------------------------------------------------------


def _left_behind(
    record: GridRecord, tally: Tally, ledger: Ledger, client_id: str
) -> list[tuple[UnitRecord, list[Cell]]]:
    """What a client that is dead has left on units: taken over where they live, queued again where they do not."""
    found: dict[str, list[Cell]] = defaultdict(list)
    after = -1
    states = [state for state in UNFINISHED if state is not RunState.QUEUED]
    while batch := ledger.cells(record.grid_id, after=after, limit=BATCH, states=states):
        for cell in batch:
            run = ledger.run(cell.run_id)
            found[run.instance_id or ""].append(Cell(cell.number, run, on_unit=True))
        after = batch[-1].number
    joined = []
    for instance_id, left in found.items():
        unit = ledger.unit(instance_id)
        if _is_there(unit) and ledger.take_unit(instance_id, client_id, of=unit.client_id, on_exit=unit.on_exit):
            tally.running += len(left)
            joined.append((ledger.unit(instance_id), left))
            continue
        for lost in left:
            requeue_unseen(ledger, lost.run, f"{instance_id} went away while nobody looked")
    return joined


def _is_there(unit: UnitRecord) -> bool:
    """Whether the unit still runs, by what EC2 says. Raises CloudrunError where it says nothing."""
    if unit.state in (UnitState.TERMINATING, UnitState.TERMINATED):
        return False
    cloud = wiring.reconnect(unit.place, None)
    if cloud is None:
        return False
    found = cloud.instances.describe([unit.instance_id]).get(unit.instance_id)
    return found is not None and found.state == "running"
