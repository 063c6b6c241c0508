"""What a mistyped word was meant to be: the nearest of the words that would have been right."""

from __future__ import annotations

from collections.abc import Iterable


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """At most `count` of `known`, the likeliest first: the same but for capitals, or a few letters away; else what
    begins so."""
    from difflib import get_close_matches  # only when something went wrong

    originals = {each.lower(): each for each in known}
    wanted = word.lower()
    near = get_close_matches(wanted, originals, n=count)
    near = near or ([each for each in originals if each.startswith(wanted)][:count] if wanted else [])
    return [originals[each] for each in near]


def instead(word: str, known: Iterable[str]) -> tuple[str, str] | None:
    """The word and what it was meant to be, as an error is told of it; None where no word is near."""
    near = nearest(word, known)
    return (word, near[0]) if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean alpha?" to put behind a message, or nothing where no word is near."""
    near = nearest(word, known)
    return f"; did you mean {near[0]}?" if near else ""
