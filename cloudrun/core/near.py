"""What a mistyped word was meant to be: the nearest of the words that would have been right."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ID = re.compile(r"[a-z]+-(?=[a-z]*[0-9])[0-9a-z]{8,}")  # what nobody thought of, and AWS's own
_SLIPS = 2  # characters of an id that somebody may have typed wrong


def nearest(word: str, known: Iterable[str], count: int = 1) -> list[str]:
    """At most `count` of `known`, the likeliest first: the same but for capitals, or a few letters away; else what
    begins so. An id is near only where a slip of the finger explains it: all those of one hour look alike, and who
    types the wrong one is not helped with another wrong one."""
    from difflib import get_close_matches  # only when something went wrong

    originals = {each.lower(): each for each in known}
    wanted = word.lower()
    words = [each for each in originals if not _ID.fullmatch(each) or _is_slip(wanted, each)]
    near = get_close_matches(wanted, words, n=count)
    near = near or ([each for each in originals if each.startswith(wanted)][:count] if wanted else [])
    return [originals[each] for each in near]


def _is_slip(typed: str, known_id: str) -> bool:
    """Whether one is the other but for `_SLIPS` characters, wrong, missing or too many; the kind may be left out."""
    from difflib import SequenceMatcher

    known_id = known_id if "-" in typed else known_id.partition("-")[2]
    alike = sum(block.size for block in SequenceMatcher(None, typed, known_id, autojunk=False).get_matching_blocks())
    return max(len(typed), len(known_id)) - alike <= _SLIPS


def instead(word: str, known: Iterable[str]) -> tuple[str, str] | None:
    """The word and what it was meant to be, as an error is told of it; None where no word is near."""
    near = nearest(word, known)
    return (word, near[0]) if near else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ "; did you mean alpha?" to put behind a message, or nothing where no word is near."""
    near = nearest(word, known)
    return f"; did you mean {near[0]}?" if near else ""
