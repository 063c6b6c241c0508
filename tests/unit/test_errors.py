"""Errors as who writes Python meets them: in a traceback."""

from __future__ import annotations

import pickle
import traceback
from copy import copy

from cloudrun.core.errors import UsageError, notes_of


def test_a_traceback_ends_with_what_to_type_next_whatever_was_noted_later() -> None:
    error = UsageError("no run has the score 'acuracy'", next_step="ranking('accuracy')")
    error.add_note("and nothing was launched")
    said = traceback.format_exception_only(error)
    assert said[-2:] == ["and nothing was launched\n", "next: ranking('accuracy')\n"]


def test_a_better_next_step_takes_the_place_of_the_former_and_leaves_a_copy_as_it_was() -> None:
    error = UsageError("no", next_step="this")
    error.add_note("a fact")
    again = copy(error)
    again.next_step = ""
    error.next_step = "that"
    assert (error.__notes__, again.__notes__) == (["a fact", "next: that"], ["a fact"])
    assert notes_of(error) == notes_of(again) == ["a fact"]


def test_an_error_that_comes_from_another_process_still_says_it() -> None:
    error = pickle.loads(pickle.dumps(UsageError("no", next_step="this")))
    assert (error.next_step, error.__notes__) == ("this", ["next: this"])
    error.next_step = "that"
    assert error.__notes__ == ["next: that"]
