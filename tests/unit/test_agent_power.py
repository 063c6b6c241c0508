"""When a unit powers itself off: a decision of orders and facts, and no clock of its own."""

from __future__ import annotations

from typing import Any

import pytest

from cloudrun.agent import power
from cloudrun.agent.power import Facts, Plan

GIVEN_AT = 1_000_000.0
HOUR = 3600.0
SAVED = "deadline, and everything is saved"


def plan(left_s: float, orders: dict[str, Any] | None = None, **facts: Any) -> Plan:
    """`left_s` before the deadline of orders that were given an hour before it."""
    deadline = GIVEN_AT + HOUR
    known = {"quiet_s": 0.0, "client": False, "graces_s": (), "unsaved": 0, **facts}
    return power.plan(dict(orders or {}, deadline=deadline), Facts(now=deadline - left_s, given_at=GIVEN_AT, **known))


@pytest.mark.parametrize(("left_s", "ends"), [(46.0, False), (44.0, True), (0.0, True), (-5.0, True)])
def test_jobs_end_their_own_grace_and_some_seconds_before_the_deadline(left_s: float, ends: bool) -> None:
    assert plan(left_s, graces_s=(30.0, 10.0)).end_jobs is ends


def test_a_deadline_that_is_near_leaves_a_tenth_of_the_time() -> None:
    facts = Facts(now=GIVEN_AT + 8.5, given_at=GIVEN_AT, quiet_s=0, client=False, graces_s=(30.0,), unsaved=0)
    orders = {"deadline": GIVEN_AT + 10}
    assert not power.plan(orders, facts).end_jobs
    late = power.plan(orders, facts._replace(now=GIVEN_AT + 9.1))
    assert late.end_jobs
    assert 0.5 < late.grace_s < 0.9  # what is left, less some for what they made


def test_no_unit_goes_before_its_deadline_while_somebody_needs_it() -> None:
    for needed_by in ({"client": True}, {"graces_s": (30.0,)}, {"unsaved": 1}):
        assert plan(5.0, **needed_by).power_off == ""
        assert plan(0.0, **needed_by).power_off == "deadline"
    assert plan(5.0).power_off == SAVED


@pytest.mark.parametrize(
    ("orders", "quiet_s", "why"),
    [
        ({}, 1e6, ""),
        ({"idle_s": None}, 1e6, ""),
        ({"idle_s": 600}, 599.0, ""),
        ({"idle_s": 600}, 600.0, "idle"),
        ({"idle_s": 600, "power_off_when_done": True}, 4.0, ""),
        ({"idle_s": 600, "power_off_when_done": True}, 5.0, "done"),
    ],
)
def test_a_quiet_unit_goes_when_its_orders_say_so(orders: dict[str, Any], quiet_s: float, why: str) -> None:
    assert plan(HOUR / 2, orders, quiet_s=quiet_s).power_off == why
    assert plan(HOUR / 2, orders, quiet_s=quiet_s, unsaved=1).power_off == ""
    assert plan(HOUR / 2, orders, quiet_s=quiet_s, waiting=1).power_off == ""


def test_runs_that_wait_keep_no_unit_beyond_its_deadline_nor_once_none_of_them_may_begin() -> None:
    assert plan(5.0, waiting=3).power_off == SAVED
    assert plan(0.0, waiting=3).power_off == "deadline"


@pytest.mark.parametrize(
    ("left_s", "grace_s", "may"),
    [(46.0, 30.0, True), (44.0, 30.0, False), (16.0, 0.0, True), (14.0, 0.0, False), (HOUR / 2, HOUR, False)],
)
def test_a_run_that_waits_begins_only_while_it_could_still_save_something(
    left_s: float, grace_s: float, may: bool
) -> None:
    deadline = GIVEN_AT + HOUR
    assert power.may_start({"deadline": deadline}, deadline - left_s, GIVEN_AT, grace_s) is may


def test_it_is_asked_again_when_something_may_be_due() -> None:
    assert plan(100.0, graces_s=(30.0,)).next_s == 55.0
    assert plan(20.0, graces_s=(30.0,)).next_s == 20.0
    assert plan(-1.0).next_s == float("inf")
