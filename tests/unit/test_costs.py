"""What runs cost of the machines that they share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.costs import Bill, Stay, machine_cost, usd_text

USD_PER_HOUR = 3600.0  # a dollar a second


def shares(*stays: Stay, ended: float = 1000.0) -> dict[str, float]:
    return dict(machine_cost(USD_PER_HOUR, 0.0, ended, stays).shares)


def test_a_run_alone_pays_for_its_time_and_the_rest_is_overhead() -> None:
    cost = machine_cost(USD_PER_HOUR, 0.0, 100.0, [Stay("a", 20.0, 30.0)])
    assert cost.shares == {"a": 10.0}
    assert (cost.usd, cost.overhead_usd) == (100.0, 90.0)


def test_a_machine_is_billed_for_a_minute_at_least() -> None:
    cost = machine_cost(USD_PER_HOUR, 0.0, 5.0, [Stay("a", 1.0, 4.0)])
    assert (cost.usd, cost.shares, cost.overhead_usd) == (60.0, {"a": 3.0}, 57.0)


def test_while_it_is_stopped_it_costs_nothing() -> None:
    assert machine_cost(USD_PER_HOUR, 0.0, 1000.0, [], stopped_s=900.0).usd == 100.0


def test_runs_side_by_side_share_the_seconds_by_the_time_they_took() -> None:
    assert shares(Stay("a", 0.0, 10.0), Stay("b", 0.0, 30.0)) == {"a": pytest.approx(7.5), "b": pytest.approx(22.5)}


def test_what_waited_to_be_fetched_is_not_charged_for_the_waiting() -> None:
    assert shares(Stay("a", 0.0, 500.0, took_s=10.0)) == {"a": pytest.approx(10.0)}


def test_a_run_that_came_back_pays_for_both_of_its_stays() -> None:
    assert shares(Stay("a", 0.0, 1.0), Stay("a", 5.0, 7.0)) == {"a": pytest.approx(3.0)}


def test_one_that_took_no_time_or_was_never_there_costs_nothing() -> None:
    assert shares(Stay("a", 5.0, 5.0), Stay("b", 9.0, 3.0), Stay("c", 2000.0, 3000.0)) == {}


@given(
    st.lists(
        st.builds(
            lambda run, began, length, took: Stay(run, began, began + length, took),
            st.sampled_from("abcd"),
            st.floats(-10, 1000),
            st.floats(0, 100),
            st.none() | st.floats(0.001, 200),
        ),
        max_size=20,
    ),
    st.floats(0, 500),
)
def test_shares_and_overhead_are_always_what_the_machine_cost(stays: list[Stay], ended: float) -> None:
    cost = machine_cost(USD_PER_HOUR, 0.0, ended, stays)
    assert all(usd >= 0 for usd in cost.shares.values())
    assert sum(cost.shares.values()) + cost.overhead_usd == pytest.approx(cost.usd)


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0.0, "$0"),
        (0.0004, "$0.0004"),
        (0.00000123, "$0.00000123"),
        (0.004179, "$0.00418"),
        (0.01, "$0.01"),
        (0.0999, "$0.10"),
        (0.1, "$0.10"),
        (0.05, "$0.05"),
        (12.3456, "$12.35"),
        (12345.6, "$12,345.60"),
    ],
)
def test_an_amount_never_rounds_to_nothing(usd: float, text: str) -> None:
    assert usd_text(usd) == text


def test_a_bill_says_what_it_counts() -> None:
    assert str(Bill(1, 0.0034, 0.0021)) == "$0.0034 at list prices: runs $0.0021 + overhead $0.0013"
    sandbox = str(Bill(1, 0.0034, 0.0021, is_charged=False, is_over=False))
    assert sandbox.startswith("$0.0034 so far at list prices: runs $0.0021 + overhead $0.0013")
    assert "what EC2 would have charged" in sandbox
    assert str(Bill(1, 0.0, 0.0, ("x9.huge",))) == "no list price is known for x9.huge"
    assert "x9.huge" in str(Bill(2, 1.0, 0.5, ("x9.huge",)))
