"""Durations, sizes and the lines of a TOML file: whatever is typed, it is understood or refused in words."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.quantities import counted, duration_s, duration_text, size_bytes, size_text
from cloudrun.plan.toml_lines import line_of

KEYS = st.sampled_from(["region", "deadline", "spot", "a-b", "x"])
VALUES = st.sampled_from(
    ["1", '"text"', '"""\nregion = 3\n[x]\n"""', "[\n1,\n2]", "{ region = 1 }", "'#'", "2026-01-01"]
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4h", 14_400),
        ("1h30m", 5_400),
        ("90s", 90),
        ("1.5 h", 5_400),
        ("2d", 172_800),
        (" 5 MIN ", 300),
        (7, 7),
    ],
)
def test_a_duration_is_understood(text: str | float, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "4x", "30m1h", "1h1h", "-1h", "1e3", "inf", "nan", "٣h", "7", "0", 0, -1, float("nan")]
)
def test_what_is_no_duration_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"duration|zero|no unit"):
        duration_s(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("200MB", 200_000_000),
        ("2 gb", 2_000_000_000),
        ("1.5GiB", 3 << 29),
        ("12", 12),
        ("0B", 0),
        (5, 5),
        ("1kB", 1000),
    ],
)
def test_a_size_is_understood(text: str | float, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "2G", "2 XB", "-1MB", "1iB", "nan", float("inf"), -1, True])
def test_what_is_no_size_is_refused(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"size|zero"):
        size_bytes(text)


@given(st.text() | st.from_regex(r"[0-9]+(\.[0-9]+)?\s*[a-zA-Z]*"))
def test_any_text_is_a_quantity_or_refused_in_words(text: str) -> None:
    for parse in (duration_s, size_bytes):
        try:
            value = parse(text)
        except ValueError as error:
            value = 0
            assert str(error).startswith(repr(text))  # noqa: PT017 - either outcome is fine, silence is not
        assert value >= 0


@given(st.integers(0, 40), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_a_duration_is_the_sum_of_its_parts(days: int, hours: int, minutes: int, seconds: int) -> None:
    text = f"{days}d {hours}h {minutes}m {seconds}s"
    assert duration_s(text) == ((days * 24 + hours) * 60 + minutes) * 60 + seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3_599.7, "1 h"),
        (14_400, "4 h"),
        (86_399, "1 d"),
        (183_600, "2 d 3 h"),
    ],
)
def test_a_duration_for_people(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@given(st.integers(10, 10**7))
def test_a_duration_for_people_can_be_typed_back(seconds: int) -> None:
    assert duration_s(duration_text(seconds)) == pytest.approx(seconds, rel=0.03)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (210_400_000, "210 MB"),
        (999_900, "1.0 MB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_a_size_for_people(size: int, text: str) -> None:
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (counted(0, "file"), "0 files"),
        (counted(1, "file"), "1 file"),
        (counted(1200, "file"), "1,200 files"),
        (counted(1, "entry", "entries"), "1 entry"),
        (counted(2, "cell is", "cells are"), "2 cells are"),
    ],
)
def test_one_of_a_thing_is_not_called_several(said: str, text: str) -> None:
    assert said == text


@given(st.lists(st.tuples(KEYS, VALUES), unique_by=lambda pair: pair[0]), st.lists(st.tuples(KEYS, VALUES), max_size=3))
def test_the_line_of_a_key_is_the_one_that_sets_it(ours: list[tuple[str, str]], others: list[tuple[str, str]]) -> None:
    lines = ["[other]"]
    for key, value in dict(others).items():
        lines += f"{key} = {value}".split("\n")
    lines.append("[tool.cloudrun]")
    expected = {}
    for key, value in ours:
        expected[key] = len(lines) + 1
        lines += f"{key} = {value}".split("\n")
    text = "\n".join(lines)
    assert set(tomllib.loads(text)["tool"]["cloudrun"]) == set(expected)
    assert {key: line_of(text, ("tool", "cloudrun"), key) for key in expected} == expected


def test_a_key_written_inline_is_found_where_it_is_mentioned() -> None:
    assert line_of('[tool]\ncloudrun = { region = "x" }', ("tool", "cloudrun"), "region") == 2
    assert line_of("a = 1", (), "nowhere") == 1
