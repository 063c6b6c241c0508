"""Grids: the cells of ParameterGrid in the order they were written, counted without making them, none of them twice."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import ParameterGrid

from cloudrun.core.errors import UsageError
from cloudrun.plan.fingerprint import params_digest
from cloudrun.plan.grid import Grid, check_cells, check_size, cross, make_grid

NAMES = st.sampled_from(["alpha", "l1_ratio", "degree", "features", "π"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)
TABLES = st.dictionaries(NAMES, st.lists(VALUES, min_size=1, max_size=4, unique_by=json.dumps), max_size=4)


def digests(cells: Any) -> set[str]:
    return {params_digest(cell) for cell in cells}


@given(TABLES)
def test_a_table_is_crossed_as_scikit_learn_does(table: dict[str, list[Any]]) -> None:
    cells = list(make_grid(table).cells())
    expected = list(ParameterGrid(table))
    assert digests(cells) == digests(expected)
    assert len(cells) == len(expected) == len(make_grid(table)) == len(digests(cells))


@given(st.lists(TABLES, min_size=1, max_size=4))
def test_a_list_of_tables_is_one_after_the_other(tables: list[dict[str, list[Any]]]) -> None:
    grid = make_grid(tables)
    cells = list(grid.cells())
    assert cells == [cell for table in tables for cell in make_grid(table).cells()]
    assert digests(cells) == digests(ParameterGrid(tables))
    assert len(grid) == len(cells)
    assert Grid.from_json(json.loads(json.dumps(grid.to_json(), sort_keys=True))) == grid


def test_the_last_parameter_changes_fastest() -> None:
    cells = list(make_grid({"b": [1, 2], "a": ["x", "y"]}).cells())
    assert cells == [{"b": 1, "a": "x"}, {"b": 1, "a": "y"}, {"b": 2, "a": "x"}, {"b": 2, "a": "y"}]
    assert [list(cell) for cell in cells] == [["b", "a"]] * 4


def test_what_is_no_list_is_one_value_and_a_list_in_a_list_too() -> None:
    grid = make_grid({"a": "x,y", "b": 7, "c": None, "d": [[1, 2], {"e": 3}], "f": (True,)})
    assert list(grid.cells()) == [
        {"a": "x,y", "b": 7, "c": None, "d": value, "f": True} for value in ([1, 2], {"e": 3})
    ]


def test_numpys_arrays_and_numbers_are_lists_and_numbers() -> None:
    grid = make_grid({"alpha": np.logspace(-2, 0, 3), "n": [np.int64(3)], "m": np.float32(0.5), "k": range(2)})
    assert json.loads(json.dumps(list(grid.cells()))) == [
        {"alpha": alpha, "n": 3, "m": 0.5, "k": k} for alpha in (0.01, 0.1, 1.0) for k in (0, 1)
    ]


def test_no_parameters_are_one_cell() -> None:
    assert list(make_grid({}).cells()) == [{}]
    assert list(make_grid([{}, {"a": [1, 2]}]).cells()) == [{}, {"a": 1}, {"a": 2}]


def test_any_number_of_cells_is_counted_without_making_them() -> None:
    grid = make_grid({f"p{number}": list(range(100)) for number in range(20)})
    assert grid.size == 10**40
    assert list(islice(grid.cells(), 2)) == [
        dict.fromkeys(grid.tables[0], 0),
        {**dict.fromkeys(grid.tables[0], 0), "p19": 1},
    ]
    check_cells(grid)
    with pytest.raises(UsageError, match=r"some 10\^40 cells") as refused:
        check_size(grid, yes=False)
    assert "--yes" in refused.value.next_step
    check_size(grid, yes=True)


def test_a_hundred_thousand_cells_are_nobodys_accident() -> None:
    check_size(make_grid({"a": range(100), "b": range(1000)}), yes=False)
    with pytest.raises(UsageError, match="100,100 cells"):
        check_size(make_grid({"a": range(100), "b": range(1001)}), yes=False)


# -- what stands beside a file


@given(st.lists(TABLES, min_size=1, max_size=3), TABLES)
def test_more_parameters_are_in_every_table_or_instead(tables: list[dict[str, Any]], more: dict[str, Any]) -> None:
    crossed = cross(make_grid(tables), make_grid(more))
    assert crossed == make_grid([{**table, **more} for table in tables])
    assert [list(table) for table in crossed.tables] == [list({**table, **more}) for table in tables]


# -- what is refused


@pytest.mark.parametrize(
    "document",
    [[], {"a": []}, [{"a": [1]}, {"b": []}], "abc", 3, None, [3], [[]], {"a": [1, 2, 1]}, {"a": [[1], (1,)]}],
)
def test_what_is_no_grid_is_refused(document: object) -> None:
    with pytest.raises(UsageError) as refused:
        make_grid(document, lambda _table, _name: "grid.toml:7: ")
    assert str(refused.value).startswith("grid.toml:7: ")
    assert refused.value.next_step


@pytest.mark.parametrize("name", ["", "-a", "--a", "a=b", "a b", "a\n", "a\0", "\ud800", 1, True, None, (1, 2)])
def test_what_cannot_be_a_name_is_refused(name: object) -> None:
    with pytest.raises(UsageError, match="name"):
        make_grid({name: [1]})


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, [1, [math.nan]], {"b": -math.inf}, b"bytes", {1: 2}, object(), "a\0b", "\ud800"]
)
def test_what_cannot_be_a_value_is_refused_by_the_parameters_name(value: object) -> None:
    with pytest.raises(UsageError, match="parameter 'alpha'"):
        make_grid({"alpha": [0.1, value]})


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(UsageError, match="loop"):
        make_grid({"loop": loop})


def test_bytes_that_are_no_utf8_were_typed_and_can_be_given_to_a_program() -> None:
    assert list(make_grid({"file": "a\udcff"}).cells()) == [{"file": "a\udcff"}]


def test_a_value_that_is_there_twice_is_said_with_its_places() -> None:
    with pytest.raises(UsageError, match=r"alpha has 0\.1 twice, as its values 1 and 3"):
        make_grid({"alpha": [0.1, 1, 0.10]})
    assert make_grid({"alpha": [1, 1.0, True, "1"]}).size == 4  # a script can tell them apart


@pytest.mark.parametrize(
    ("tables", "both"),
    [
        ([{"a": [1, 2]}, {"b": [1]}, {"a": [3, 2]}], (1, 4)),
        ([{"a": [1, 2], "b": [1, 2]}, {"b": [5, 2], "a": [0, 2]}], (3, 7)),
        ([{"c": [[1], {"x": [1]}]}, {"c": [{"x": (1,)}]}], (1, 2)),
        ([{"a": [1]}, {}, {}], (1, 2)),
    ],
)
def test_two_cells_that_are_the_same_are_named(tables: Sequence[dict[str, Any]], both: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=f"cells {both[0] + 1} and {both[1] + 1} of this grid are the same") as refused:
        check_cells(make_grid(tables))
    assert refused.value.next_step


@given(st.lists(st.dictionaries(NAMES, st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True)), max_size=5))
def test_same_cells_are_found_wherever_there_are_some(tables: list[dict[str, list[int]]]) -> None:
    grid = make_grid([{"first": [0]}, *tables])
    cells = [params_digest(cell) for cell in grid.cells()]
    if len(set(cells)) == len(cells):
        check_cells(grid)
    else:
        with pytest.raises(UsageError, match=r"cells \d+ and \d+") as refused:
            check_cells(grid)
        first, second = (int(word) - 1 for word in str(refused.value).split() if word.isdigit())
        assert first < second
        assert cells[first] == cells[second]
