"""A run's scores: `scores.json`, else the last JSON object printed on stdout, else `name: number` lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

MAX_SCORES = 1000  # a script that prints more names than this prints something else

LONGEST = 100  # characters of a line that is looked at as one that was meant as a score
EXACT = 2**53  # a whole number that is smaller is a float without loss, and is kept as what it was written as


def _whole(text: str) -> float:
    """An int, however many digits there are: one that no float is exactly, is a float as near as one can be."""
    value = float(text)
    return int(value) if abs(value) < EXACT else value


_DECODER = json.JSONDecoder(parse_int=_whole)
_OBJECT_START = re.compile(r"^(?=\{)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_][\w .,@%/()\[\]+-]{0,99}")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf(?:inity)?))")
_NEARLY = re.compile(rf"[A-Za-z_][\w .,@/()-]*(?:=\s*{_NUMBER.pattern}\s*%?|:\s*{_NUMBER.pattern}\s*%)")


def scores_from(stdout: str, scores_json: str | None) -> dict[str, float]:
    """Scores by name, in the order they were written: the first is the primary one.

    Whole numbers are ints where they were written so. NaN and infinities are kept; booleans, text, lists and nested
    objects are not scores. A source without any score is passed over for the next one. `stdout` may be the tail of a
    long log; the work is linear in its length.
    """
    from_file = _scores_of(_document(scores_json)) if scores_json is not None else {}
    text = stdout.replace("\r", "\n")  # progress bars write over their own line
    return from_file or _printed_object(text) or _printed_lines(text)


def nearly_score(stdout: str) -> str:
    """The last line that was probably meant as a score, and is none: `acc = 0.5`, `accuracy: 97%`; else ""."""
    lines = (line.strip() for line in reversed(stdout.replace("\r", "\n").splitlines()))
    return next((line for line in lines if len(line) < LONGEST and _NEARLY.fullmatch(line)), "")


def _document(text: str) -> object:
    try:
        return _DECODER.decode(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return None


def _scores_of(document: object) -> dict[str, float]:
    if not isinstance(document, dict):
        return {}
    numbers = ((str(name), value) for name, value in document.items() if type(value) in (int, float))
    return dict(pair for pair, _ in zip(numbers, range(MAX_SCORES), strict=False))


def _printed_object(text: str) -> dict[str, float]:
    """The last object that starts a line, ends one (the same or a later one) and has a score.

    Each piece from one such brace to the next is looked at once, so that no output makes the work quadratic.
    """
    for piece in reversed(_OBJECT_START.split(text)):
        try:
            document, end = _DECODER.raw_decode(piece)
        except (ValueError, RecursionError):
            continue
        rest_of_line = piece[end:].partition("\n")[0]
        if not rest_of_line.strip() and (scores := _scores_of(document)):
            return scores
    return {}


def _printed_lines(text: str) -> dict[str, float]:
    """The last number of each name; names in the order of their first line."""
    scores: dict[str, float] = {}
    for name, value in _name_and_number(text):
        if name in scores or len(scores) < MAX_SCORES:
            scores[name] = value
    return scores


def _name_and_number(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines():
        name, _, number = line.rpartition(":")
        name, number = name.strip(), number.strip()
        if len(number) < 400 and _NUMBER.fullmatch(number) and _NAME.fullmatch(name):
            yield name, _whole(number) if _WHOLE.fullmatch(number) else float(number)
