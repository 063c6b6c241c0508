"""On which line of a TOML text a key is set: tomllib parses, but does not tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

_ERROR_LINE = re.compile(r"\(at line (\d+)")


def table_at(document: Mapping[str, Any], path: Sequence[str | int]) -> object:
    """What is at `path` ([] is the document itself; a number is a place in a list); None where there is nothing."""
    found: Any = document
    for step in path:
        try:
            found = found[step]
        except (LookupError, TypeError):
            return None
    return found


def line_of(text: str, table: Sequence[str | int], key: str) -> int:
    """The line, from 1, on which `key` of `table` is set in a valid TOML text.

    A line that looks right may belong to another table or stand inside a multi-line string, so the text above it is
    parsed with a lone `key = 0` below: it has to be valid, and the key has to land in the table. Where the key is
    written in another way (inside an inline table, dotted) the first line that mentions it is returned.
    """
    lines = text.split("\n")
    word = re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])")
    mentions = [number for number, line in enumerate(lines) if word.search(line)]
    for number in mentions:
        if _sets(lines[:number], lines[number], table, key):
            return number + 1
    return mentions[0] + 1 if mentions else 1


def _sets(above: Sequence[str], line: str, table: Sequence[str | int], key: str) -> bool:
    if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line) is None:
        return False
    try:
        document = tomllib.loads("\n".join([*above, f'"{key}" = 0']))
    except tomllib.TOMLDecodeError:
        return False
    found = table_at(document, table)
    return isinstance(found, Mapping) and found.get(key) == 0


def error_line(error: ValueError, text: str) -> int:
    """The line, from 1, that a parser's error message names; the last one where it names the document's end."""
    match = _ERROR_LINE.search(str(error))
    return int(match[1]) if match else max(1, len(text.splitlines()))
