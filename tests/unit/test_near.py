"""A mistyped word is told the word that was meant, and an id no other id."""

from __future__ import annotations

import pytest

from cloudrun.cli.main import retyped
from cloudrun.core.near import nearest

KNOWN = ["g-0tr2f4a95x9kx", "r-0tr2f4a9zzzzz", "i-0123456789abcdef0", "baseline", "r-squared"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("basline", "baseline"),
        ("Baseline", "baseline"),
        ("r-sqared", "r-squared"),
        ("g-0tr2f4a95x9kw", "g-0tr2f4a95x9kx"),
        ("g-0tr2f4a95x9xk", "g-0tr2f4a95x9kx"),  # two turned round
        ("G-0TR2F4A95X9XK", "g-0tr2f4a95x9kx"),
        ("g-0tr2fa95x9kx", "g-0tr2f4a95x9kx"),  # one left out
        ("g-0tr2f44a95x9kx", "g-0tr2f4a95x9kx"),  # one twice
        ("0tr2f4a95x9kw", "g-0tr2f4a95x9kx"),
        ("i-0123456789abcdee0", "i-0123456789abcdef0"),
        ("g-0tr3478k", None),
        ("g-0tr2f4a91x2ax", None),  # of the same hour
        ("r-0tr2f4a95x9kx", "g-0tr2f4a95x9kx"),
        ("i-0123456789aaaaaaa", None),
    ],
)
def test_an_id_is_near_only_by_a_slip_of_the_finger(typed: str, meant: str | None) -> None:
    assert nearest(typed, KNOWN) == ([meant] if meant else [])


@pytest.mark.parametrize(
    ("words", "wrong", "right", "typed"),
    [
        ("rm irsi --yes", "irsi", "iris", "cloudrun rm iris --yes"),
        ("rm iris irsi --yes", "irsi", "iris", ""),
        ("rm irsi iris --yes", "irsi", "iris", ""),
        (
            "results --metric acuracy --sort accuracy",
            "acuracy",
            "accuracy",
            "cloudrun results --metric accuracy --sort accuracy",
        ),
    ],
)
def test_what_is_there_already_is_not_proposed_a_second_time(words: str, wrong: str, right: str, typed: str) -> None:
    assert retyped(words.split(), (wrong, right)) == typed
