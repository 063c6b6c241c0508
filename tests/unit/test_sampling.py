"""Samples: those of a seed are the same everywhere, a longer one begins with the shorter, and none has a cell twice."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.core.errors import UsageError
from cloudrun.plan.fingerprint import params_digest
from cloudrun.plan.grid import Grid, check_cells, make_grid
from cloudrun.plan.sampling import Distribution

SEEDS = st.integers(0, 2**70)
LISTS = st.dictionaries(st.sampled_from("abc"), st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True))
MIXED = {"alpha": {"loguniform": [1e-4, 0.1]}, "degree": {"randint": [1, 3]}, "loss": ["log", "hinge"], "seed": 7}


def sampled(document: Any, sample: int, seed: int = 0) -> Grid:
    return replace(make_grid(document), sample=sample, seed=seed)


@given(LISTS, st.integers(1, 70), SEEDS)
def test_lists_are_drawn_from_without_replacement(table: dict[str, list[int]], sample: int, seed: int) -> None:
    every = {params_digest(cell) for cell in make_grid(table).cells()}
    grid = sampled(table, sample, seed)
    cells = list(grid.cells())
    drawn = {params_digest(cell) for cell in cells}
    assert len(drawn) == len(cells) == len(grid) == min(sample, len(every))
    assert drawn <= every
    assert all(list(cell) == list(table) for cell in cells)


@given(SEEDS, st.integers(1, 20), st.integers(1, 20))
def test_a_longer_sample_begins_with_the_shorter(seed: int, short: int, more: int) -> None:
    for document in (MIXED, [MIXED, {"loss": ["hinge"]}], {"a": list(range(50)), "b": list(range(50))}):
        longer = list(islice(sampled(document, short + more, seed).cells(), short))
        assert list(sampled(document, short, seed).cells()) == longer


def test_the_cells_of_a_seed_are_these_on_every_computer() -> None:
    assert list(sampled({**MIXED, "x": {"normal": [0, 1]}, "y": {"uniform": [-1, 1]}}, 1, 42).cells()) == [
        {"alpha": 0.000668479287, "degree": 3, "loss": "log", "seed": 7, "x": 0.0481558073, "y": 0.010710576206724776}
    ]
    assert list(sampled({"a": range(10), "b": range(10)}, 3, 42).cells()) == [
        {"a": 3, "b": 1},
        {"a": 1, "b": 0},
        {"a": 2, "b": 7},
    ]
    assert list(sampled(MIXED, 5, 1).cells()) != list(sampled(MIXED, 5, 2).cells())


def test_a_sample_of_more_cells_than_memory_holds_is_drawn() -> None:
    grid = sampled({f"p{number}": list(range(100)) for number in range(20)} | {"n": {"randint": [0, 10**30]}}, 50)
    cells = list(grid.cells())
    assert len(grid) == 50
    assert len({cell["n"] for cell in cells}) == 50
    assert max(cell["n"] for cell in cells) > 10**28


def test_every_cell_is_as_likely_as_any_other() -> None:
    counts = dict.fromkeys(range(6), 0)
    for seed in range(3000):
        for cell in sampled({"a": range(6)}, 2, seed).cells():
            counts[cell["a"]] += 1
    # 6000 draws of six: 1000 each, with a deviation of 26
    assert all(abs(count - 1000) < 6 * 26 for count in counts.values())


def test_tables_take_part_until_they_have_no_more() -> None:
    cells = list(sampled([{"kernel": "linear"}, {"kernel": "rbf", "gamma": {"uniform": [0, 1]}}], 200, 3).cells())
    assert [cell["kernel"] for cell in cells].count("linear") == 1
    assert len(cells) == 200


@given(SEEDS)
def test_values_lie_where_the_distribution_does(seed: int) -> None:
    document = {
        "u": {"uniform": [-2, 3]},
        "l": {"loguniform": [1e-4, 1e-1]},
        "n": {"normal": [5, 0.5]},
        "i": {"randint": [-1, 1]},
        "c": {"choice": ["x", ["y"], None]},
    }
    for cell in sampled(document, 20, seed).cells():
        assert -2 <= cell["u"] <= 3
        assert 1e-4 <= cell["l"] <= 1e-1
        assert abs(cell["n"] - 5) < 0.5 * 8.6
        assert cell["i"] in {-1, 0, 1}
        assert cell["c"] in ["x", ["y"], None]


@pytest.mark.parametrize(
    ("distribution", "mean", "deviation", "of"),
    [
        ({"uniform": [2, 4]}, 3, 2 / math.sqrt(12), float),
        ({"loguniform": [1e-3, 1e1]}, -1, 4 / math.sqrt(12), math.log10),
        ({"normal": [10, 3]}, 10, 3, float),
    ],
)
def test_means_and_deviations_are_those_of_the_distribution(
    distribution: dict[str, Any], mean: float, deviation: float, of: Any
) -> None:
    drawn = [of(cell["x"]) for cell in sampled({"x": distribution}, 20_000, 1).cells()]
    found = sum(drawn) / len(drawn)
    spread = math.sqrt(sum((each - found) ** 2 for each in drawn) / len(drawn))
    assert found == pytest.approx(mean, abs=5 * deviation / math.sqrt(len(drawn)))
    assert spread == pytest.approx(deviation, rel=0.05)


def test_a_cell_that_was_drawn_from_two_tables_is_named() -> None:
    with pytest.raises(UsageError, match=r"cells \d and \d of this grid are the same: a=1"):
        check_cells(sampled([{"a": [1]}, {"a": [1]}, {"a": {"uniform": [0, 1]}}], 9))
    check_cells(sampled(MIXED, 100))


@pytest.mark.parametrize(
    "written",
    [
        {"unifrom": [0, 1]},
        {"uniform": [1, 0]},
        {"uniform": [0, 0]},
        {"uniform": [0]},
        {"uniform": 3},
        {"uniform": [0, math.inf]},
        {"uniform": [0, True]},
        {"uniform": [-1e308, 1e308]},
        {"uniform": [0, 10**400]},
        {"loguniform": [0, 1]},
        {"normal": [0, 0]},
        {"normal": [1e308, 1e308]},
        {"randint": [0, 1.5]},
        {"randint": [2, 1]},
        {"choice": []},
        {"choice": [1, 1]},
        {"choice": [math.nan]},
        {"uniform": ["a", "b"]},
        {},
        {"uniform": [0, 1], "normal": [0, 1]},
        {3: [0, 1]},
    ],
)
def test_what_is_no_distribution_is_refused_by_the_parameters_name(written: dict[Any, Any]) -> None:
    with pytest.raises(UsageError, match="alpha") as refused:
        make_grid({"alpha": written})
    assert refused.value.next_step


def test_one_integer_is_a_range_too() -> None:
    assert list(Distribution("randint", (3, 3)).levels or ()) == [3]


@pytest.mark.parametrize("kind", ["uniform", "randint"])
def test_a_distribution_without_a_sample_is_refused(kind: str) -> None:
    grid = make_grid({"alpha": {kind: [0, 1]}})
    for ask in (len, Grid.cells, check_cells):
        with pytest.raises(UsageError, match="alpha is a distribution") as refused:
            ask(grid)  # type: ignore[operator]
        assert "--sample" in refused.value.next_step


@pytest.mark.parametrize(("sample", "seed"), [(0, 0), (-1, 0), (1, -1)])
def test_no_cells_and_seeds_below_zero_are_refused(sample: int, seed: int) -> None:
    with pytest.raises(UsageError):
        sampled({"a": [1]}, sample, seed)


@given(st.sampled_from([MIXED, [MIXED, {"a": [1, 2]}]]), st.integers(1, 9), SEEDS)
def test_a_sample_survives_being_written_down(document: Any, sample: int, seed: int) -> None:
    grid = sampled(document, sample, seed)
    assert Grid.from_json(grid.to_json()) == grid
