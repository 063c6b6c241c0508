"""Estimates: what a grid takes and costs, before anything is launched."""

from __future__ import annotations

import pytest

from cloudrun.core.records import MachineTimes
from cloudrun.plan.estimate import MANY, Estimate, busy_s, estimate, usual_times, work_s

BESIDE = MachineTimes(boot_s=40.0, provision_s=15.0, end_s=5.0)


def told(cells: int = 104, expected_s: float | None = 36.0, **changes: float | int | None) -> Estimate:
    each_s = None if expected_s is None else [expected_s] * cells
    terms: dict[str, float | int | None] = {
        "units": 4, "slots": 2, "usd_per_hour": 0.10, "deadline_s": 14_340.0, "budget_usd": None,
    }  # fmt: skip
    return estimate(cells, each_s, beside=BESIDE, **{**terms, **changes})  # type: ignore[arg-type]


def test_cells_are_shared_among_all_slots_and_every_unit_is_paid_for_from_its_launch_to_its_end() -> None:
    it = told()
    assert it.seconds == pytest.approx(60 + 104 * 36 / 8)
    assert it.usd == pytest.approx(4 * 0.10 * it.seconds / 3600)
    assert it.most_usd == pytest.approx(4 * 0.10 * 4)
    where = "104 cells to run on 4 units, 2 at a time on each"
    most = "at most $1.60 at list prices, if all ran until the deadline, for 3 h 59 min"
    assert str(it) == f"{where}: some 8 min 48 s, some $0.0587 with overhead; {most}"


def test_the_last_cells_run_beside_idle_slots_and_a_unit_without_any_has_ended() -> None:
    assert busy_s([10.0] * 6, units=2, slots=2) == [20.0, 20.0]
    assert busy_s([10.0] * 5, units=2, slots=2) == [20.0, 10.0]
    assert busy_s([30.0, 10.0, 10.0, 10.0], units=2, slots=1) == [30.0, 30.0], "whoever is free takes the next"
    assert told(9, units=4).usd == pytest.approx(0.10 / 3600 * (3 * 96 + 132))
    assert busy_s([1.0] * (MANY + 4), units=2, slots=2) == [(MANY + 4) / 4] * 2


def test_a_machine_is_billed_for_a_minute_at_least() -> None:
    it = told(8, 1.0)
    assert it.usd == pytest.approx(4 * 0.10 / 3600 * 61)
    assert told(8, 0.0, units=1, slots=8).usd == pytest.approx(0.10 / 60)


def test_what_machines_took_beside_their_work_is_what_the_next_ones_will() -> None:
    unseen = MachineTimes(60.0, 40.0, 30.0)
    assert usual_times([], "e", unseen) == unseen
    seen = [MachineTimes(10.0, 0.0, 1.0, "e"), MachineTimes(12.0, 50.0, 2.0, "e"), MachineTimes(90.0, 0.0, 3.0, "e")]
    assert usual_times(seen, "e", unseen) == MachineTimes(12.0, 0.0, 2.0), "one that was odd is not believed"
    assert usual_times(seen, "new", unseen).provision_s == 50.0, "it is built, and that took so long"
    assert usual_times(seen[:1], "new", unseen).provision_s == 40.0


def test_a_budget_is_the_most_where_it_is_less_than_the_deadlines_allow() -> None:
    assert told(budget_usd=0.5).most_usd == 0.5
    assert str(told(budget_usd=0.5)).endswith("at most $0.50 at list prices, the budget")
    assert str(told(budget_usd=50.0)).endswith(
        "at most $1.60 at list prices, if all ran until the deadline, for 3 h 59 min"
    )


def test_the_most_is_of_the_dearest_type_that_may_be_rented_and_with_what_was_spent() -> None:
    dear = told(dearest_usd_per_hour=0.40, spent_usd=1.5)
    assert dear.most_usd == pytest.approx(4 * 0.40 * 4 + 1.5)
    assert dear.usd == told().usd
    assert told(dearest_usd_per_hour=0.05).most_usd == told().most_usd
    assert told(spent_usd=0.2, budget_usd=0.5).most_usd == 0.5


def test_units_without_work_are_not_counted() -> None:
    assert told(3).units == 2


def test_what_nobody_knows_is_said_to_be_unknown() -> None:
    text = str(told(expected_s=None))
    assert "nobody knows yet" in text
    assert "at most $1.60" in text
    assert "no known price" in str(told(expected_s=None, usd_per_hour=0.0))


def test_the_last_cell_is_waited_for() -> None:
    assert work_s(0, 1, 100.0, 64) == 50.0
    assert work_s(0, 0, 100.0, 64) == 0.0
    assert work_s(64, 0, 1.0, 2) == 32.0
