"""Who builds an environment, who waits, and who gets it from whom."""

from __future__ import annotations

import random
from collections import Counter
from functools import reduce

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudrun.plan import spreading
from cloudrun.plan.spreading import (
    BUILDS_FAILED,
    COPIES_AT_ONCE,
    COPIES_FAILED,
    Build,
    Copy,
    GiveUp,
    Spread,
    Step,
    Wait,
    build_begins,
    build_ends,
    build_fails,
    copy_begins,
    copy_ends,
    copy_fails,
    leaves,
    next_step,
)


def built(*units: str, group: str = "g") -> Spread:
    """The first has built it, the others have copied it."""
    spread = build_ends(build_begins(Spread(), units[0]), units[0], group, sealed=True)
    return reduce(lambda one, unit: copy_ends(copy_begins(one, units[0]), units[0], unit, group), units[1:], spread)


def test_the_first_unit_builds_and_the_others_wait_for_it() -> None:
    assert next_step(Spread(), "g") == Build()
    assert next_step(build_begins(Spread(), "i-1"), "g") == Wait("i-1")


def test_what_is_built_is_copied() -> None:
    assert next_step(built("i-1"), "g") == Copy("i-1")


def test_a_builder_whose_machine_died_is_followed_by_the_next_one() -> None:
    begun = build_begins(Spread(), "i-1")
    assert next_step(build_fails(begun, "i-1", of_itself=False), "g") == Build()
    assert next_step(leaves(begun, "i-1"), "g") == Build()
    many = reduce(lambda one, unit: build_fails(build_begins(one, unit), unit, of_itself=False), "abcdef", Spread())
    assert next_step(many, "g") == Build(), "machines that die say nothing of the requirements"


def test_requirements_that_two_units_could_not_meet_are_tried_on_no_third() -> None:
    spread = Spread()
    for unit in range(BUILDS_FAILED):
        assert next_step(spread, "g") == Build()
        spread = build_fails(build_begins(spread, f"i-{unit}"), f"i-{unit}", of_itself=True)
    assert next_step(spread, "g") == GiveUp()


def test_an_environment_that_could_be_built_once_is_not_given_up() -> None:
    spread = built("i-1")
    for unit in range(BUILDS_FAILED + 1):
        spread = build_fails(spread, f"i-{unit + 2}", of_itself=True)
    assert next_step(leaves(spread, "i-1"), "g") == Build()


def test_the_source_with_the_fewest_copies_is_asked_and_none_for_too_many() -> None:
    spread = copy_begins(built("i-1", "i-2"), "i-1")
    assert next_step(spread, "g") == Copy("i-2")
    for _ in range(COPIES_AT_ONCE):
        spread = copy_begins(spread, "i-2")
    assert next_step(spread, "g") == Copy("i-1")
    spread = copy_begins(spread, "i-1")
    assert next_step(spread, "g") == Wait()
    assert next_step(copy_ends(spread, "i-1", "i-3", "g"), "g") == Copy("i-3"), "whoever has it passes it on"


def test_of_two_equal_sources_the_one_in_the_same_security_group_is_asked() -> None:
    spread = copy_ends(copy_begins(built("i-1", group="a"), "i-1"), "i-1", "i-2", "b")
    assert next_step(spread, "a") == Copy("i-1")
    assert next_step(spread, "b") == Copy("i-2")


def test_a_source_that_failed_is_asked_last_and_after_a_second_time_never() -> None:
    spread = copy_fails(copy_begins(built("i-1", "i-2"), "i-1"), "i-1")
    assert next_step(copy_begins(spread, "i-2"), "g") == Copy("i-2")
    spread = copy_fails(copy_begins(spread, "i-1"), "i-1")
    assert "i-1" not in spread.sources
    assert next_step(spread, "g") == Copy("i-2")


def test_where_no_copy_ever_arrives_every_unit_builds_its_own_at_once() -> None:
    spread = built("i-1")
    for _ in range(COPIES_FAILED):
        spread = copy_fails(spread, "i-1")
    assert next_step(spread, "g") == Build(alone=True)
    assert next_step(build_begins(spread, "i-2"), "g") == Build(alone=True)


def test_where_copies_have_arrived_a_failure_does_not_end_copying() -> None:
    spread = built("i-1", "i-2")
    for _ in range(COPIES_FAILED + 1):
        spread = copy_fails(spread, "i-9")
    assert next_step(spread, "g") == Copy("i-1")


def test_what_cannot_be_copied_is_built_everywhere() -> None:
    spread = build_ends(build_begins(Spread(), "i-1"), "i-1", "g", sealed=False)
    assert next_step(spread, "g") == Build(alone=True)


def test_a_unit_that_ends_is_no_source_and_its_copies_do_no_harm() -> None:
    spread = copy_begins(built("i-1"), "i-1")
    spread = leaves(spread, "i-1")
    assert next_step(spread, "g") == Build()
    assert next_step(copy_fails(spread, "i-1"), "g") == Build()
    assert next_step(copy_ends(spread, "i-1", "i-2", "g"), "g") == Copy("i-2")


def spread_over(units: int, fails: float, seed: int) -> tuple[int, Counter[str]]:
    """Play it with copies and builds that take one round each; returns the rounds, and how often what was done."""
    chance = random.Random(seed)
    spread, waiting = Spread(), [f"i-{number:04}" for number in range(units)]
    chance.shuffle(waiting)
    rounds, done = 0, Counter[str]()
    while waiting:
        rounds += 1
        assert rounds < 50 + 10 * units, "it comes to no end"
        at_work: list[tuple[str, Step]] = []
        for unit in list(waiting):
            step = next_step(spread, "g")
            assert not isinstance(step, GiveUp)
            if isinstance(step, Wait):
                continue
            if isinstance(step, Build) and not step.alone:
                spread = build_begins(spread, unit)
            elif isinstance(step, Copy):
                spread = copy_begins(spread, step.source)
                assert spread.sources[step.source].copies <= COPIES_AT_ONCE
            waiting.remove(unit)
            at_work.append((unit, step))
        assert at_work, "everybody waits for nobody"
        for unit, step in at_work:
            failed = chance.random() < fails
            done[type(step).__name__ + (" failed" if failed else "")] += 1
            if isinstance(step, Copy):
                spread = copy_fails(spread, step.source) if failed else copy_ends(spread, step.source, unit, "g")
                if failed:  # it builds its own
                    spread = build_ends(spread, unit, "g", sealed=True)
            elif failed:
                spread = build_fails(spread, unit, of_itself=False)
                waiting.append(unit)
            else:
                spread = build_ends(spread, unit, "g", sealed=True)
    return rounds, done


@pytest.mark.parametrize(("units", "rounds"), [(1, 1), (3, 2), (9, 3), (16, 4), (81, 5), (1000, 8)])
def test_the_rounds_grow_with_the_logarithm_of_the_units(units: int, rounds: int) -> None:
    assert spread_over(units, 0.0, 0) == (rounds, Counter(Build=1, Copy=units - 1) + Counter())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.floats(0.0, 0.9), st.integers(0, 10_000))
def test_every_unit_gets_it_whatever_fails(units: int, fails: float, seed: int) -> None:
    spread_over(units, fails, seed)


def test_nothing_is_changed_in_place() -> None:
    before = built("i-1")
    for change in (lambda: copy_begins(before, "i-1"), lambda: leaves(before, "i-1")):
        change()
        assert before == built("i-1")
    assert spreading.Spread() == Spread()
