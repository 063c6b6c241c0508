"""What a name means where several runs and grids are called so, and what is said of that."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from cloudrun.cli.main import run
from cloudrun.cli.meant import grid_meant, run_meant
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.ledger import Ledger
from tests.cli.conftest import NOON, Made

GRID = "g-0s1dq4xk8m2vt"


@pytest.fixture
def cells(ledger: Ledger, ended: Made) -> list[str]:
    """An older run called sweep, then a grid that is called so too: its cells, the newest last."""
    ended("sweep")
    ledger.begin_grid(GridRecord(GRID, "sweep", "train.py", GridState.OPEN, NOON, "same", 3))
    runs = [ended("sweep", {"accuracy": 0.5 + number / 8}, grid_id=GRID) for number in range(2)]
    later = NOON + timedelta(hours=1)
    ledger.add_cells(GRID, list(enumerate(runs)))
    waits = RunRecord("r-0s1dq4xk8m2ww", "sweep", "train.py", RunState.QUEUED, later, grid_id=GRID)
    ledger.add_cells(GRID, [(2, waits)])
    return [*runs, waits.run_id]


def under_way(ledger: Ledger, name: str) -> str:
    """A run of its own that its machine still has."""
    run_id = f"r-0s1dq4xk8m2w{len(ledger.runs())}"
    ledger.add_run(RunRecord(run_id, name, "train.py", RunState.QUEUED, NOON - timedelta(hours=1)))
    ledger.begin_attempt(run_id, "i-1", NOON)
    ledger.move_run(run_id, RunState.RUNNING)
    return run_id


def test_cancel_by_a_grids_name_ends_the_grid_and_not_one_cell(
    ledger: Ledger, cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["cancel", "sweep"]) == 0
    assert ledger.grid(GRID).state is GridState.CANCELLED
    assert ledger.run(cells[2]).state is RunState.CANCELLED
    assert f"the newest grid called sweep is {GRID}\n" in capsys.readouterr().err


def test_whatever_takes_grids_means_the_grid_by_its_name(
    ledger: Ledger, cells: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.end_grid(GRID, GridState.STOPPED)
    waits = under_way(ledger, "sweep")
    assert run(["show", "sweep"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("sweep, a grid, is stopped")
    assert f"the newest grid called sweep is {GRID}; not home: {waits}\n" in said.err
    ledger.requeue_run(waits, reason=EndReason.INTERRUPTED, detail="", outputs=())
    assert run(["export", "sweep", "exported"]) == 0
    assert {each.name for each in (tmp_path / "exported").iterdir()} == set(cells)
    assert run(["report", "sweep", "--json"]) == 0
    said = capsys.readouterr()
    assert '"runs": 3' in said.out
    assert f"the newest grid called sweep is {GRID}\n" in said.err


def test_a_run_that_is_newer_than_the_grid_of_its_name_is_the_run(
    ledger: Ledger, cells: list[str], ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = RunRecord("r-0s1dq4xk8m2zz", "sweep", "train.py", RunState.QUEUED, NOON + timedelta(hours=2))
    ledger.add_run(newer)
    assert grid_meant(ledger, "sweep") is None
    assert run_meant(ledger, "sweep") == newer.run_id
    said = capsys.readouterr().err
    assert (
        f"{newer.run_id} (sweep) queued, the newest of 5 that are called so; the grid that is called so is {GRID}\n"
        in said
    )
    for reference in (newer.run_id, newer.run_id[:-1], cells[0]):
        assert (grid_meant(ledger, reference), run_meant(ledger, reference).startswith(reference)) == (None, True)
    assert capsys.readouterr().err == ""


def test_a_command_that_takes_runs_alone_says_that_it_takes_a_cell(
    ledger: Ledger, cells: list[str], ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("baseline", {"accuracy": 0.1})
    assert run(["compare", "baseline", "sweep"]) == 0
    said = capsys.readouterr().err
    assert (
        f"{cells[2]} (sweep) queued, the newest of 4 that are called so; the grid that is called so is {GRID}\n" in said
    )


def test_a_grid_whose_cells_are_not_there_yet_is_meant_by_its_name(ledger: Ledger, ended: Made) -> None:
    ended("sweep")
    ledger.begin_grid(GridRecord(GRID, "sweep", "t.py", GridState.OPEN, NOON + timedelta(hours=1), "same", 3))
    assert grid_meant(ledger, "sweep") == GRID
    assert grid_meant(ledger, "nothing") is None


def test_pull_takes_the_run_of_a_name_that_is_not_home(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    waits, newest = under_way(ledger, "digits"), ended("digits", reason=EndReason.EXITED)
    assert run_meant(ledger, "digits", not_home=True) == waits
    assert f"{waits} is not home; the newest called digits is {newest}, failed\n" in capsys.readouterr().err
    assert run(["show", "digits"]) == 0
    said = f"{newest} (digits) failed, the newest of 2 that are called so; not home: {waits}\n"
    assert said in capsys.readouterr().err
    assert run_meant(ledger, newest, not_home=True) == newest
