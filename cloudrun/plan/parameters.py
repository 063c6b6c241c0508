"""What a parameter may be called, what its value may be, and what a typed value means.

A parameter reaches a script as the words `--name value`, and as JSON in a variable: it has to be both.
"""

from __future__ import annotations

import json
import math
from typing import Any

from cloudrun.core.errors import UsageError
from cloudrun.plan.fingerprint import canonical_json


def scalar(text: str) -> Any:
    """A finite JSON number, boolean, null or string; everything else is the text as it was typed."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # not JSON, an integer too long for int(), or nested without end
        return text
    if isinstance(value, (list, dict)) or (isinstance(value, float) and not math.isfinite(value)):
        return text
    return value


def check_name(name: object) -> str:
    """The name. Raises UsageError where it cannot be that of an option."""
    if not isinstance(name, str):
        raise UsageError(f"{name!r} is no text, as a parameter's name has to be", next_step=f'write "{name}"')
    wrong = not name or name.startswith("-") or "=" in name or any(letter.isspace() for letter in name)
    if wrong or not _can_be_a_word(name):
        raise UsageError(f"{name!r} cannot be a parameter's name", next_step="use letters, digits and _: alpha=0.1")
    return name


def check_value(value: Any, name: str) -> str:
    """The value as JSON, equal for equal values only. Raises UsageError for what cannot be one: a NaN, a date."""
    text = canonical_json(value, name)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError as error:
        raise UsageError(
            f"parameter {name!r} has the value {value!r}, and numbers have to be finite",
            next_step='leave it out, or write it as a text: "nan"',
        ) from error
    if isinstance(value, str) and not _can_be_a_word(value):
        raise UsageError(
            f"parameter {name!r} has the value {value!r}, which no program can be given",
            next_step="leave out zero bytes and halves of surrogate pairs",
        )
    return text


def _can_be_a_word(text: str) -> bool:
    """Whether a program can be given it as an argument: bytes that were typed and are no UTF-8 can be, NUL never."""
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
