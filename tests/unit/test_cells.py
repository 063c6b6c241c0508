"""The cells of a grid as a pool's work: what becomes of one whose machine, or whose script, has failed it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import ConnectionLost, JobFailed, LedgerError, UnitGone
from cloudrun.core.events import nobody
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.grids.cells import Cell, Cells, Tally
from cloudrun.grids.gridwork import GridWork
from cloudrun.ledger import Ledger
from cloudrun.plan.endings import CANCELLED
from cloudrun.plan.expecting import Expectation
from cloudrun.runs.homecoming import end_queued
from cloudrun.runs.prepared import Job, Prepared
from cloudrun.runs.slots import Recalled, Slots, Turn
from tests.fakes import Ec2, ManualClock, launch_one


@dataclass
class Grid:
    """A grid of `count` cells in a real ledger, and its work."""

    ledger: Ledger
    cells: Cells
    tally: Tally
    units: list[str]
    told: list[RunRecord] = field(default_factory=list)

    def attempt(self, cell: Cell, reason: EndReason, state: RunState = RunState.QUEUED) -> None:
        """One attempt of it that ends so; QUEUED is that its machine failed it."""
        run_id = cell.run.run_id
        self.ledger.begin_attempt(run_id, self.units[0], ManualClock().now())
        self.ledger.move_run(run_id, RunState.RUNNING)
        self.ledger.move_run(run_id, state, reason=reason)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Any]:
    ledger = Ledger(tmp_path)

    def grid(count: int = 2, **options: Any) -> Grid:
        clock = ManualClock()
        unit = launch_one(ledger, clock, Ec2())
        ledger.begin_grid(GridRecord("g-1", "g", "a.py", GridState.OPEN, clock.now(), "same", count))
        runs = [
            (number, RunRecord(f"r-{number}", "a", "a.py", RunState.QUEUED, clock.now(), cell_key=f"key-{number}"))
            for number in range(count)
        ]
        ledger.add_cells("g-1", runs)
        shipment = SimpleNamespace(script="a.py", cwd=".", root=tmp_path)
        environment = SimpleNamespace(fingerprint="e")
        plan = Prepared(Job(tmp_path / "a.py"), cast("Any", shipment), cast("Any", environment), Settings(), "code")
        tally = Tally(count)
        return Grid(ledger, Cells(ledger, "g-1", plan, tally, nobody, **options), tally, [unit.instance_id])

    yield grid
    ledger.close()


def test_a_cell_whose_machine_went_away_goes_to_another_and_the_second_time_is_left_out(make: Any) -> None:
    grid = make(1)
    for machine in range(2):
        cell = grid.cells.take()
        assert cell is not None, machine
        grid.attempt(cell, EndReason.UNIT_LOST)
        grid.cells.ended(cell, UnitGone("it went away"))
    assert grid.cells.backlog().queued == 0
    assert (grid.tally.failed, grid.tally.quarantined) == (1, 1)
    assert grid.ledger.run("r-0").end_reason is EndReason.UNIT_LOST


@pytest.mark.parametrize("reason", [EndReason.PROVISION_FAILED, EndReason.SHIP_FAILED, EndReason.PULL_FAILED])
def test_what_a_machine_did_wrong_is_tried_again_though_no_retry_was_asked_for(make: Any, reason: EndReason) -> None:
    grid = make(1)
    cell = grid.cells.take()
    grid.attempt(cell, reason, RunState.FAILED)
    grid.cells.ended(cell, ConnectionLost("lost"))
    again = grid.cells.take()
    assert again.run.run_id != "r-0"
    assert again.run.cell_key == "key-0"
    assert grid.tally.failed == 0
    grid.attempt(again, EndReason.EXITED, RunState.FAILED)
    grid.cells.ended(again, None)
    assert grid.tally.failed == 1, "and what its script does wrong is not"


def test_retries_count_over_all_runs_of_a_cell(make: Any) -> None:
    grid = make(1, retries=2)
    for _ in range(3):
        cell = grid.cells.take()
        grid.attempt(cell, EndReason.EXITED, RunState.FAILED)
        grid.cells.ended(cell, None)
    assert (grid.tally.failed, grid.cells.backlog().queued) == (1, 0)
    assert len(grid.ledger.runs(states=[RunState.FAILED])) == 3


def test_a_queue_that_somebody_else_has_emptied_is_no_error(make: Any) -> None:
    grid = make(2)
    for number in range(2):
        end_queued(grid.ledger, f"r-{number}", CANCELLED)
    assert grid.cells.backlog().queued == 2, "it does not know yet"
    assert grid.cells.take() is None
    assert grid.cells.backlog().queued == 0
    assert (grid.tally.cancelled, grid.tally.failed, grid.tally.left) == (2, 0, 0)


@pytest.mark.parametrize("expectation", [Expectation([({}, 1.0)]), Expectation(())], ids=["expected", "unknown"])
def test_a_cell_that_was_cancelled_while_it_waited_keeps_no_grid_from_its_end(
    make: Any, expectation: Expectation
) -> None:
    grid = make(3, expectation=expectation)
    end_queued(grid.ledger, "r-1", CANCELLED)  # before it was read ahead
    taken = [grid.cells.take() for _ in range(2)]
    end_queued(grid.ledger, "r-2", CANCELLED)  # and after
    for cell in taken:
        if cell.run.run_id == "r-0":
            grid.attempt(cell, EndReason.EXITED, RunState.FAILED)
        grid.cells.ended(cell, None)
    assert grid.cells.take() is None
    assert (grid.tally.failed, grid.tally.cancelled, grid.tally.running, grid.tally.left) == (1, 2, 0, 0)


def test_a_cell_on_a_machine_that_never_let_us_in_is_queued_again(make: Any) -> None:
    grid = make(1)
    cell = grid.cells.take()
    grid.ledger.begin_attempt("r-0", grid.units[0], ManualClock().now())
    grid.ledger.move_run("r-0", RunState.RUNNING)
    grid.cells.ended(Cell(0, cell.run, on_unit=True), UnitGone("it has gone"))
    assert grid.ledger.run("r-0").state is RunState.QUEUED
    assert grid.cells.take().run.run_id == "r-0"


def test_cells_that_are_given_out_together_are_written_down_together(make: Any) -> None:
    grid = make(3)
    given = [(grid.units[0], grid.cells.take()) for _ in range(3)]
    begun = grid.cells.begin(given)
    assert [cell.number for cell in begun] == [cell.number for _, cell in given]
    for cell in begun:
        (attempt,) = grid.ledger.attempts(cell.run.run_id)
        assert (attempt.number, attempt.instance_id) == (cell.attempt, grid.units[0]) == (1, grid.units[0])
        assert grid.ledger.run(cell.run.run_id).state is RunState.SHIPPING


def test_where_somebody_has_ended_one_of_them_each_is_left_to_its_own_thread(make: Any) -> None:
    grid = make(2)
    given = [(grid.units[0], grid.cells.take()) for _ in range(2)]
    end_queued(grid.ledger, "r-1", CANCELLED)
    assert [cell.attempt for cell in grid.cells.begin(given)] == [0, 0]
    assert grid.ledger.attempts("r-0") == []


def test_a_cell_that_was_written_down_and_never_begun_goes_to_another_machine(make: Any) -> None:
    grid = make(1)
    (cell,) = grid.cells.begin([(grid.units[0], grid.cells.take())])
    grid.cells.ended(cell, UnitGone("it has gone"))
    again = grid.cells.take()
    assert (again.run.run_id, again.attempt) == ("r-0", 0)
    (again,) = grid.cells.begin([(grid.units[0], again)])
    assert again.attempt == 2
    assert [each.number for each in grid.ledger.attempts("r-0")] == [1, 2]


def test_a_ledger_that_cannot_be_written_ends_it_and_another_client_that_was_quicker_does_not(make: Any) -> None:
    grid = make(2)
    first, second = grid.cells.take(), grid.cells.take()
    grid.attempt(first, EndReason.EXITED, RunState.FAILED)
    grid.cells.ended(first, LedgerError("run r-0 is over"))
    with pytest.raises(LedgerError, match="disk"):
        grid.cells.ended(second, LedgerError("the disk is full"))


def test_cells_whose_machine_went_down_never_share_one_again(make: Any) -> None:
    grid = make(4)
    first, second = grid.cells.take(), grid.cells.take()
    for cell in (first, second):
        grid.attempt(cell, EndReason.UNIT_LOST)
        grid.cells.ended(cell, UnitGone("it went away"))
    suspect = grid.cells.take()
    assert suspect.number in (first.number, second.number)
    beside = [suspect]
    while (cell := grid.cells.take(beside)) is not None:
        beside.append(cell)
    assert [cell.number for cell in beside[1:]] == [2, 3]
    assert grid.cells.backlog().queued == 1, "the other suspect waits for another machine"
    assert grid.cells.take([beside[1]]).number in (first.number, second.number)


def test_in_a_grid_that_was_cancelled_a_cell_that_fails_is_not_tried_again(make: Any) -> None:
    grid = make(2, retries=3)
    cell = grid.cells.take()
    grid.attempt(cell, EndReason.EXITED, RunState.FAILED)
    grid.ledger.end_grid("g-1", GridState.CANCELLED, "it was asked to end")
    grid.cells.ended(cell, None)
    assert (grid.tally.failed, grid.tally.running, grid.cells.backlog().queued) == (1, 0, 1)


def test_in_a_grid_that_was_cancelled_a_cell_whose_machine_fails_waits_for_no_other(make: Any) -> None:
    grid = make(1)
    cell = grid.cells.take()
    grid.ledger.end_grid("g-1", GridState.CANCELLED, "it was asked to end")
    grid.attempt(cell, EndReason.UNIT_LOST)
    grid.cells.ended(cell, UnitGone("it went away"))
    assert grid.ledger.run("r-0").state is RunState.CANCELLED
    assert (grid.tally.cancelled, grid.tally.failed, grid.cells.backlog().queued) == (1, 0, 0)


def test_in_a_grid_that_another_process_has_taken_nothing_is_tried_again(make: Any) -> None:
    grid = make(1, retries=3)
    cell = grid.cells.take()
    grid.attempt(cell, EndReason.EXITED, RunState.FAILED)
    assert grid.ledger.take_grid("g-1", "c-other", of="")
    grid.cells.ended(cell, None)
    assert (grid.tally.failed, len(grid.ledger.runs())) == (1, 1)


def work_of(grid: Grid, *, is_done: bool = False, **options: Any) -> GridWork:
    """As one of the works of a pool."""
    begun = SimpleNamespace(
        grid_id="g-1", cells=grid.cells, tally=grid.tally, is_done=is_done, leave=lambda _: None,
        finish=lambda: SimpleNamespace(why=""),
    )  # fmt: skip
    return GridWork(grid.ledger, lambda _: cast("Any", begun), **options)


@pytest.mark.parametrize("failure", [LedgerError("the disk is full"), OSError("the disk is full")])
def test_an_error_of_one_grid_among_the_works_of_a_pool_ends_that_grid_alone(make: Any, failure: Exception) -> None:
    work = work_of(make(2))
    cell = work.take(())
    assert cell is not None
    work.ended(cell, failure)
    assert work.is_over()
    work.close(None)
    with pytest.raises(type(failure), match="the disk is full"):
        list(work.runs(lambda _: None))


@pytest.mark.parametrize("keep_going", [False, True])
def test_where_every_cell_has_failed_the_loop_over_its_runs_ends_with_that(make: Any, keep_going: bool) -> None:
    grid = make(2)
    said: list[Any] = []
    work = work_of(grid, is_done=True, keep_going=keep_going, observe=said.append)
    for _ in range(2):
        cell = work.take(())
        assert cell is not None
        grid.attempt(cell, EndReason.EXITED, RunState.FAILED)
        work.ended(cell, None)
    work.close(None)
    if keep_going:
        assert list(work.runs(lambda _: None)) == []
        assert "g-1: all 2 cells failed with the same error" in said[0].text
        return
    with pytest.raises(JobFailed, match="g-1: all 2 cells failed with the same error") as failed:
        list(work.runs(lambda _: None))
    assert failed.value.run.run_id == "r-0"
    assert failed.value.next_step == "cloudrun show r-0 --log"


def test_after_failures_that_are_alike_a_free_slot_waits_for_what_runs(make: Any) -> None:
    """Four slots and six cells that all fail: by the third failure not all of them have been begun."""
    grid = make(6)
    running = [grid.cells.take() for _ in range(4)]
    begun = len(running)
    while running:
        cell = running.pop(0)
        grid.attempt(cell, EndReason.EXITED, RunState.FAILED)
        grid.cells.ended(cell, None)
        if not grid.cells.stopped() and (more := grid.cells.take()) is not None:
            running.append(more)
            begun += 1
    assert begun == 4
    assert grid.cells.stopped() == "4 of 6 cells failed with the same error, so no other was begun"


class Begun(Exception):
    pass


def test_a_cell_that_waits_for_a_slot_does_not_begin_after_the_first_has_failed(make: Any) -> None:
    grid = make(6)
    cell = grid.cells.take()

    def begin() -> None:
        raise Begun

    def carry_out(cells: Cells, *, has_slot: bool = False) -> None:
        cells.carry_out(cast("Any", SimpleNamespace(check_cancelled=begin)), cell, Turn(Slots(1), has_slot=has_slot))

    with pytest.raises(Begun):
        carry_out(grid.cells)
    grid.cells.failures.failure("r-5", "no data")
    with pytest.raises(Recalled, match="the first cells failed"):
        carry_out(grid.cells)
    with pytest.raises(Begun):
        carry_out(grid.cells, has_slot=True)  # it was decided that it shall
    grid.cells.ended(cell, Recalled("it waits again"))
    assert grid.cells.take() == cell, "one at a time may say more"
    grid.cells.failures.success()
    with pytest.raises(Begun):
        carry_out(grid.cells)


def test_who_goes_on_whatever_fails_sends_none_back(make: Any) -> None:
    cells = make(6, keep_going=True).cells
    cells.failures.failure("r-5", "no data")
    assert cells.failures.doubt() != ""
    assert cells.failures.doubt(keep_going=True) == ""
