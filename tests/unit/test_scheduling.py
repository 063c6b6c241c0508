"""What the planner decides, one case at a time: launching, assigning, draining, and what waits ahead of its turn."""

from __future__ import annotations

import dataclasses

import pytest

from cloudrun.agent import power
from cloudrun.grids import grid
from cloudrun.plan import scheduling
from cloudrun.plan.scheduling import Backlog, Decision, UnitView, decide
from tests.planning import LIMITS, NOW, decided, limits, unit

# -- launching ---------------------------------------------------------------------------------------------------------


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


# -- assigning ---------------------------------------------------------------------------------------------------------


def test_a_unit_gets_the_next_cell_only_where_that_one_fits() -> None:
    soon = unit("i-1", left_s=600.0)
    assert decide(NOW, Backlog(9, 0, 60.0), [soon], LIMITS, 0.0).assign == (("i-1", 2),)
    assert decide(NOW, Backlog(9, 0, 60.0, next_s=900.0), [soon], LIMITS, 0.0).assign == ()
    assert decide(NOW, Backlog(9, 0, 60.0, next_s=500.0), [soon], LIMITS, 0.0).assign == (("i-1", 2),)


def test_a_cell_that_seems_too_long_for_any_unit_is_tried_on_a_new_one() -> None:
    new = UnitView("i-1", "ready", 2, 0, NOW - 60.0, NOW - 60.0 + LIMITS.deadline_s, 0.1)
    endless = Backlog(9, 0, 60.0, next_s=1e9)
    assert decide(NOW, endless, [new], LIMITS, 0.0).assign == (("i-1", 2),)
    assert decide(NOW, endless, [], LIMITS, 0.0).launch > 0


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


# -- draining ----------------------------------------------------------------------------------------------------------


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


def test_a_unit_that_works_is_not_drained_because_it_has_not_let_us_in_yet() -> None:
    adopted = unit("i-1", 1, "launching")
    decision = decided(0, adopted)
    assert decision.drain == ()


# -- ahead of their turn -----------------------------------------------------------------------------------------------


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
