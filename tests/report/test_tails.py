"""The ends of logs, and how what cannot be seen is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.report.tails import shown, tail, visible


def test_only_the_last_lines_are_kept() -> None:
    assert tail(b"".join(b"%d\n" % number for number in range(100)), lines=3) == "97\n98\n99"


def test_a_line_without_end_is_cut_to_its_end() -> None:
    assert tail(b"a" * 100 + b"b" * 5, characters=10) == "…aaaaabbbbb"


def test_of_a_progress_bar_only_the_last_state_is_kept() -> None:
    assert tail(b" 10%\r 50%\r100%\ndone\r\n") == "100%\ndone"


def test_colours_are_left_out() -> None:
    assert tail(b"\x1b[1;31merror\x1b[0m: no") == "error: no"


def test_bytes_that_are_no_text_do_not_matter() -> None:
    assert tail(b"a\xff\x00b") == "a\ufffd\x00b"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain Ünïcode 汉字 שלום", "plain Ünïcode 汉字 שלום"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\x00b", "a\\x00b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("line\nline\u2028line", "line\\nline\\u2028line"),
        ("half a pair \ud83d", "half a pair \\ud83d"),
    ],
)
def test_what_cannot_be_seen_is_written_as_an_escape(text: str, seen: str) -> None:
    assert visible(text) == seen


@given(st.text(st.characters(codec=None)))
def test_nothing_unseen_is_left_but_the_ends_of_lines(text: str) -> None:
    assert visible(text).isprintable()
    assert shown(text).replace("\n", "").isprintable()
