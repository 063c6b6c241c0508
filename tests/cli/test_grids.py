"""A grid where a run may be given, and a run where a grid is wanted: shown, or said to be the other."""

from __future__ import annotations

import pytest

from cloudrun.cli.main import run
from cloudrun.core.errors import NotFound
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.ledger import Ledger
from tests.cli.conftest import NOON, Made, document

GRID = "g-0s1dq4xk8m2vt"


@pytest.fixture
def cells(ledger: Ledger, ended: Made) -> list[str]:
    """A grid of four cells that was stopped: one of them failed, one never began."""
    ledger.begin_grid(GridRecord(GRID, "sweep", "train.py", GridState.OPEN, NOON, "same", 4))
    runs = [
        ended("sweep", {"accuracy": 0.5}, params={"C": 1}, grid_id=GRID),
        ended("sweep", {"accuracy": 0.75}, params={"C": 2}, grid_id=GRID),
        ended("sweep", reason=EndReason.EXITED, logs={"stderr.log": "ValueError: C\n"}, grid_id=GRID),
        "r-waits",
    ]
    ledger.add_cells(GRID, list(enumerate(runs[:3])))
    ledger.add_cells(GRID, [(3, RunRecord("r-waits", "sweep", "train.py", RunState.QUEUED, NOON, grid_id=GRID))])
    ledger.end_grid(GRID, GridState.STOPPED, "interrupted by Ctrl-C")
    return runs


def test_show_tells_how_far_a_grid_is_and_what_to_type(
    ledger: Ledger, cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for reference in (GRID, GRID[:9]):
        assert run(["show", reference]) == 0
        shown = capsys.readouterr().out
        for expected in (
            f"sweep, a grid, is stopped\ngrid         {GRID}",
            "4: 2 succeeded, 1 failed, 1 left",
            "interrupted by Ctrl-C",
            "1  accuracy 0.75  C=2",
            "ValueError: C",
            f"the same command goes on with it, or cloudrun attach {GRID}",
            f"cloudrun show {cells[2]} --log, the first that failed",
            f"cloudrun results --grid {GRID}",
        ):
            assert expected in shown
    whole = document(capsys, "show", GRID, "--json")
    assert (whole["grid_id"], [each["run_id"] for each in whole["runs"]]) == (GRID, cells)
    assert (whole["summary"]["state"], whole["summary"]["succeeded"], whole["summary"]["left"]) == ("stopped", 2, 1)


def test_a_cell_that_waits_is_not_followed_but_begun(
    ledger: Ledger, cells: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["show", cells[3]]) == 0
    assert f"next         the same command as before begins it, or cloudrun attach {GRID}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [["get", GRID, "a"], ["logs", GRID], ["compare", GRID, GRID], ["show", GRID, "--log"]], ids=" ".join
)
def test_a_command_that_takes_a_run_says_that_it_was_given_a_grid(
    ledger: Ledger, cells: list[str], words: list[str]
) -> None:
    with pytest.raises(NotFound, match=f"{GRID} is a grid, and this takes a run") as error:
        run(words)
    assert f"cloudrun show {GRID}" in error.value.next_step


def test_a_command_that_takes_a_grid_says_that_it_was_given_a_run(ledger: Ledger, cells: list[str]) -> None:
    with pytest.raises(NotFound, match=f"{cells[0]} is a run, and this takes a grid") as error:
        run(["results", "--grid", cells[0]])
    assert f"cloudrun show {cells[0]}" in error.value.next_step


@pytest.mark.parametrize(
    ("mistyped", "meant"), [(f"{GRID[:-1]}w", GRID), ("swepe", "sweep")], ids=["the id of a grid", "a name"]
)
def test_a_mistyped_id_is_near_to_grids_as_well(ledger: Ledger, cells: list[str], mistyped: str, meant: str) -> None:
    for words in (["show", mistyped], ["get", mistyped, "a"], ["cancel", mistyped]):
        with pytest.raises(NotFound, match=f"near: .*{meant}"):
            run(words)
