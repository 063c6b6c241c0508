"""Data on stdout: JSON documents and tables, without a control character that a job or a file name brought along."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, pairwise
from typing import IO, Any, Literal

from cloudrun.plan.quantities import score_text

SCHEMA_VERSION = 1


_printed: list[int] = []  # lengths of the documents so far: there is to be one


def printed_json() -> bool:
    """Whether stdout has its document already."""
    return bool(_printed)


def print_json(document: Mapping[str, Any]) -> None:
    """One document. Raises ValueError for NaN and infinities, which are no JSON: they are texts by then."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2, allow_nan=False) + "\n"
    _printed.append(sys.stdout.write(text))


def print_json_list(name: str, items: Iterable[Mapping[str, Any]], **before: Any) -> None:
    """One document with one list, of which only one item is in memory at a time, and other fields before it. Raises
    ValueError as `print_json`."""
    remaining = iter(items)
    first = next(remaining, None)  # what cannot be read at all fails before anything is printed
    if first is None:
        print_json({**before, name: []})
        return
    head = json.dumps({"schema_version": SCHEMA_VERSION, **before}, indent=2, allow_nan=False)
    _printed.append(sys.stdout.write(f"{head.removesuffix('}').rstrip()},\n  {json.dumps(name)}: ["))
    for place, item in enumerate(chain([first], remaining)):
        text = json.dumps(item, indent=2, allow_nan=False).replace("\n", "\n    ")
        sys.stdout.write(f"{',' if place else ''}\n    {text}")
    sys.stdout.write("\n  ]\n}\n")


def printable(text: object) -> str:
    """The text on one line: control and other invisible characters are written as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(text))


def is_terminal(stream: IO[Any]) -> bool:
    """Whether a person watches a stream that knows how to move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def columns(stream: IO[Any]) -> int | None:
    """How wide the screen is that a stream is shown on; None where it is none."""
    if not is_terminal(stream):
        return None
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None


def folded(text: str, width: int | None) -> str:
    """The text with its lines folded between words where a screen has so many columns (None: it is none), each below
    its own beginning. Not for what is to be typed: that is copied whole."""
    if width is None or all(len(line) <= width for line in text.splitlines()):
        return text
    from textwrap import wrap

    lines: list[str] = []
    for line in text.splitlines():
        words = line.lstrip()
        begin = line[: len(line) - len(words)]
        lines += wrap(
            words,
            max(width, 20),
            initial_indent=begin,
            subsequent_indent=begin + "  " * bool(begin),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
    return "\n".join(lines)


Style = Literal["good", "careful", "bad", "heading", "quiet", "command"]
STYLES: Mapping[Style, str] = {  # ECMA-48's numbers
    "good": "32", "careful": "33", "bad": "1;31", "heading": "1", "quiet": "2", "command": "36",
}  # fmt: skip


def styled(text: str, style: Style, stream: IO[Any] | None = None) -> str:
    """The text as it is shown on a stream (stdout): in colour only on a terminal whose user has nothing against it."""
    if not is_terminal(stream or sys.stdout) or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{STYLES[style]}m{text}\x1b[0m"


def abandon(stream: IO[Any]) -> None:
    """Let a stream that cannot be written any more swallow the rest, or every later flush would complain again."""
    with suppress(OSError, ValueError):  # it has no descriptor, or is closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    dispensable: Sequence[str] = (),
) -> list[str]:
    """Columns below bold headers; those named in `right` are flush right. Returns the names of columns left out.

    On a terminal that is too narrow the `dispensable` columns go first, in their order; where even the rest does not
    fit, each row is a block of lines, and nothing is left out.
    """
    if not is_terminal(sys.stdout):
        _print_plainly(headers, rows, right)
        return []
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=sys.stdout, force_terminal=True, highlight=False, markup=False)
    kept = _columns_that_fit(headers, rows, console.width, dispensable)
    if kept is None:
        _print_blocks(headers, rows)
        return []
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index in kept:
        table.add_column(
            printable(headers[index]),
            justify="right" if headers[index] in right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(Text(printable(row[index])) for index in kept))
    with console.capture() as captured:
        console.print(table)
    sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())
    return [header for index, header in enumerate(headers) if index not in kept]


def _print_plainly(headers: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    """Nothing is cut off or folded, and ten thousand lines take a moment."""
    from rich.cells import cell_len

    lines = [[printable(cell) for cell in line] for line in (headers, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    flush_right = [header in right for header in headers]
    for line in lines:
        cells = []
        for cell, width, to_the_right in zip(line, widths, flush_right, strict=True):
            room = " " * (width - cell_len(cell))
            cells.append(room + cell if to_the_right else cell + room)
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def _print_blocks(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Each row as lines of a name and a value, with an empty line between two rows; a column without a name is the
    row's own, in front."""
    width = max(map(len, headers))
    blocks = [
        "".join(
            f"{printable(header):<{width}}  {printable(cell)}\n" if header else f"{printable(cell)}\n"
            for header, cell in zip(headers, row, strict=True)
        )
        for row in rows
    ]
    sys.stdout.write("\n".join(blocks))


def _columns_that_fit(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, dispensable: Sequence[str]
) -> list[int] | None:
    """Indexes of the columns that stay; None where those that have to do not fit."""
    from rich.cells import cell_len

    kept = list(range(len(headers)))
    wide = [max(cell_len(printable(line[index])) for line in (headers, *rows)) + 2 for index in kept]
    for name in dispensable:
        if sum(wide[index] for index in kept) - 2 > width and name in headers:
            kept.remove(headers.index(name))
    return kept if sum(wide[index] for index in kept) - 2 <= width else None


def digits_that_tell_apart(values: Iterable[float]) -> int:
    """How many significant digits, from 6 on, show which of two neighbours is larger."""
    distinct = sorted({value for value in values if math.isfinite(value)})
    for digits in range(6, 17):
        if all(score_text(one, digits) != score_text(other, digits) for one, other in pairwise(distinct)):
            return digits
    return 17


def assignments_text(params: Mapping[str, Any]) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in params.items()
    )


def when_text(moment: datetime, *, seconds: bool = False) -> str:
    """To the minute or the second, in UTC as all times are."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ" if seconds else "%Y-%m-%d %H:%MZ")
