"""A grid as one of the works of a pool that has several: cells for the units, runs for whoever asked for the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from queue import SimpleQueue

from cloudrun.core.errors import Cancelled, CloudrunError, JobFailed
from cloudrun.core.events import Note, Observer, nobody
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.grids.cells import Cell
from cloudrun.grids.grid import GridRun
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.quantities import counted
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.pooled import PooledUnit
from cloudrun.runs.slots import Turn

BATCH = 1000  # cells that are read from the ledger at once


class GridWork:
    """`Source` for a pool's standing work. `begin` begins the grid; what it is given hears of each cell's end.

    With `keep_going` it is no error that all cells fail."""

    def __init__(
        self,
        ledger: Ledger,
        begin: Callable[[Callable[[RunRecord], None]], GridRun],
        *,
        keep_going: bool = False,
        observe: Observer = nobody,
    ) -> None:
        self._ledger = ledger
        self._keep_going = keep_going
        self._observe = observe
        self._over: SimpleQueue[str | None] = SimpleQueue()
        self.grid = begin(lambda run: self._over.put(run.run_id))
        self._before = list(self._succeeded())
        self._error: BaseException | None = None  # why some of it is left

    def runs(self, leave: Callable[[Callable[[], None]], None]) -> Iterator[Run]:
        """Runs as their cells end, those first that had succeeded before. Raises what kept the rest from being run,
        and JobFailed after the last where all have failed.

        Whoever leaves the loop early leaves what no unit has begun to the next time; `leave` has the deciding thread
        do what it is given.
        """
        try:
            for run_id in self._before:
                yield self._ledger.get(run_id)
            while (next_id := self._over.get()) is not None:
                yield self._ledger.get(next_id)
        except GeneratorExit:
            with suppress(BrokenExecutor):
                leave(lambda: self.given_up("", Cancelled("the loop over its runs was left")))
            raise
        if self._error is not None:
            raise self._error

    def _succeeded(self) -> Iterator[str]:
        after = -1
        while batch := self._ledger.cells(self.grid.grid_id, after=after, limit=BATCH, states=[RunState.SUCCEEDED]):
            yield from (cell.run_id for cell in batch)
            after = batch[-1].number

    # -- what the pool asks --------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        return self.grid.cells.backlog()

    def take(self, beside: Sequence[Cell]) -> Cell | None:
        return self.grid.cells.take(beside)

    def stopped(self) -> str:
        return str(self._error or "") or self.grid.cells.stopped()

    def check(self) -> None:
        """Another process may have ended it, or have taken it: what runs on our units still comes home."""
        if self._error is None:
            try:
                self.grid.check()
            except CloudrunError as error:
                self._error = error
                self.grid.let_go()

    def is_open(self) -> bool:
        return False

    def begin(self, given: Sequence[tuple[str, Cell]]) -> list[Cell]:
        return self.grid.cells.begin(given)

    def carry_out(self, unit: PooledUnit, task: Cell, turn: Turn) -> None:
        turn.unless(self.stopped)  # its loop was left, or another client has it
        self.grid.cells.carry_out(unit, task, turn)

    def ended(self, task: Cell, error: BaseException | None) -> None:
        """What keeps this grid from going on, be it a bug, is no other's business."""
        try:
            self.grid.cells.ended(task, error)
        except Exception as failure:  # noqa: BLE001
            self._error = self._error or failure

    def given_up(self, why: str, error: BaseException | None) -> None:
        self._error = self._error or error or CloudrunError(why)

    def is_over(self) -> bool:
        backlog = self.backlog()
        return not backlog.running and (not backlog.queued or bool(self.stopped()))

    def close(self, error: BaseException | None) -> None:
        try:
            self._error = self._error or error
            if self.grid.is_done or self._error is None:
                finished = self.grid.finish()
                self._error = self._all_failed() if self.grid.is_done else self._left(finished.why)
            else:
                self.grid.leave(self._error)
        except Exception as failure:  # noqa: BLE001  # it is raised where the runs are waited for
            self._error = self._error or failure
        finally:
            self._over.put(None)

    def _all_failed(self) -> JobFailed | None:
        """Who has not asked to go on whatever fails, and finds nothing but failed runs, may not have looked at them."""
        tally, failures = self.grid.tally, self.grid.cells.failures
        if tally.failed < tally.cells or not failures.first_run:
            return None
        why, next_step = failures.in_words(tally.cells), f"cloudrun show {failures.first_run} --log"
        if self._keep_going:
            self._observe(Note(f"{self.grid.grid_id}: {why}; {next_step}", "warning"))
            return None
        return JobFailed(f"{self.grid.grid_id}: {why}", run=self._first_failed(), next_step=next_step)

    def _first_failed(self) -> Run:
        return self._ledger.get(self.grid.cells.failures.first_run)

    def _left(self, why: str) -> CloudrunError:
        grid_id, tally = self.grid.grid_id, self.grid.tally
        if self.grid.cells.stopped():
            return JobFailed(
                f"{grid_id} was stopped, {tally.left} of {counted(tally.cells, 'cell is', 'cells are')} left: {why}",
                run=self._first_failed(),
                next_step="correct the script and run it again, or write process_pool(..., keep_going=True)",
            )
        return CloudrunError(
            f"{counted(tally.elsewhere, 'cell is', 'cells are')} left of {grid_id} on machines that cannot be reached",
            next_step="cloudrun ps; the same grid once more goes on with the rest",
        )
