"""The cells of a grid as a pool's work: taken from the ledger a few at a time, done on units, done again if need be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cloudrun import wiring
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CloudrunError, LedgerError, UnitGone
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import RunRecord
from cloudrun.core.states import EndReason, GridState, RunState, is_terminal
from cloudrun.grids.lost import recover
from cloudrun.grids.turns import Cell, Turns
from cloudrun.ledger import Claim, Ledger
from cloudrun.plan.endings import CANCELLED, Ending
from cloudrun.plan.expecting import Expectation
from cloudrun.plan.quantities import counted
from cloudrun.plan.retrying import SUSPICIOUS, UNITS_TAKEN_DOWN, Failures, next_step
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.pooled import PooledUnit
from cloudrun.runs import dispatch, performing
from cloudrun.runs.failing import why_failed
from cloudrun.runs.homecoming import end_queued
from cloudrun.runs.prepared import Prepared
from cloudrun.runs.slots import Turn

__all__ = ["ON_UNITS", "Cell", "Cells", "Tally"]

ON_UNITS = tuple(state for state in RunState if not is_terminal(state) and state is not RunState.QUEUED)


@dataclass
class Tally:
    """How far a grid is. `taken` of the succeeded were so before this command."""

    cells: int
    succeeded: int = 0
    taken: int = 0
    failed: int = 0
    cancelled: int = 0
    quarantined: int = 0
    elsewhere: int = 0  # they run on, or wait, on machines that cannot be reached now
    running: int = 0

    @property
    def left(self) -> int:
        return self.cells - self.over - self.elsewhere - self.running

    @property
    def over(self) -> int:
        return self.succeeded + self.failed + self.cancelled


class Cells:
    """`Work` for a pool. `plan` is the job without a cell's parameters."""

    def __init__(
        self,
        ledger: Ledger,
        grid_id: str,
        plan: Prepared,
        tally: Tally,
        observe: Observer,
        *,
        retries: int = 0,
        keep_going: bool = False,
        over: Callable[[RunRecord], None] = lambda _: None,
        expectation: Expectation | None = None,
    ) -> None:
        """`expectation`: what is known of how long its cells take."""
        self._ledger = ledger
        self._grid_id = grid_id
        self._holder = ledger.grid(grid_id).client_id  # whose it is as long as anything is begun here
        self._plan = plan
        self._tally = tally
        self._observe = observe
        self._retries = retries
        self._keep_going = keep_going
        self._over = over
        self._turns = Turns(ledger, grid_id, expectation or Expectation(()))
        self._gone = 0  # of those that waited
        self.failures = Failures(succeeded=tally.succeeded > 0)
        self._took_s = 0.0  # all cells that have succeeded here
        self._timed = 0
        self._expected_s = 0.0  # what was expected of those of them of which something was
        self._came_true_s = 0.0  # and what these took
        self._suspects: set[int] = set()  # by number: they were there when a machine went down
        self._stopped = ""
        self.refresh()

    def refresh(self) -> None:
        """Count anew what waits: something was queued by others."""
        self._turns.refresh()

    # -- what the pool asks --------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        expected_s, next_s = self._turns.expected_s, self._turns.next_s
        if expected_s is not None and self._expected_s:
            factor = self._came_true_s / self._expected_s  # these machines are faster or slower than earlier ones
            expected_s *= factor
            next_s = None if next_s is None else next_s * factor
        elif expected_s is None and self._timed:
            expected_s = self._took_s / self._timed
        return Backlog(self._turns.queued, self._tally.running, expected_s, next_s)

    def expected_s(self) -> list[float] | None:
        """What each that waits is expected to take, in the order of their turns; None where nobody knows."""
        return self._turns.each_s()

    def take(self, beside: Sequence[Cell] = ()) -> Cell | None:
        """Two cells whose machines went down never share one: else nobody would know the next time which it was."""
        if self.failures.wait(self._tally.running, keep_going=self._keep_going):
            return None
        suspected = any(cell.number in self._suspects for cell in beside)
        cell = self._turns.next(self._suspects if suspected else ())
        self._tally.running += cell is not None
        self._tally.cancelled += self._turns.gone - self._gone  # somebody has cancelled them while they waited
        self._gone = self._turns.gone
        return cell

    def stopped(self) -> str:
        return self._stopped

    def is_open(self) -> bool:
        return False

    def given_up(self, why: str, error: BaseException | None) -> None:  # noqa: ARG002  # `why` is the pool's to say
        if error is not None:
            raise error

    def begin(self, given: Sequence[tuple[str, Cell]]) -> list[Cell]:
        """One commit for all that are given out together. Where one of them cannot be begun, because somebody has ended
        it meanwhile or the disk is full, each is left to its own thread, which says why."""
        claims = [
            Claim(
                cell.run.run_id,
                unit,
                performing.store_of(self._ledger, self._plan, cell.run.run_id, cell.run.attempts + 1),
                self._plan.beside,
            )
            for unit, cell in given
            if not cell.on_unit
        ]
        try:
            begun = {each.run_id: each.number for each in self._ledger.begin_attempts(claims, SystemClock().now())}
        except LedgerError:
            begun = {}
        return [replace(cell, attempt=begun.get(cell.run.run_id, 0)) for _, cell in given]

    def carry_out(self, unit: PooledUnit, task: Cell, turn: Turn) -> None:
        if task.on_unit:
            dispatch.go_on(unit, task.run.run_id, turn)
        else:
            turn.unless(lambda: self.stopped() or self.failures.doubt(keep_going=self._keep_going))
            job = replace(self._plan.job, params=dict(task.run.params))
            plan = replace(self._plan, job=job, more=self._turns.queued > 0)
            dispatch.execute(unit, plan, check=False, run_id=task.run.run_id, begun=task.attempt, turn=turn)

    def ended(self, task: Cell, error: BaseException | None) -> None:
        self._tally.running -= 1
        if error is not None and not isinstance(error, CloudrunError):
            raise error  # a bug, or the interpreter's end
        run = self._ledger.run(task.run.run_id)
        if isinstance(error, UnitGone) and run.state in ON_UNITS:  # nobody came to it before its machine went
            self._recover(run, error)
            run = self._ledger.run(run.run_id)
        if run.state is RunState.QUEUED:
            self._once_more(task, run, error)
        elif not is_terminal(run.state):
            self._tally.elsewhere += 1
            if not isinstance(error, Cancelled):  # it goes on on its machine, as do all the others there
                self._observe(Note(f"{run.run_id}: {error}", "warning"))
        elif run.state is RunState.SUCCEEDED:
            self._succeeded(task, run)
        elif run.end_reason is EndReason.CANCELLED:
            self._tally.cancelled += 1
            self._over(run)
        else:
            self._failed(task, run)
        if isinstance(error, LedgerError) and not is_terminal(run.state):
            raise error  # where nothing can be written down, nothing more may be started

    def came_home(self, cell: Cell) -> None:
        """One that ended while nobody looked."""
        self._tally.running += 1
        self.ended(cell, None)

    def _recover(self, run: RunRecord, error: UnitGone) -> None:
        """Where it had a bucket, it may have ended before its machine went."""
        has_store = any(each.store for each in self._ledger.attempts(run.run_id)[-1:])
        place = self._ledger.unit(run.instance_id or "").place
        cloud = wiring.reconnect(place, self._plan.settings.profile) if has_store else None
        recover(self._ledger, cloud, [run], str(error), self._observe)

    # -- what becomes of a cell ----------------------------------------------------------------------------------------

    def _succeeded(self, task: Cell, run: RunRecord) -> None:
        self._tally.succeeded += 1
        self.failures.success()
        took_s = run.timings.ship_s + run.timings.run_s + run.timings.pull_s
        self._took_s += took_s
        self._timed += 1
        if task.expected_s:
            self._expected_s += task.expected_s
            self._came_true_s += took_s
        self._over(run)

    def _once_more(self, task: Cell, run: RunRecord, error: BaseException | None) -> None:
        """Its machine failed it: another one gets it, unless it has taken too many down."""
        if self._ledger.grid(self._grid_id).state is GridState.CANCELLED:  # its queue was emptied before this came back
            end_queued(self._ledger, run.run_id, CANCELLED)
            self._tally.cancelled += 1
            self._over(self._ledger.run(run.run_id))
            return
        ends = self._ends(run)
        if ends and next_step(ends, retries=self._retries) == "quarantine":
            end_queued(self._ledger, run.run_id, Ending(RunState.FAILED, EndReason.UNIT_LOST, _too_many(ends)))
            self._quarantine(self._ledger.run(run.run_id))
            return
        if any(end in SUSPICIOUS for end in ends):
            self._suspects.add(task.number)
        if ends and error is not None and not isinstance(error, Cancelled):
            self._observe(Note(f"{run.run_id} goes to another machine: {error}", "warning"))
        self._queue(task, run)

    def _failed(self, task: Cell, run: RunRecord) -> None:
        """It is over, and may be tried again as another run: as often as `retries` says where its script failed, on
        another machine where its machine did. In a grid that somebody has cancelled or taken nothing is."""
        ends = self._ends(run)
        step = next_step(ends, retries=self._retries)
        again = self._another_run(task, run, ends) if step == "again" else None
        if again is not None:
            why = why_failed(self._ledger, run)
            self._observe(Note(f"{run.run_id} failed ({why}); it is tried again", "warning"))
            self._queue(task, self._ledger.run(again.run_id))
        elif step == "quarantine":
            self._observe(Note(f"{run.run_id} is left out: {_too_many(ends)}", "warning"))
            self._quarantine(run)
        else:
            self._tally.failed += 1
            self.failures.failure(run.run_id, why_failed(self._ledger, run))
            self._stopped = self.failures.stop(self._tally.cells, keep_going=self._keep_going)
            self._over(run)

    def _another_run(self, task: Cell, run: RunRecord, ends: Sequence[EndReason]) -> RunRecord | None:
        """In the ledger, queued; None where the grid is not open or not ours any more."""
        again = replace(
            dispatch.new_run(self._plan, SystemClock().now()),
            params=run.params,
            cell_key=run.cell_key,
            submission={**run.submission, "ends": [*map(str, ends)]},
        )
        with self._ledger.together():
            grid = self._ledger.grid(self._grid_id)
            if grid.state is not GridState.OPEN or grid.client_id != self._holder:
                return None
            self._ledger.add_cells(self._grid_id, [(task.number, again)])
        return again

    def _quarantine(self, run: RunRecord) -> None:
        self._tally.failed += 1
        self._tally.quarantined += 1
        self._over(run)

    def _ends(self, run: RunRecord) -> list[EndReason]:
        return ends_of(self._ledger, run)

    def _queue(self, task: Cell, run: RunRecord) -> None:
        self._turns.put_back(replace(task, run=run, on_unit=False, attempt=0))


def ends_of(ledger: Ledger, run: RunRecord) -> list[EndReason]:
    """How all attempts at its cell ended in this grid, those of earlier runs of it too."""
    before = [EndReason(word) for word in run.submission.get("ends", ())]
    return before + [each.end_reason for each in ledger.attempts(run.run_id) if each.end_reason]


def _too_many(ends: Sequence[EndReason]) -> str:
    down = sum(end in SUSPICIOUS for end in ends)
    if down >= UNITS_TAKEN_DOWN:
        return f"it was there when {counted(down, 'machine')} went down, and is not tried on another"
    return f"its machines failed it {counted(len(ends), 'time')}, and it is not tried on another"
