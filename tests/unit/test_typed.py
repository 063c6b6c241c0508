"""What is printed to be copied is for a shell what it was, whatever somebody has called a file."""

from __future__ import annotations

import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.typed import command, path_typed, quoted

WORDS = ["plain", "", "a file", "*", "$HOME", "it's", "a\nb", "\x1b[31m'\\", "\udcff.txt", "ä\u200b", "-x", "~"]


@pytest.mark.parametrize("word", WORDS, ids=ascii)
def test_bash_takes_a_word_for_what_it_is(word: str) -> None:
    said = quoted(word)
    assert said.isprintable()
    told = subprocess.run(["bash", "-c", f"printf %s {said}"], capture_output=True, check=True)
    assert told.stdout == os.fsencode(word)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_no_word_is_more_than_a_line(word: str) -> None:
    assert quoted(word).isprintable()


def test_what_begins_as_an_option_is_none() -> None:
    assert command("get", "r-1", "model.joblib") == "cloudrun get r-1 model.joblib"
    assert command("get", "r-1", "-x y") == "cloudrun get -- r-1 '-x y'"
    assert command("rm --yes", "two words", "b") == "cloudrun rm --yes 'two words' b"
    assert path_typed("-x.py") == "./-x.py"
    assert path_typed("a b/train.py") == "'a b/train.py'"
