"""`--set`: one value means what it always did, commas and JSON lists make several, and quotes keep a comma."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.cli.parser import parse_params
from cloudrun.core.errors import UsageError
from cloudrun.plan.grid_sets import parse_sets

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
SPACE = st.sampled_from(["", " ", "  ", "\t", "\n"])


def table(*assignments: str) -> dict[str, Any]:
    return dict(parse_sets(assignments).tables[0])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1,1", (0.1, 1)),
        ("0.1, 1", (0.1, 1)),
        ("1e-4,1E3,-2", (1e-4, 1000.0, -2)),
        ("true,false,null", (True, False, None)),
        ("fast,slow", ("fast", "slow")),
        ("x=1,y=2", ("x=1", "y=2")),
        ('"a,b"', ("a,b",)),
        ('"a,b", "c"', ("a,b", "c")),
        ('"1",1,""', ("1", 1, "")),
        ("[0.1, 1]", (0.1, 1)),
        ("[[1, 2], [3]]", ([1, 2], [3])),
        ('["x1,x2", {"a": 1}]', ("x1,x2", {"a": 1})),
        ("[1,2],[3]", ("[1,2]", "[3]")),  # texts, as one of them alone would be a list of values
        ('{"a": 1, "b": 2}', ('{"a": 1, "b": 2}',)),
        ("NaN,1e999", ("NaN", "1e999")),
        ("it's,fine", ("it's", "fine")),
        ('5" disk', ('5" disk',)),
        ('"half', ('"half',)),
    ],
)
def test_a_text_has_these_values(text: str, values: tuple[Any, ...]) -> None:
    found = table(f"x={text}")["x"]
    assert found == values
    assert [type(each) for each in found] == [type(each) for each in values]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1,",
        ",1",
        "1,,2",
        ",",
        '"a,b',
        '"a"b,c',
        "'a,b'",
        "[a,b]",
        "[1,2",
        "{a,b}",
        "1,1",
        "[]",
        "[1, 1]",
        "[NaN]",
        '"a\0b"',
        "[" * 100_000 + ",",
    ],
    ids=lambda text: repr(text)[:20],
)
def test_what_is_no_list_of_values_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--set alpha") as refused:
        parse_sets([f"alpha={text}"])
    assert refused.value.next_step


def test_an_empty_text_can_be_meant() -> None:
    with pytest.raises(UsageError, match="--set alpha= has no value") as refused:
        parse_sets(["alpha="])
    assert refused.value.exit_code == 2
    assert """--set 'alpha=""'""" in refused.value.next_step
    assert list(parse_sets(['alpha=""']).cells()) == [{"alpha": ""}]


@pytest.mark.parametrize("assignments", [["x"], ["=3"], [" =1,2"], [""], ["x=1", "x=2"], ["x=1", " x =1"], ["a b=1"]])
def test_what_is_no_assignment_is_refused(assignments: list[str]) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_sets(assignments)


@given(st.dictionaries(st.sampled_from("abc"), TEXTS.filter(lambda text: "," not in text and "[" not in text)))
def test_one_value_each_is_the_plain_run_it_always_was(texts: dict[str, str]) -> None:
    assignments = [f"{name}={text}" for name, text in texts.items()]
    try:
        params = parse_params(assignments)
        cells = list(parse_sets(assignments).cells())
    except UsageError:  # a text in quotes that holds what no program can be given
        return
    assert cells == [params]


@given(st.lists(SCALARS, min_size=2, max_size=5, unique_by=json.dumps), SPACE, SPACE)
def test_values_are_read_as_they_were_written(values: list[Any], before: str, after: str) -> None:
    for separator, around in ((f"{before},{after}", "{}"), (",", "[{}]")):
        text = separator.join(json.dumps(value) for value in values)
        assert table("x=" + around.format(text))["x"] == tuple(values)


@given(st.text(), st.text() | st.text('",[]{}\\ 1a'))
def test_whatever_is_typed_is_values_or_refused_in_words(name: str, text: str) -> None:
    try:
        grid = parse_sets([f"{name}={text}"])
    except UsageError as error:
        assert str(error).startswith("--set ")  # noqa: PT017 - either outcome is fine, silence is not
        assert error.next_step  # noqa: PT017
        return
    assert grid.size >= 1
    for cell in grid.cells():
        assert json.loads(json.dumps(cell, allow_nan=False)) == cell


def test_assignments_are_crossed_in_their_order() -> None:
    grid = parse_sets(["b=1,2", "a=x,y"])
    assert [tuple(cell.items()) for cell in grid.cells()] == [(("b", b), ("a", a)) for b in (1, 2) for a in ("x", "y")]
    assert list(parse_sets([]).cells()) == [{}]
