"""The small language of --where, --sort and --columns."""

from __future__ import annotations

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.plan.filters import Column, Comparison, parse_column, parse_where


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("alpha", Column("any", "alpha")),
        ("params.alpha", Column("param", "alpha")),
        ("params.a.b", Column("param", "a.b")),
        ("scores.log_loss", Column("score", "log_loss")),
        ("timings.run_s", Column("timing", "run_s")),
        ("run_s", Column("timing", "run_s")),
        ("state", Column("field", "state")),
        ("model.depth", Column("any", "model.depth")),
        ("params.", Column("any", "params.")),
    ],
)
def test_a_column_is_what_its_name_says(text: str, column: Column) -> None:
    assert parse_column(text) == column


@pytest.mark.parametrize(
    ("text", "operator", "value"),
    [
        ("alpha<1", "<", 1),
        ("alpha <= 1e-3", "<=", 0.001),
        ("alpha>-.5", ">", -0.5),
        ("alpha == 1.", "=", 1.0),
        ("alpha!=true", "!=", True),
        ("alpha = null", "=", None),
        ("alpha='a and b'", "=", "a and b"),
        ('alpha="1"', "=", "1"),
        ("alpha=2026-03-01", "=", "2026-03-01"),
        ("alpha=nan", "=", "nan"),
        ("alpha=" + "9" * 30, "=", 1e30),
    ],
)
def test_a_comparison_has_an_operator_and_a_value(text: str, operator: str, value: object) -> None:
    [comparison] = parse_where(text)
    assert comparison == Comparison(Column("any", "alpha"), operator, value)  # type: ignore[arg-type]
    assert type(comparison.value) is type(value)


def test_comparisons_are_joined_by_and() -> None:
    parsed = parse_where("  alpha<1 AND 'my name' = x and state=failed ")
    assert [each.column for each in parsed] == [
        Column("any", "alpha"),
        Column("any", "my name"),
        Column("field", "state"),
    ]


@pytest.mark.parametrize(
    ("text", "character", "what"),
    [
        ("", 1, "a name is missing"),
        ("   ", 1, "a name is missing"),
        ("alpha", 6, "after alpha comes one of"),
        ("alpha 1", 7, "not '1'"),
        ("alpha <", 8, "a value has to come after <"),
        ("alpha < < 1", 9, "a value has to come after <"),
        ("< 1", 1, "a name has to come here, not '<'"),
        ("alpha<1 or beta<2", 9, "`and` has to come here, not 'or'"),
        ("alpha<1 and", 12, "a name is missing"),
        ("alpha<(1)", 7, "'[(]' means nothing here"),
        ("alpha<1; DROP", 10, "`and` has to come here"),
        ("alpha='x", 7, "a quote that nothing closes"),
        ("alpha! 1", 6, "'!' means nothing here"),
        ("alpha<null", 7, "null is neither"),
        ("state=succeded", 7, "no run is 'succeded'"),
    ],
)
def test_nonsense_is_said_with_its_place(text: str, character: int, what: str) -> None:
    with pytest.raises(UsageError, match=f"character {character}: .*{what}") as caught:
        parse_where(text)
    assert caught.value.next_step


def test_a_state_that_is_nearly_one_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        parse_where("state=succeded")
    assert caught.value.next_step == "write succeeded"
