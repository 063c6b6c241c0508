"""Grids from a command line: `--set alpha=0.1,1 --set name=fast`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cloudrun.core.errors import UsageError
from cloudrun.plan.grid import Grid, make_grid
from cloudrun.plan.parameters import scalar
from cloudrun.plan.typed import quoted

_decoder = json.JSONDecoder()
_OPENING = ('"', "'", "[", "{")


def parse_sets(assignments: Sequence[str]) -> Grid:
    """A grid of one table: "alpha=0.1,1" has two values, `name="a,b"` one, "alpha=[0.1, 1]" those of the JSON list.

    Values are what `scalar` takes them for; without a comma the whole text is one. No assignment at all, or one value
    each, is a grid of one cell. Raises UsageError where there is no `=`, no name, where a name comes twice, or a
    quote or bracket has no partner.
    """
    table: dict[str, list[Any]] = {}
    for each in assignments:
        name, text = assignment(each)
        if name in table:
            raise UsageError(
                f"--set gives {name} twice", next_step=f"keep one of the two, or write --set {quoted(f'{name}=A,B')}"
            )
        table[name] = values(name, text)
    return make_grid(table, lambda _table, name: f"--set {name}: ")


def assignment(text: str) -> tuple[str, str]:
    """The name and the value of NAME=VALUE. Raises UsageError where there is no `=`, no name or no value: a variable of
    the shell that is not set looks like that, and would cost a machine."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text} has no '='", next_step=f"write --set {quoted(text or 'name')}=VALUE")
    if not name.strip():
        raise UsageError(f"--set {text} names no parameter", next_step=f"write --set {quoted(f'NAME={value}')}")
    if not value.strip():
        empty = quoted(f'{name.strip()}=""')
        raise UsageError(
            f"--set {name.strip()}= has no value",
            next_step=f"write one after the =, or --set {empty} where an empty text is meant",
        )
    return name.strip(), value


def values(name: str, text: str) -> list[Any]:
    """The values in a text. Raises UsageError for an empty one between commas, and for what only looks like JSON."""
    listed = _json_list(text)
    if listed is not None:
        return listed
    if "," not in text:
        return [scalar(text)]
    return [scalar(item) for item in _split(name, text)]


def _json_list(text: str) -> list[Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def _split(name: str, text: str) -> list[str]:
    """Between its commas, but for those inside JSON's strings, lists and tables."""
    items, position = [], 0
    while position <= len(text):
        end = _end(name, text, position)
        items.append(text[position:end].strip())
        if not items[-1]:
            raise UsageError(
                f"--set {name}={text} has nothing beside a comma",
                next_step='take the comma out, or write "" for no text',
            )
        position = end + 1
    return items


def _end(name: str, text: str, position: int) -> int:
    """Where the item that begins at `position` ends: at a comma, or with the text."""
    start = _after_space(text, position)
    if not text.startswith(_OPENING, start):
        comma = text.find(",", start)
        return len(text) if comma < 0 else comma
    try:
        end = _after_space(text, _decoder.raw_decode(text, start)[1])
        if end == len(text) or text[end] == ",":
            return end
    except (ValueError, RecursionError):
        pass
    raise UsageError(
        f"--set {name}={text} opens a quote or a bracket that does not end, as JSON's do, before a comma",
        next_step=f"""write --set {quoted(f'{name}="a,b"')} for one text, --set {quoted(name)}=a,b for two""",
    )


def _after_space(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position
