"""What cells are expected to take, from those that were timed."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.expecting import Expectation, order


def seconds_of(params: dict[str, Any]) -> float:
    return float({"linear": 1.0, "forest": 30.0}[params["model"]] * params["n"] / 1000)


CELLS = [
    {"model": model, "n": n, "seed": s} for model in ("linear", "forest") for n in (10, 1000, 4000) for s in (1, 2)
]


def test_without_history_nothing_is_expected_and_cells_go_as_they_come() -> None:
    nothing = Expectation([])
    assert nothing.seconds({"n": 1}) is None
    assert nothing.mean_s is None
    assert order([(3, {}), (1, {}), (2, {})], nothing) == [3, 1, 2]


def test_a_cell_that_was_timed_takes_what_it_took() -> None:
    known = Expectation([({"a": 1}, 2.0), ({"a": 1}, 4.0), ({"a": 2}, 100.0)])
    assert known.seconds({"a": 1}) == pytest.approx(3.0)
    assert known.mean_s == pytest.approx(106 / 3)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_seconds_that_none_can_be_are_left_out(seconds: float) -> None:
    known = Expectation([({"a": 1}, seconds), ({"a": 1}, 2.0), ({"a": 2}, seconds)])
    assert known.seconds({"a": 1}) == known.mean_s == pytest.approx(2.0)
    assert known.seconds({"a": 2}) == pytest.approx(2.0)
    assert Expectation([({"a": 1}, seconds)]).mean_s is None


def test_what_was_never_run_together_is_put_together_from_its_parts() -> None:
    left_out = {"model": "forest", "n": 4000, "seed": 1}
    known = Expectation([(cell, seconds_of(cell)) for cell in CELLS if cell != left_out] * 3)
    assert known.seconds(left_out) == pytest.approx(seconds_of(left_out), rel=0.5)


def test_a_number_is_like_the_nearest_one_that_was_tried() -> None:
    known = Expectation([({"n": n}, float(n)) for n in (1, 10, 100)] * 20)
    assert known.seconds({"n": 90}) == known.seconds({"n": 1000}) == pytest.approx(100, rel=0.2)
    assert known.seconds({"n": 11.0}) == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("value", ["huge", None, [1, 2], {"a": 1}, True, float("nan"), 10**400])
def test_what_cannot_be_compared_is_expected_to_be_like_the_rest(value: Any) -> None:
    known = Expectation([({"n": "a"}, 1.0), ({"n": "b"}, 100.0)])
    assert known.seconds({"n": value, "other": value}) == pytest.approx(10.0)


def test_the_longest_goes_first() -> None:
    known = Expectation([(cell, seconds_of(cell)) for cell in CELLS])
    numbered = list(enumerate(CELLS))
    random.Random(0).shuffle(numbered)
    ordered = [seconds_of(CELLS[number]) for number in order(numbered, known)]
    assert ordered == sorted(ordered, reverse=True)


@given(
    st.lists(
        st.tuples(
            st.dictionaries(st.sampled_from("abc"), st.integers(0, 3) | st.sampled_from(["x", None, 0.5])),
            st.floats(0, 1e6),
        ),
        max_size=12,
    )
)
def test_any_history_gives_an_expectation_within_reason(history: list[tuple[dict[str, Any], float]]) -> None:
    known = Expectation(history)
    cells = [{"a": a, "b": b} for a, b in itertools.product((0, 7, "x"), (None, 0.5))]
    assert sorted(order(enumerate(cells), known)) == list(range(6))
    for cell in cells:
        expected = known.seconds(cell)
        assert (expected is None) == (not history)
        assert expected is None or 0 <= expected < 1e30
