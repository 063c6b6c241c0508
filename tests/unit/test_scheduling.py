"""What the planner decides, one case at a time, and how near whole grids come to what is possible."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudrun.agent import power
from cloudrun.grids import grid
from cloudrun.plan import budget, scheduling
from cloudrun.plan.scheduling import Backlog, Decision, Limits, UnitView, decide
from tests.simulated import Simulated, World, play, varied

NOW = 1_000_000.0
LIMITS = Limits(max_units=8, slots=2, usd_per_hour=0.1, boot_s=60.0, deadline_s=4 * 3600.0)


def limits(**changes: Any) -> Limits:
    return dataclasses.replace(LIMITS, **changes)


def unit(name: str, busy: int = 0, state: Any = "ready", *, age_s: float = 100.0, left_s: float = 7200.0) -> UnitView:
    return UnitView(name, state, 2, busy, NOW - age_s, NOW + left_s, 0.1)


def decided(queued: int, *units: UnitView, spent: float = 0.0, **changes: Any) -> Decision:
    expected_s = changes.pop("expected_s", None)
    words = {word: changes.pop(word) for word in ("stopped", "barred") if word in changes}
    running = sum(each.busy for each in units)
    return decide(NOW, Backlog(queued, running, expected_s), units, limits(**changes), spent, **words)


def test_a_unit_gets_the_next_cell_only_where_that_one_fits() -> None:
    soon = unit("i-1", left_s=600.0)
    assert decide(NOW, Backlog(9, 0, 60.0), [soon], LIMITS, 0.0).assign == (("i-1", 2),)
    assert decide(NOW, Backlog(9, 0, 60.0, next_s=900.0), [soon], LIMITS, 0.0).assign == ()
    assert decide(NOW, Backlog(9, 0, 60.0, next_s=500.0), [soon], LIMITS, 0.0).assign == (("i-1", 2),)


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


def test_a_cell_that_seems_too_long_for_any_unit_is_tried_on_a_new_one() -> None:
    new = UnitView("i-1", "ready", 2, 0, NOW - 60.0, NOW - 60.0 + LIMITS.deadline_s, 0.1)
    endless = Backlog(9, 0, 60.0, next_s=1e9)
    assert decide(NOW, endless, [new], LIMITS, 0.0).assign == (("i-1", 2),)
    assert decide(NOW, endless, [], LIMITS, 0.0).launch > 0


# -- launching -------------------------------------------------------------------------------------------------------


def test_as_many_units_are_launched_as_have_cells_for_their_slots() -> None:
    assert decided(5).launch == 3


def test_never_more_units_than_allowed_also_while_some_are_ending() -> None:
    assert decided(500).launch == 8
    assert decided(500, unit("i-1", state="draining"), unit("i-2", 2), max_units=4).launch == 2
    assert decided(500, *(unit(f"i-{n}", 2) for n in range(9))).launch == 0


def test_units_on_their_way_are_counted() -> None:
    assert decided(5, unit("i-1", state="launching", age_s=10), unit("i-2", state="launching", age_s=10)).launch == 1


def test_what_units_on_their_way_will_have_begun_needs_no_other() -> None:
    coming = unit("i-1", state="launching", age_s=10)
    assert decided(2, coming, expected_s=30.0, min_units=2).launch == 0
    assert decided(4, coming, expected_s=30.0, min_units=2).launch == 1


def test_a_unit_that_does_not_come_is_not_waited_for() -> None:
    assert decided(2, unit("i-1", state="launching", age_s=179)).launch == 0
    assert decided(2, unit("i-1", state="launching", age_s=181)).launch == 1


def test_a_unit_that_would_be_ready_after_the_queue_is_empty_is_not_launched() -> None:
    assert decided(20, unit("i-1", 2), expected_s=5.0).launch == 0  # 2 slots x 60 s / 5 s: 24 by then


def test_a_unit_works_at_least_as_long_as_it_boots() -> None:
    assert decided(1000, expected_s=1.0, max_units=1000).launch == 8  # 1000 s of work, 2 x 60 s a unit
    assert decided(1, expected_s=1.0).launch == 1


def test_who_asks_for_units_gets_them_as_far_as_there_are_cells() -> None:
    assert decided(1000, expected_s=1.0, min_units=20, max_units=20).launch == 20
    assert decided(3, expected_s=1.0, min_units=20, max_units=20).launch == 2


def test_where_launching_is_barred_what_runs_goes_on() -> None:
    decision = decided(5, unit("i-1", 1), barred="the account may have no more")
    assert (decision.launch, decision.assign, decision.ended) == (0, (("i-1", 1),), False)
    assert decision.why == "the account may have no more"
    assert decided(5, barred="the account may have no more").ended


def test_a_unit_that_may_not_live_for_one_cell_is_not_launched() -> None:
    decision = decided(5, expected_s=3600.0, deadline_s=1800.0)
    assert decision.launch == 0
    assert decision.ended
    assert "1800 s" in decision.why


# -- assigning -------------------------------------------------------------------------------------------------------


def test_the_unit_with_the_fewest_cells_gets_the_next() -> None:
    idle, half = unit("i-1"), unit("i-2", 1)
    assert decided(1, half, idle).assign == (("i-1", 1),)
    assert dict(decided(2, half, idle).assign).get("i-1") in (1, 2)
    assert decided(9, half, idle).assign == (("i-2", 1), ("i-1", 2))


def test_only_units_that_are_ready_get_cells() -> None:
    assert decided(9, unit("i-1", state="launching"), unit("i-2", state="draining")).assign == ()


def test_no_cell_is_started_on_a_unit_whose_time_is_up_before_it_ends() -> None:
    near = unit("i-1", left_s=100)
    assert decided(1, near, expected_s=101.0).assign == ()
    assert decided(1, near, expected_s=101.0).drain == ("i-1",)
    assert decided(1, near, expected_s=99.0).assign == (("i-1", 1),)


# -- draining --------------------------------------------------------------------------------------------------------


def test_a_unit_with_nothing_to_do_is_ended_at_once_and_one_with_a_cell_is_not() -> None:
    assert decided(0, unit("i-1"), unit("i-2", 1)).drain == ("i-1",)


def test_a_unit_that_boots_for_an_empty_queue_is_ended() -> None:
    assert decided(1, unit("i-1"), unit("i-2", state="launching")).drain == ("i-2",)
    assert decided(3, unit("i-1"), unit("i-2", state="launching", age_s=1)).drain == ()


def test_after_a_stop_nothing_is_started_and_what_runs_may_end() -> None:
    decision = decided(9, unit("i-1"), unit("i-2", 1), unit("i-3", state="launching"), stopped="you asked for it")
    assert decision == Decision(drain=("i-1", "i-3"), why="you asked for it")
    assert decided(9, stopped="you asked for it").ended


def test_it_has_ended_when_no_unit_is_left_and_no_cell_waits() -> None:
    assert decided(0).ended
    assert not decided(0, unit("i-1", state="draining")).ended
    assert not decided(1).ended
    assert not decided(1, max_units=0).ended  # a launch that only has to wait


# -- money -----------------------------------------------------------------------------------------------------------


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


# -- ahead of their turn ---------------------------------------------------------------------------------------------


def test_of_short_cells_as_many_wait_on_a_unit_as_it_has_slots() -> None:
    decision = decided(20, unit("i-1"), unit("i-2", 1), expected_s=1.0)
    assert dict(decision.assign) == {"i-1": 2, "i-2": 1}
    assert dict(decision.ahead) == {"i-1": 2, "i-2": 2}
    assert dict(decided(20, unit("i-1", 3), expected_s=1.0).ahead) == {"i-1": 1}, "one of them waits there already"
    assert decided(20, unit("i-1", 4), expected_s=1.0).ahead == ()


def test_nothing_waits_on_a_unit_where_cells_take_long_or_nobody_knows_how_long() -> None:
    for expected_s in (scheduling.SHORT_S + 1, None):
        decision = decided(20, unit("i-1"), expected_s=expected_s)
        assert (dict(decision.assign), decision.ahead) == ({"i-1": 2}, ())


def test_the_last_cells_are_left_to_whoever_has_a_slot_first() -> None:
    units = [unit("i-1"), unit("i-2")]
    assert decided(8, *units, expected_s=1.0).ahead == (), "four begin, and four are for the next four slots"
    assert sum(count for _, count in decided(10, *units, expected_s=1.0).ahead) == 2


def test_nothing_more_waits_where_what_waits_is_held_up_or_the_unit_soon_ends() -> None:
    assert decided(20, dataclasses.replace(unit("i-1"), held_up=True), expected_s=1.0).ahead == ()
    short = unit("i-1", left_s=scheduling.PATIENCE_S)
    decision = decided(20, short, expected_s=1.0)
    assert (dict(decision.assign), decision.ahead) == ({"i-1": 2}, ())


def test_what_waits_behind_a_long_cell_comes_back_as_soon_as_another_unit_has_a_slot() -> None:
    held = dataclasses.replace(unit("i-1", 3), waiting=1)
    decision = decided(0, held, unit("i-2"), expected_s=1.0)
    assert (decision.recall, decision.drain) == (("i-1",), ()), "the other one is to take it over"
    assert decided(0, held, unit("i-2", 2), expected_s=1.0).recall == ()
    assert decided(9, held, unit("i-2"), expected_s=1.0).recall == (), "there is other work for that slot"
    assert decided(0, unit("i-1", 2), unit("i-2"), expected_s=1.0).drain == ("i-2",)


def test_a_unit_with_a_long_queue_of_its_own_keeps_no_other_from_being_drained() -> None:
    decision = decided(0, unit("i-1", 50), unit("i-2"), expected_s=1.0)
    assert (decision.recall, decision.drain) == ((), ("i-2",))


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


# -- whole grids -----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    cells=st.integers(1, 120),
    units=st.integers(1, 8),
    slots=st.integers(1, 4),
    sigma=st.sampled_from([0.0, 0.5, 1.5]),
    learn=st.booleans(),
)
def test_a_grid_ends_no_later_than_list_scheduling_on_units_that_took_as_long_to_boot(
    seed: int, cells: int, units: int, slots: int, sigma: float, learn: bool
) -> None:
    """Graham's bound, with every slot free from the slowest boot on, and one tick lost a cell in a row."""
    rng = random.Random(seed)
    draw, tick_s = varied(rng, 40.0, sigma), 0.25
    seconds = [draw() for _ in range(cells)]
    boots = [rng.uniform(20.0, 90.0) for _ in range(units)]
    grid = Simulated(cells, limits(min_units=units, max_units=units, slots=slots), learn=learn)
    remaining = iter(boots)
    world = World(lambda cell: seconds[cell], lambda: next(remaining), tick_s=tick_s, terminate_s=0.0)
    took = play(grid, world, most_ticks=100_000)
    used = min(units, -(-cells // slots))
    rounds = -(-cells // (used * slots)) + 1
    assert grid.launched == used
    bound = max(boots) + sum(seconds) / (used * slots) + max(seconds) + tick_s * (cells if sigma else rounds + 2)
    assert took <= bound
    assert len(grid.final) == cells


@pytest.mark.parametrize("mean_s", [1.0, 20.0, 200.0])
def test_growing_with_the_queue_takes_at_most_twice_as_long_as_any_number_of_units_and_half_is_worked_in(
    mean_s: float,
) -> None:
    rng = random.Random(1)
    grid = Simulated(3000, limits(max_units=500), expected_s=mean_s, learn=True)
    boot_s = LIMITS.boot_s
    took = play(grid, World(varied(rng, mean_s, 0.2), lambda: boot_s, tick_s=0.1), most_ticks=100_000)
    ideal_s = boot_s + max(mean_s, 3000 * mean_s / (500 * 2))
    paid_slot_s = grid.spent_usd / LIMITS.usd_per_hour * 3600 * LIMITS.slots
    assert took <= 2.05 * ideal_s + 2 * mean_s  # a tick is lost a cell
    assert grid.cells_s >= 0.45 * paid_slot_s


def test_a_grid_that_its_budget_just_pays_for_is_done_within_it() -> None:
    rng = random.Random(3)
    work_h = 200 * 60.0 / 2 / 3600  # of units with two slots
    grid = Simulated(200, limits(budget_usd=1.35 * 0.1 * work_h, max_units=8), learn=True)
    play(grid, World(varied(rng, 60.0), varied(rng, 60.0, 0.2)), most_ticks=100_000, look=grid.check)
    assert set(grid.final.values()) == {"done"}
    assert len(grid.final) == 200


def test_what_a_unit_keeps_for_saving_outputs_is_what_its_agent_keeps() -> None:
    assert (scheduling.LEAD_SHARE, grid.SAVING_S) == (power.SHARE, power.SAVING_S)


@pytest.mark.parametrize(("left_s", "given"), [(30.0, 0), (36.0, 1)])
def test_no_cell_is_started_that_its_unit_would_end_to_save_what_it_made(left_s: float, given: int) -> None:
    now, cell_s = 1000.0, 28.0
    allowed = limits(max_units=1, slots=1, boot_s=1.0, deadline_s=70.0, lead_s=45.0)
    old = UnitView("i-1", "ready", 1, 0, now + left_s - 70.0, now + left_s, 0.1)
    decision = decide(now, Backlog(1, 0, cell_s), [old], allowed, 0.0)
    assert sum(count for _, count in decision.assign) == given


def test_a_life_is_long_enough_for_boot_work_and_saving() -> None:
    allowed = limits(boot_s=30.0, lead_s=45.0)
    life_s = scheduling.least_life_s(allowed, 600.0)
    fresh = UnitView("i-1", "ready", 1, 0, 0.0, life_s, 0.1)
    assert scheduling._lasting(29.9, 600.0, [fresh], {"i-1": life_s}, allowed)
    assert not scheduling._lasting(31.0, 600.0, [fresh], {"i-1": life_s}, allowed)


def test_a_unit_that_works_is_not_drained_because_it_has_not_let_us_in_yet() -> None:
    adopted = unit("i-1", 1, "launching")
    decision = decided(0, adopted)
    assert decision.drain == ()


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
