"""What is said of a grid at its end: how it went, why, and what to type next."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.cli.grid import exit_code
from cloudrun.cli.grid_summary import closing_lines
from cloudrun.core.clock import SystemClock
from cloudrun.core.records import GridRecord
from cloudrun.core.states import GridState, UnitState
from cloudrun.grids.cells import Tally
from cloudrun.grids.grid import Finished
from cloudrun.grids.machines import GRID_TAG, what_is_gone
from cloudrun.grids.watching import forsaken
from cloudrun.ledger import Ledger
from cloudrun.ledger.results import Ordering
from cloudrun.plan.costs import Bill
from cloudrun.plan.retrying import Failures
from cloudrun.units.clients import this_client
from tests.fakes import Ec2, ManualClock, launch_one

FREE = Bill(0, 0.0, 0.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path)
    yield ledger
    ledger.close()


def grid(cells: int, state: GridState = GridState.DONE, **more: Any) -> GridRecord:
    return GridRecord("g-1", "g", "a.py", state, ManualClock().now(), "same", cells, **more)


def failed(*whys: str) -> Failures:
    failures = Failures()
    for number, why in enumerate(whys):
        failures.failure(f"r-{number}", why)
    return failures


def steps(lines: list[str]) -> list[str]:
    return [line.removeprefix("  next   ") for line in lines if line.startswith("  next")]


def test_after_a_grid_that_stopped_since_its_first_cells_failed_alike_the_log_comes_first(ledger: Ledger) -> None:
    failures = failed(*["ValueError: alpha 0.5 is too large"] * 3)
    finished = Finished(grid(9, GridState.STOPPED), Tally(9, failed=3), FREE, failures.stop(9), failures)
    lines = closing_lines(finished, ledger)
    assert lines[1].endswith(
        "3 of 9 cells failed with the same error, so no other was begun: ValueError: alpha 0.5 is too large"
    )
    (step,) = steps(lines)
    assert step.startswith("cloudrun show r-0 --log, then correct the script")
    assert "--keep-going" in step


def test_where_all_failed_the_reason_is_said_though_nothing_stopped_it(ledger: Ledger) -> None:
    finished = Finished(grid(2), Tally(2, failed=2), FREE, "", failed("KeyError: 'x'", "ValueError: 1"))
    lines = closing_lines(finished, ledger)
    assert "  why    all 2 cells failed, one of them with: KeyError: 'x'" in lines
    assert steps(lines) == ["cloudrun show r-0 --log, then correct the script and type the same command"]


def test_where_some_failed_the_results_come_with_the_first_of_their_logs(ledger: Ledger) -> None:
    lines = closing_lines(Finished(grid(4), Tally(4, succeeded=2, failed=2), FREE, "", failed("a", "b")), ledger)
    assert steps(lines)[0] == "cloudrun show r-0 --log, the first that failed"
    assert "cloudrun results --grid g-1" in steps(lines)[1]


def test_a_budget_that_is_used_up_is_no_reason_to_look_at_a_log(ledger: Ledger) -> None:
    finished = Finished(
        grid(4, GridState.STOPPED, budget_usd=1.0), Tally(4, succeeded=2), Bill(1, 0.9, 0.5), "the budget is spent"
    )
    assert steps(closing_lines(finished, ledger))[0] == "the same command goes on with it, with a higher --budget"


def test_what_was_taken_over_and_what_it_cost_before_is_said_and_what_was_cancelled_is_no_failure(
    ledger: Ledger,
) -> None:
    tally = Tally(9, succeeded=5, taken=4, failed=1, cancelled=2)
    lines = closing_lines(Finished(grid(9, GridState.STOPPED), tally, Bill(2, 0.5, 0.4), "", failed("a"), 0.25), ledger)
    assert lines[0] == "g-1 (g) stopped: 5 succeeded, 4 of them before, 1 failed, 2 cancelled, 1 left"
    assert "  cost   $0.50 at list prices: runs $0.40 + overhead $0.10, $0.25 of it before this command" in lines


@pytest.mark.parametrize(("tally", "code"), [(Tally(1, cancelled=1), 5), (Tally(1, failed=1), 5), (Tally(1, 1), 0)])
def test_a_cell_that_did_not_succeed_is_seen_in_the_exit_code(tally: Tally, code: int) -> None:
    assert exit_code(Finished(grid(1), tally, FREE)) == code


def test_a_ranking_that_is_cut_says_how_to_see_the_rest() -> None:
    run = SimpleNamespace(scores={"f1": 0.5}, params={"a": 1})
    ranked = SimpleNamespace(
        has_score=lambda *_: True,
        ordering=lambda *_, **__: Ordering("f1", minimize=False),
        ranking=lambda *_, limit, **__: [run] * limit,
    )
    lines = closing_lines(Finished(grid(12), Tally(12, succeeded=12), FREE), cast("Ledger", ranked))
    assert "       10 of 12 shown: cloudrun results --grid g-1 --limit 0" in lines


@pytest.mark.parametrize("lives", [True, False])
def test_a_grid_whose_process_is_gone_is_known_by_its_machines(ledger: Ledger, lives: bool) -> None:
    client = this_client(SystemClock().now())
    ledger.register_client(client)
    ledger.begin_grid(grid(1, GridState.OPEN, client_id=client.client_id if lives else "c-gone"))
    unit = launch_one(ledger, ManualClock(), Ec2(), "l-1", **{GRID_TAG: "g-1"})
    assert forsaken(ledger, {unit.instance_id}) == ([] if lives else ["g-1"])
    assert forsaken(ledger, {"i-other"}) == []


def test_whoever_stops_a_grid_hears_which_of_its_machines_are_gone_and_what_they_cost(ledger: Ledger) -> None:
    assert what_is_gone(ledger, "g-1") == ""
    clock = ManualClock()
    for name in ("l-1", "l-2"):
        launch_one(ledger, clock, Ec2(), name, **{GRID_TAG: "g-1"})
    assert what_is_gone(ledger, "g-1") == ""
    ledger.move_unit("i-l-1", UnitState.TERMINATED)
    assert re.match(
        r"1 of the 2 machines that it had are terminated: \$\S+ so far at list prices: ", what_is_gone(ledger, "g-1")
    )
    ledger.move_unit("i-l-2", UnitState.TERMINATED)
    assert re.match(
        r"all 2 machines that it had are terminated: \$\S+ at list prices: runs \$0 \+ overhead",
        what_is_gone(ledger, "g-1"),
    )
