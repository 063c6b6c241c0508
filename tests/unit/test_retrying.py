"""What follows the end of an attempt."""

from __future__ import annotations

import pytest

from cloudrun.core.states import EndReason as E
from cloudrun.plan.retrying import ATTEMPTS, INFRASTRUCTURE, Failures, Step, next_step, signature, useless_launches


@pytest.mark.parametrize(
    ("ends", "retries", "step"),
    [
        ([E.COMPLETED], 0, "done"),
        ([E.UNIT_LOST, E.EXITED, E.COMPLETED], 1, "done"),
        ([E.CANCELLED], 3, "cancelled"),
        ([E.EXITED], 0, "failed"),
        ([E.EXITED], 1, "again"),
        ([E.EXITED, E.MEMORY], 1, "failed"),
        ([E.UNIT_LOST, E.EXITED], 1, "again"),  # what a machine did uses up no retry
        ([E.UNIT_LOST, E.EXITED], 0, "failed"),
        ([E.UNIT_LOST], 0, "again"),
        ([E.UNIT_LOST, E.UNIT_LOST], 5, "quarantine"),
        ([E.UNIT_LOST, E.DEADLINE], 0, "quarantine"),
        ([E.INTERRUPTED] * (ATTEMPTS - 1), 0, "again"),
        ([E.INTERRUPTED] * ATTEMPTS, 0, "quarantine"),
        ([E.SHIP_FAILED, E.PULL_FAILED, E.PROVISION_FAILED, E.CLIENT_LOST], 0, "again"),
    ],
)
def test_each_history_has_its_next_step(ends: list[E], retries: int, step: Step) -> None:
    assert next_step(ends, retries=retries) == step


@pytest.mark.parametrize("reason", list(E))
def test_no_cell_is_tried_for_ever(reason: E) -> None:
    assert next_step([reason] * (ATTEMPTS + 1), retries=ATTEMPTS) != "again"


def test_what_a_script_does_is_no_infrastructure() -> None:
    own = {E.EXITED, E.SIGNALLED, E.MEMORY, E.DISK, E.WALL_TIME, E.OUTPUT_REFUSED}
    assert set(E) - INFRASTRUCTURE == own | {E.COMPLETED, E.CANCELLED}


def test_errors_that_differ_in_their_numbers_are_the_same() -> None:
    one = "Traceback ...\nValueError: alpha must be > 0, got -0.5 at 0x7f3a\n\n"
    assert signature(one) == signature("\x1b[31mValueError: alpha must be > 0, got -1e-3 at 0xBEEF\x1b[0m")
    assert signature(one) != signature("ValueError: l1_ratio must be > 0, got 0.5")
    assert signature(" \n") == ""


def test_three_first_cells_that_fail_alike_stop_the_grid() -> None:
    failures = Failures()
    for alpha in (1, 2):
        failures.failure(f"r-{alpha}", f"error: unrecognized arguments: --alpha {alpha}")
        assert failures.stop(9) == ""
    failures.failure("r-3", "error: unrecognized arguments: --alpha 3")
    assert failures.stop(9).endswith("error: unrecognized arguments: --alpha 1"), "a real one, not what they have alike"
    assert failures.first_run == "r-1"
    assert failures.stop(9, keep_going=True) == ""


def test_cells_that_fail_differently_or_after_a_success_stop_nothing() -> None:
    different, late = Failures(), Failures(succeeded=True)
    for name in "abc":
        different.failure(name, f"KeyError: {name}")
        late.failure(name, "KeyError: x")
    assert different.stop(9) == late.stop(9) == ""
    for _ in range(3):
        different.failure("r", "KeyError: x")
    assert different.stop(9) == ""  # only the first ones count


def test_where_all_failed_it_is_said_whether_they_did_so_alike() -> None:
    failures = Failures()
    failures.failure("r-1", "ValueError: -1")
    assert failures.in_words(1) == "the only cell failed: ValueError: -1"
    failures.failure("r-2", "ValueError: -2")
    assert failures.in_words(2) == "all 2 cells failed with the same error: ValueError: -1"
    for _ in range(3):
        failures.failure("r-3", "KeyError: 'x'")
    assert failures.in_words(5) == "all 5 cells failed, one of them with: ValueError: -1"


def test_a_grid_that_is_stopped_says_how_many_have_failed_and_not_how_many_it_takes() -> None:
    failures = Failures()
    for _ in range(4):
        failures.failure("r", "boom")
    assert failures.stop(6) == "4 of 6 cells failed with the same error, so no other was begun: boom"
    assert failures.stop(4) == "all 4 cells failed with the same error: boom"
    failures.failure("r", "crash")
    assert failures.stop(6) == "5 of 6 cells failed, the first 3 with the same error, so no other was begun: boom"


def test_after_a_failure_no_more_are_begun_than_it_takes_to_see_that_all_fail() -> None:
    failures = Failures()
    assert not failures.wait(running=100), "nothing is known yet"
    failures.failure("r", "boom")
    assert (failures.wait(running=1), failures.wait(running=2)) == (False, True)
    assert not failures.wait(running=2, keep_going=True)
    failures.failure("r", "boom")
    assert (failures.wait(running=0), failures.wait(running=1)) == (False, True)
    failures.success()
    assert not failures.wait(running=100)
    different = Failures()
    for why in ("boom", "crash"):
        different.failure("r", why)
    assert not different.wait(running=100)


def test_a_success_after_three_failures_lets_it_go_on() -> None:
    failures = Failures()
    for _ in range(3):
        failures.failure("r", "boom")
    failures.success()
    assert failures.stop(9) == ""


def test_units_that_all_go_before_they_work_end_the_launching() -> None:
    assert useless_launches([False] * 4) == ""
    assert useless_launches([True] + [False] * 5) != ""
    assert useless_launches([False] * 4 + [True]) == ""
