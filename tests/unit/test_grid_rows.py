"""Grids in the ledger: which one a command begins, and which it goes on with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.events import nobody
from cloudrun.core.records import FileEntry, GridRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import GridState, RunState
from cloudrun.grids.grid import GridRun, Wishes
from cloudrun.grids.machines import GRID_TAG, names_of
from cloudrun.grids.rows import begin, fill, is_again
from cloudrun.ledger import Ledger
from cloudrun.plan.grid_sets import parse_sets
from cloudrun.plan.pricing import usd_per_hour
from cloudrun.runs import dispatch
from cloudrun.runs.prepared import Job, Prepared, beside
from cloudrun.units.costs import settle
from tests.fakes import PLACE, Ec2, ManualClock, ended_well, launch_one

GRID = parse_sets(["n=1,2,3"])
LARGER = parse_sets(["n=1,2,3,4"])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


@pytest.fixture
def plan(tmp_path: Path) -> Prepared:
    shipment = SimpleNamespace(script="a.py", cwd=".", root=tmp_path)
    return Prepared(
        Job(tmp_path / "a.py"), cast("Any", shipment), cast("Any", SimpleNamespace(fingerprint="e")), Settings(), "code"
    )


def command(plan: Prepared, ledger: Ledger, *, again: bool) -> tuple[GridRecord, GridRecord | None, int]:
    """As `cloudrun submit` does it, and is killed: the grid, the one whose place it takes, and how many were done."""
    wishes = asdict(Wishes(again=again))
    record, former = begin(plan, GRID, wishes, ledger, "", again=again, budget_usd=None, only=None)
    if former is not None:
        ledger.end_grid(former.grid_id, GridState.CANCELLED)
    return record, former, fill(record, plan, GRID, ledger, again=is_again(record))


def succeed(ledger: Ledger, grid: GridRecord, count: int, beside: str = "") -> None:
    unit = launch_one(ledger, ManualClock(), Ec2(), f"l-{grid.grid_id}", **{GRID_TAG: grid.grid_id})
    for cell in ledger.cells(grid.grid_id)[:count]:
        ended_well(ledger, cell.run_id, unit.instance_id, beside)


def test_all_of_it_once_more_is_gone_on_with_where_it_was_killed(plan: Prepared, ledger: Ledger) -> None:
    first, _, _ = command(plan, ledger, again=False)
    succeed(ledger, first, 3)
    ledger.end_grid(first.grid_id, GridState.DONE)
    anew, former, done = command(plan, ledger, again=True)
    assert (former, done) == (None, 0)
    assert anew.grid_id != first.grid_id
    succeed(ledger, anew, 2)
    for again in (True, False, True):  # without it the same grid goes on, and stays what it was
        same, former, done = command(plan, ledger, again=again)
        assert (same.grid_id, former, done) == (anew.grid_id, None, 2)
    ledger.end_grid(anew.grid_id, GridState.DONE)
    assert command(plan, ledger, again=True)[0].grid_id not in (first.grid_id, anew.grid_id)


def test_a_grid_that_has_all_of_its_cells_is_the_same_grid_the_next_time(plan: Prepared, ledger: Ledger) -> None:
    first, _, _ = command(plan, ledger, again=False)
    succeed(ledger, first, 3)
    ledger.end_grid(first.grid_id, GridState.DONE)
    run = GridRun(plan, GRID, Wishes(), ledger, "c-2", nobody)
    run.check()
    finished = run.finish(earlier_usd=1.0)
    assert (run.grid_id, run.was_done, run.is_done) == (first.grid_id, True, True)
    assert (finished.grid.state, finished.tally.taken, finished.grid.client_id) == (GridState.DONE, 3, "")
    ledger.remove_runs([ledger.cells(first.grid_id)[0].run_id])
    anew, _, done = command(plan, ledger, again=False)
    assert (anew.grid_id != first.grid_id, done) == (True, 2)


@pytest.mark.parametrize(
    ("ended", "note", "next_step"),
    [
        (0, "no cell was begun", "the same command begins again"),
        (1, "1 of 3 cells have succeeded", "the same command goes on with {0}; cloudrun show {0}"),
    ],
)
def test_whoever_stops_a_grid_is_told_what_there_is_to_look_at(
    plan: Prepared, ledger: Ledger, ended: int, note: str, next_step: str
) -> None:
    run = GridRun(plan, GRID, Wishes(), ledger, "c-2", nobody)
    succeed(ledger, ledger.grid(run.grid_id), ended)
    error = KeyboardInterrupt()
    run.leave(error)
    assert error.__notes__ == [note]
    assert error.next_step == next_step.format(run.grid_id)  # type: ignore[attr-defined]
    assert ledger.grid(run.grid_id).detail == "interrupted by Ctrl-C"


def test_what_was_begun_without_it_is_begun_anew(plan: Prepared, ledger: Ledger) -> None:
    first, _, _ = command(plan, ledger, again=False)
    anew, former, _ = command(plan, ledger, again=True)
    assert former is not None
    assert former.grid_id == first.grid_id != anew.grid_id


def test_cells_that_a_kill_kept_from_being_written_are_run_again_too(plan: Prepared, ledger: Ledger) -> None:
    first, _, _ = command(plan, ledger, again=False)
    succeed(ledger, first, 3)
    ledger.end_grid(first.grid_id, GridState.DONE)
    begin(plan, GRID, asdict(Wishes(again=True)), ledger, "", again=True, budget_usd=None, only=None)  # and no `fill`
    _, _, done = command(plan, ledger, again=False)
    assert done == 0


def test_what_ran_on_units_of_a_client_that_was_killed_gets_its_cost_too(plan: Prepared, ledger: Ledger) -> None:
    grid, _, _ = command(plan, ledger, again=False)
    succeed(ledger, grid, 2)
    settle(ledger, names_of(ledger, "g-other"))
    settle(ledger, names_of(ledger, grid.grid_id))
    price = usd_per_hour("m7i.large", PLACE.region)
    assert price is not None
    half = pytest.approx(price.usd_per_hour / 2)
    costs = [ledger.run(cell.run_id).cost_usd for cell in ledger.cells(grid.grid_id)]
    assert costs == [half, half, None], "an hour of one machine, shared by two"


def goods(**files: str) -> Any:
    """What is shipped: contents by name, in which `_` stands for a dot."""
    entries = [
        FileEntry(name.replace("_", "."), len(text), hashlib.sha256(text.encode()).hexdigest())
        for name, text in files.items()
    ]
    return SimpleNamespace(entries=entries)


def test_beside_the_code_is_what_a_script_may_read_and_no_python_nor_words_for_people() -> None:
    shipped = goods(a_py="code", b_py="other code", README_md="words", data_csv="1,2", _gitignore="*")
    assert list(beside(shipped, ["a.py"])) == ["data.csv"]


def test_cells_that_ran_before_a_file_beside_the_script_changed_are_said_once(plan: Prepared, ledger: Ledger) -> None:
    before = ledger.keep_beside(beside(goods(data_csv="1", more_csv="1", gone_csv="1"), []))
    first, _, _ = command(plan, ledger, again=False)
    succeed(ledger, first, 2, before)

    def said(name: str) -> list[str]:
        notes: list[Any] = []
        GridRun(replace(plan, beside=name), GRID, Wishes(), ledger, "", notes.append).let_go()
        return [note.text for note in notes]

    now = ledger.keep_beside(beside(goods(data_csv="2", more_csv="1", new_csv="1"), []))
    (warning,) = said(now)
    assert warning.startswith("2 of the cells taken from the ledger ran before data.csv, gone.csv changed:")
    assert "--again" in warning
    assert "--data" in warning
    assert said(before) == [], "as it was"
    assert said("") == [], "nobody knows"


def test_a_run_that_was_submitted_by_itself_is_the_cell_that_does_the_same_work(plan: Prepared, ledger: Ledger) -> None:
    unit = launch_one(ledger, ManualClock(), Ec2())
    jobs = replace(plan.job, params={"n": 2}), replace(plan.job, arguments=("--n", "3"))
    by_itself, other = (dispatch.new_run(replace(plan, job=job), ManualClock().now()) for job in jobs)
    for run in (by_itself, other):
        ledger.add_run(run)
        ended_well(ledger, run.run_id, unit.instance_id)
    grid, _, done = command(plan, ledger, again=False)
    assert done == 1, "an argument is no parameter: the script may read it in another way"
    assert ledger.cells(grid.grid_id)[1].run_id == by_itself.run_id
    assert command(plan, ledger, again=True)[2] == 0


class Late(Ledger):
    """Others come with a wish just when it has been read which cells have succeeded: what they do, and when."""

    def __init__(self, project: Path) -> None:
        super().__init__(project)
        self.wish: Callable[[], object] = lambda: None
        self.others: list[Thread] = []

    def succeeded_by_cell(self, keys: Iterable[str]) -> dict[str, str]:
        found = super().succeeded_by_cell(keys)
        self.others.append(Thread(target=self.wish))
        self.others[-1].start()
        self.others[-1].join(0.5)  # or it has to wait
        return found


def test_what_a_grid_takes_from_another_is_not_removed_with_that_one(plan: Prepared, ledger: Ledger) -> None:
    first, _, _ = command(plan, ledger, again=False)
    succeed(ledger, first, 3)
    ledger.end_grid(first.grid_id, GridState.DONE)
    late = Late(ledger.project)
    late.wish = partial(ledger.remove_grid, first.grid_id)
    second, _ = begin(plan, LARGER, asdict(Wishes()), late, "", again=False, budget_usd=None, only=None)
    assert fill(second, plan, LARGER, late, again=False) == 3
    late.others[0].join()
    assert [grid.grid_id for grid in ledger.grids()] == [second.grid_id]
    states = [cell.state for cell in ledger.cells(second.grid_id)]
    assert states == [RunState.SUCCEEDED] * 3 + [RunState.QUEUED]
    late.close()
