"""Deadlines as money: what units could cost at worst, and who may live for how long."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan import budget
from cloudrun.plan.scheduling import UnitView

NOW = 1_000_000.0


def unit(name: str = "i-1", *, life_s: float = 3600.0, age_s: float = 0.0, usd_per_hour: float = 0.1) -> UnitView:
    """One that was asked for `age_s` ago and lives `life_s` from now."""
    return UnitView(name, "ready", 2, 0, NOW - age_s, NOW + life_s, usd_per_hour)


units = st.lists(
    st.builds(
        unit,
        life_s=st.floats(-100, 5000),
        age_s=st.floats(0, 5000),
        usd_per_hour=st.sampled_from([0.0, 0.0832, 0.1008, 1.006]),
    ),
    max_size=6,
).map(lambda drawn: [dataclasses.replace(each, unit_id=f"i-{number}") for number, each in enumerate(drawn)])


def test_a_unit_costs_until_a_minute_after_its_deadline() -> None:
    assert budget.worst_usd(NOW, [unit(age_s=1740, life_s=1800)], 0.5) == pytest.approx(0.5 + 0.1)


def test_a_unit_that_should_be_gone_goes_on_costing() -> None:
    assert budget.worst_usd(NOW, [unit(age_s=7200, life_s=-3600)], 0.0) == pytest.approx(0.2)


def test_a_unit_that_might_boot_after_its_deadline_costs_its_grace() -> None:
    assert budget.worst_usd(NOW, [unit(life_s=10, usd_per_hour=1.0)], 0.0) == pytest.approx(120 / 3600)


def test_less_than_a_minute_costs_a_minute() -> None:
    assert budget.cost_usd(0.6, 1.0) == budget.cost_usd(0.6, 60.0) == pytest.approx(0.01)


def test_without_a_price_or_a_budget_a_unit_lives_as_long_as_it_may() -> None:
    assert budget.lease(NOW, 0.0, 0.0, deadline_s=900, least_s=60) == NOW + 899
    assert budget.lease(NOW, float("inf"), 0.1, deadline_s=900, least_s=60) == NOW + 899


def test_a_unit_whose_money_ends_before_it_could_work_gets_no_deadline() -> None:
    assert budget.lease(NOW, 0.1, 0.1, deadline_s=7200, least_s=3541) is None
    assert budget.lease(NOW, 0.1, 0.1, deadline_s=7200, least_s=3539) == NOW + 3539


@given(
    units=units,
    spent=st.floats(0, 1),
    more=st.floats(0, 2),
    price=st.sampled_from([0.0832, 0.1008, 1.006]),
    deadline_s=st.floats(60, 20_000),
    least_s=st.floats(1, 2000),
    count=st.integers(1, 500),
)
def test_no_lease_passes_the_budget(
    units: list[UnitView],
    spent: float,
    more: float,
    price: float,
    deadline_s: float,
    least_s: float,
    count: int,
) -> None:
    worst = budget.worst_usd(NOW, units, spent)
    deadline = budget.lease(NOW, more, price, deadline_s=deadline_s, least_s=least_s, count=count)
    if deadline is not None:
        new = [UnitView(f"i-new{number}", "launching", 1, 0, NOW, deadline, price) for number in range(count)]
        assert budget.worst_usd(NOW, [*units, *new], spent) <= worst + more + 1e-9
        assert NOW + least_s - 2 <= deadline <= NOW + deadline_s


@given(free=st.floats(0, 2), price=st.sampled_from([0.0832, 1.006]), life_s=st.floats(1, 20_000))
def test_as_many_as_are_affordable_get_that_lease_and_one_more_does_not(
    free: float, price: float, life_s: float
) -> None:
    count = budget.affordable(free, price, life_s)
    assert count is not None
    if count:
        assert budget.lease(NOW, free, price, deadline_s=1e9, least_s=life_s, count=count) is not None
    assert budget.lease(NOW, free, price, deadline_s=1e9, least_s=life_s + 1, count=count + 1) is None


@given(
    units=units,
    free=st.floats(0, 1),
    need_s=st.floats(0, 5000),
    deadline_s=st.floats(60, 20_000),
    soon_s=st.floats(0, 1000),
)
def test_moved_deadlines_cost_no_more_than_what_is_free(
    units: list[UnitView], free: float, need_s: float, deadline_s: float, soon_s: float
) -> None:
    moved = dict(budget.extensions(NOW, units, free, need_until=NOW + need_s, deadline_s=deadline_s, soon_s=soon_s))
    before = budget.worst_usd(NOW, units, 0.0)
    after = [dataclasses.replace(each, deadline=moved.get(each.unit_id, each.deadline)) for each in units]
    assert budget.worst_usd(NOW, after, 0.0) <= before + free + 1e-9
    for old, new in zip(units, after, strict=True):
        if old.unit_id in moved:
            assert NOW < old.deadline < NOW + soon_s
            assert old.deadline + budget.STEP_S <= new.deadline <= min(NOW + need_s, old.requested_at + deadline_s)


def test_free_money_is_shared_by_those_whose_time_ends() -> None:
    one, two, later = unit("i-1", life_s=100), unit("i-2", life_s=200), unit("i-3", life_s=3000)
    moved = budget.extensions(NOW, [two, later, one], 0.2, need_until=NOW + 9e9, deadline_s=9e9, soon_s=300)
    assert moved == (("i-1", NOW + 100 + 3599), ("i-2", NOW + 200 + 3600))


def test_what_one_does_not_need_goes_to_the_next() -> None:
    old = unit("i-1", age_s=7000, life_s=100)
    moved = budget.extensions(NOW, [old, unit("i-2", life_s=200)], 0.2, need_until=9e9, deadline_s=7300, soon_s=300)
    assert dict(moved)["i-1"] < NOW + 300
    assert dict(moved)["i-2"] > NOW + 6900


@given(units=units, budget_usd=st.floats(0, 5), least_s=st.floats(0, 600))
def test_nearer_deadlines_cost_no_more_than_a_smaller_budget_as_far_as_that_goes(
    units: list[UnitView], budget_usd: float, least_s: float
) -> None:
    def worst(those: list[UnitView]) -> float:  # without the least that each costs, which no deadline makes less
        return sum(each.usd_per_hour / 3600 * max(0.0, each.deadline - NOW) for each in those)

    moved = dict(budget.reductions(NOW, units, worst(units) - budget_usd, least_s=least_s))
    after = [dataclasses.replace(each, deadline=moved.get(each.unit_id, each.deadline)) for each in units]
    could_go = [each for each in after if each.deadline > NOW + least_s + 1]
    assert worst(after) <= budget_usd + 1e-9 or not could_go
    for old, new in zip(units, after, strict=True):
        assert new.deadline <= old.deadline
        assert new.deadline >= min(old.deadline, NOW + least_s - 2)
    if len(set(moved.values())) > 1:  # only where each gives up what is worth a call
        assert max(moved.values()) - min(moved.values()) <= budget.STEP_S + 1
