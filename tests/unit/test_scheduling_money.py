"""What the planner does with a budget: deadlines that it pays for, moved as far as there is money that nobody holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudrun.plan import budget
from cloudrun.plan.scheduling import Backlog, UnitView, decide
from tests.planning import LIMITS, NOW, decided, limits, unit


def test_a_cell_that_the_budget_does_not_pay_for_keeps_no_other_from_running() -> None:
    money = limits(budget_usd=0.1 * 25 / 60, min_units=1)  # 25 minutes
    decision = decide(NOW, Backlog(101, 0, 60.0, next_s=1500.0), [], money, 0.0)
    assert decision.launch
    assert not decision.ended
    paid = UnitView("i-1", "ready", 2, 0, NOW, NOW + 1200, 0.1)
    assert decide(NOW, Backlog(101, 0, 60.0, next_s=1500.0), [paid], money, 0.0).assign == (("i-1", 2),)


def test_what_comes_home_keeps_its_unit_alive_and_no_slot() -> None:
    money = limits(budget_usd=1.0)
    ending = dataclasses.replace(unit("i-1", left_s=60.0), homeward=1)
    decision = decide(NOW, Backlog(0, 1, 30.0), [ending], money, 0.0)
    assert decision.drain == ("i-1",)
    assert [name for name, _ in decision.extend] == ["i-1"]
    assert decide(NOW, Backlog(0, 0, 30.0), [unit("i-1", left_s=60.0)], money, 0.0).extend == ()
    assert decide(NOW, Backlog(9, 1, 30.0), [dataclasses.replace(ending, deadline=NOW + 900)], money, 0.0).assign


def test_a_unit_is_launched_for_long_enough_for_the_next_cell() -> None:
    money = limits(budget_usd=0.1, min_units=1)  # an hour
    decision = decide(NOW, Backlog(9, 0, 60.0, next_s=1800.0), [], money, 0.0)
    assert decision.launch == 1
    new = UnitView("i-1", "ready", 2, 0, NOW, decision.deadline, 0.1)
    later = NOW + LIMITS.boot_s
    assert decide(later, Backlog(9, 0, 60.0, next_s=1800.0), [new], money, 0.0).assign == (("i-1", 2),)


def test_the_budget_is_the_units_deadlines() -> None:
    decision = decided(16, budget_usd=0.8)
    assert decision.launch == 8
    assert decision.deadline == NOW + 3600 - 60 - 1


def test_where_money_is_short_fewer_units_live_long_enough_to_be_of_use() -> None:
    decision = decided(16, budget_usd=0.08, boot_s=120.0)  # 48 minutes of one unit
    assert decision.launch == 4
    assert decision.deadline == NOW + 12 * 60 - 60 - 1
    assert decision.why == "the budget pays for no more units"


def test_a_budget_too_small_for_one_cell_launches_nothing_and_says_so() -> None:
    decision = decided(1, budget_usd=0.001)
    assert decision.ended
    assert "budget" in decision.why
    assert decided(1, budget_usd=0.05, expected_s=3600.0).ended


def test_a_first_cell_does_not_take_the_money_of_those_that_may_come() -> None:
    assert decided(1, budget_usd=0.8).deadline == NOW + 3600 - 60 - 1


def test_what_others_did_not_use_goes_to_those_that_work() -> None:
    decision = decided(0, unit("i-1", 1, left_s=120), budget_usd=1.0)
    assert decision.extend == (("i-1", NOW + 1199),)
    assert decided(0, unit("i-1", 1, left_s=120), budget_usd=0.008).extend == ()
    assert decided(0, unit("i-1", left_s=120), budget_usd=1.0).extend == ()


def test_a_deadline_moves_by_what_the_queue_takes_and_no_further() -> None:
    queue = decided(100, unit("i-1", 2, left_s=120), expected_s=60.0, budget_usd=10.0, max_units=1)
    assert queue.extend == (("i-1", NOW + 2 * 60 * (1 + 102 / 2) - 1),)


def test_a_moved_deadline_counts_for_what_is_started_now() -> None:
    near = unit("i-1", left_s=100)
    assert decided(1, near, expected_s=250.0, budget_usd=1.0).assign == (("i-1", 1),)


def test_a_smaller_budget_takes_no_time_from_who_works_for_what_is_on_its_way_out() -> None:
    now = 1000.0
    works = UnitView("i-1", "ready", 1, 1, 0.0, 7200.0, 1.0)
    leaves = UnitView("i-2", "draining", 1, 0, 0.0, 14400.0, 1.0)
    idle = dataclasses.replace(leaves, unit_id="i-3", state="ready")
    money = limits(budget_usd=3.0, slots=1, usd_per_hour=1.0)
    for other in (leaves, idle):
        assert decide(now, Backlog(0, 1, 600.0), [works, other], money, 0.0).extend == ()
    stuck_usd = 4.0  # the caller counts it, where it does not go
    (moved,) = decide(now, Backlog(0, 1, 600.0), [works], money, stuck_usd).extend
    assert moved[0] == "i-1"
    assert moved[1] < 7200.0


views = st.lists(
    st.builds(
        UnitView,
        unit_id=st.just(""),
        state=st.sampled_from(["launching", "ready", "ready", "draining"]),
        slots=st.just(2),
        busy=st.integers(0, 4),  # more than slots: some wait there
        requested_at=st.floats(NOW - 5000, NOW),
        deadline=st.floats(NOW - 50, NOW + 1000) | st.floats(NOW, NOW + 300),
        usd_per_hour=st.sampled_from([0.0832, 1.006]),
    ),
    max_size=8,
).map(
    lambda drawn: [
        dataclasses.replace(each, unit_id=f"i-{number}", busy=each.busy if each.state == "ready" else 0)
        for number, each in enumerate(drawn)
    ]
)


@settings(max_examples=200, deadline=None)
@given(
    units=views,
    queued=st.integers(0, 40),
    expected_s=st.none() | st.sampled_from([0.0, 1.0, 100.0, 1000.0]),
    more=st.floats(0, 2),
    boot_s=st.sampled_from([0.0, 5.0, 60.0]),
    stopped=st.sampled_from(["", "", "stop"]),
)
def test_from_any_state_a_decision_keeps_the_budget_and_contradicts_itself_nowhere(
    units: list[UnitView], queued: int, expected_s: float | None, more: float, boot_s: float, stopped: str
) -> None:
    allowed = limits(budget_usd=budget.worst_usd(NOW, units, 0.3) + more, boot_s=boot_s)
    backlog = Backlog(queued, sum(each.busy for each in units), expected_s)
    decision = decide(NOW, backlog, units, allowed, 0.3, stopped=stopped)
    moved, given = dict(decision.extend), dict(decision.assign)
    by_id = {each.unit_id: each for each in units}
    after = [dataclasses.replace(each, deadline=moved.get(each.unit_id, each.deadline)) for each in units]
    after += [UnitView("new", "launching", 2, 0, NOW, decision.deadline, 0.1)] * decision.launch
    assert allowed.budget_usd is not None
    assert budget.worst_usd(NOW, after, 0.3) <= allowed.budget_usd + 1e-9
    assert len(after) <= max(allowed.max_units, len(units))
    ahead = dict(decision.ahead)
    assert sum(given.values()) + sum(ahead.values()) <= queued
    for name, count in ahead.items():
        assert by_id[name].state == "ready"
        assert name not in decision.drain
        assert by_id[name].busy + given.get(name, 0) + count <= 2 * by_id[name].slots
    assert all(by_id[name].state == "ready" and 0 < count <= 2 - by_id[name].busy for name, count in given.items())
    assert all(not by_id[name].busy and by_id[name].state != "draining" for name in decision.drain)
    assert len(set(decision.drain)) == len(decision.drain)
    assert not set(decision.drain) & (set(given) | set(moved))
    assert all(name in by_id and until > by_id[name].deadline for name, until in moved.items())


@pytest.mark.parametrize("state", ["ready", "launching", "draining"])
def test_whoever_works_gets_more_time_while_there_is_money(state: Any) -> None:
    working = unit("i-1", 1, state, left_s=120.0)
    decision = decided(0, working, expected_s=3600.0, budget_usd=100.0)
    assert [name for name, _ in decision.extend] == ["i-1"]


def test_a_smaller_budget_brings_deadlines_nearer_and_starts_nothing_that_does_not_fit() -> None:
    there = [unit("i-1", 1, left_s=7200.0), unit("i-2", 1, left_s=7200.0)]  # $0.1 an hour each, 100 s old
    decision = decided(9, *there, budget_usd=0.1, expected_s=60.0)
    deadlines = dict(decision.extend)
    assert set(deadlines) == {"i-1", "i-2"}
    nearer = [dataclasses.replace(each, deadline=deadlines[each.unit_id]) for each in there]
    assert budget.worst_usd(NOW, nearer, 0.0) <= 0.1
    assert min(deadlines.values()) > NOW + 1500, "and no nearer than it has to be"
    assert not decision.launch
    assert len(decision.assign) == 2
    assert decided(9, *there, budget_usd=0.1, expected_s=1700.0).assign == (), "they end before that"


def test_one_that_was_told_to_end_sooner_is_not_told_twice_and_starts_nothing_it_has_no_time_for() -> None:
    told = dataclasses.replace(unit("i-1", 1, left_s=7200.0), sure_until=NOW + 300.0)
    assert decided(9, told, budget_usd=0.05, expected_s=10.0).extend == ()
    assert decided(9, told, budget_usd=0.05, expected_s=600.0).assign == ()
    assert not decided(9, told, budget_usd=0.05, expected_s=10.0).launch, "it may live longer yet"


def test_of_a_budget_that_is_spent_a_machine_keeps_what_it_takes_to_save_its_outputs() -> None:
    decision = decided(9, unit("i-1", 1), budget_usd=0.001, expected_s=300.0, lead_s=45.0)
    ((_, deadline),) = decision.extend
    assert NOW + 100 <= deadline <= NOW + 105
    assert decision.assign == ()
