"""What runs cost of the units that they share."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.costs import shares


def test_a_run_alone_pays_for_its_time_and_not_for_what_was_before_or_after() -> None:
    assert shares(3600.0, [("a", 100.0, 110.0)]) == {"a": 10.0}


def test_runs_side_by_side_pay_for_a_second_together() -> None:
    cost = shares(3600.0, [("a", 0.0, 10.0), ("b", 5.0, 15.0)])
    assert cost == {"a": pytest.approx(7.5), "b": pytest.approx(7.5)}


def test_a_run_that_came_back_pays_for_both_of_its_stays() -> None:
    assert shares(3600.0, [("a", 0.0, 1.0), ("a", 5.0, 7.0)]) == {"a": pytest.approx(3.0)}


def test_one_that_took_no_time_costs_nothing() -> None:
    assert shares(3600.0, [("a", 5.0, 5.0), ("b", 9.0, 3.0)]) == {}


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(0, 1000), st.integers(0, 100)).map(
            lambda each: (each[0], float(each[1]), float(each[1] + each[2]))
        ),
        max_size=20,
    )
)
def test_what_all_pay_is_what_the_unit_cost_while_anything_ran(stays: list[tuple[str, float, float]]) -> None:
    moments = sorted({moment for _, began, ended in stays for moment in (began, ended)})
    busy = sum(
        after - before
        for before, after in pairwise(moments)
        if any(began <= before and after <= ended for _, began, ended in stays)
    )
    cost = shares(3600.0, stays)
    assert sum(cost.values()) == pytest.approx(busy)
    assert all(usd >= 0 for usd in cost.values())
