"""Estimates: what a grid takes and costs, before anything is launched."""

from __future__ import annotations

import pytest

from cloudrun.plan.estimate import Estimate, estimate, work_s


def told(cells: int = 100, expected_s: float | None = 36.0, **changes: float | int | None) -> Estimate:
    terms: dict[str, float | int | None] = {
        "units": 4, "slots": 2, "usd_per_hour": 0.10, "boot_s": 60.0, "deadline_s": 14_340.0, "budget_usd": None,
    }  # fmt: skip
    return estimate(cells, expected_s, **{**terms, **changes})  # type: ignore[arg-type]


def test_cells_are_shared_among_all_slots_and_every_unit_is_paid_for() -> None:
    it = told()
    assert it.seconds == pytest.approx(60 + 100 * 36 / 8)
    assert it.usd == pytest.approx(4 * 0.10 * it.seconds / 3600)
    assert it.most_usd == pytest.approx(4 * 0.10 * 4)
    where = "100 cells to run on 4 units, 2 at a time on each"
    assert str(it) == f"{where}: some 8 min 30 s, some $0.0567 with overhead; at most $1.60 at list prices"


def test_a_budget_is_the_most() -> None:
    assert told(budget_usd=0.5).most_usd == 0.5


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
