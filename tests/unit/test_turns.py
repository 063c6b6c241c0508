"""Turns: the longest expected cell first where anything is expected, by number elsewhere; each cell once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import GridState, RunState
from cloudrun.grids.turns import AHEAD, Turns
from cloudrun.ledger import Ledger
from cloudrun.plan.endings import CANCELLED
from cloudrun.plan.expecting import Expectation
from cloudrun.runs.homecoming import end_queued
from tests.fakes import ManualClock

Make = Callable[[list[int], Expectation], Turns]
BY_WORK = Expectation([({"work": work}, float(work)) for work in range(1, 11)])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


@pytest.fixture
def make(ledger: Ledger) -> Make:
    def turns(works: list[int], expectation: Expectation) -> Turns:
        now = ManualClock().now()
        ledger.begin_grid(GridRecord("g-1", "g", "a.py", GridState.OPEN, now, "same", len(works)))
        queued = RunRecord("r", "a", "a.py", RunState.QUEUED, now)
        runs = [
            (number, replace(queued, run_id=f"r-{number}", params={"work": work}, cell_key=f"{number}"))
            for number, work in enumerate(works)
        ]
        ledger.add_cells("g-1", runs)
        queue = Turns(ledger, "g-1", expectation)
        queue.refresh()
        return queue

    return turns


def taken(turns: Turns) -> list[int]:
    found = []
    while (cell := turns.next()) is not None:
        found.append(cell.number)
    return found


def test_the_longest_expected_goes_first_and_equals_by_number(make: Make) -> None:
    assert taken(make([1, 9, 3, 9, 10], BY_WORK)) == [4, 1, 3, 2, 0]


def test_where_nothing_is_known_they_go_by_number(make: Make) -> None:
    turns = make([1, 9, 3], Expectation(()))
    assert turns.expected_s is None
    assert turns.next_s is None
    assert taken(turns) == [0, 1, 2]


def test_what_waits_is_expected_to_take_what_its_cells_do(make: Make) -> None:
    turns = make([2, 4, 9], BY_WORK)
    assert (turns.expected_s, turns.next_s) == (pytest.approx(5.0), pytest.approx(9.0))
    cell = turns.next()
    assert cell is not None
    assert (turns.expected_s, turns.next_s) == (pytest.approx(3.0), pytest.approx(4.0))
    turns.put_back(cell)
    assert turns.next_s == pytest.approx(9.0)
    assert (turns.queued, turns.expected_s) == (3, pytest.approx(5.0))
    again = turns.next()
    assert again is not None
    assert again.number == cell.number


@pytest.mark.parametrize("expectation", [BY_WORK, Expectation(())], ids=["expected", "unknown"])
def test_more_than_are_read_at_once_come_all_and_each_once(make: Make, expectation: Expectation) -> None:
    works = [1 + number % 10 for number in range(2 * AHEAD + 7)]
    turns = make(works, expectation)
    assert sorted(taken(turns)) == list(range(len(works)))
    assert turns.queued == 0


@pytest.mark.parametrize("expectation", [BY_WORK, Expectation(())], ids=["expected", "unknown"])
def test_what_somebody_else_has_ended_is_passed_over(make: Make, ledger: Ledger, expectation: Expectation) -> None:
    turns = make([5, 5, 5], expectation)
    end_queued(ledger, "r-1", CANCELLED)
    assert taken(turns) == [0, 2]
    assert turns.queued == 0
    assert turns.expected_s is None
