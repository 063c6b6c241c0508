"""The closing lines of a submission in a frame, for a terminal that is wide enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO

from cloudrun.cli.printing import printable

LABEL = 9  # characters before the text of a closing line: two, a label, and what fills it up
WIDEST = 100
NARROWEST = 50  # below that a frame takes more than it gives


def framed(lines: Sequence[str], stream: IO[str], width: int, *, good: bool) -> bytes | None:
    """`lines` as `summary.closing_lines` gives them, green or red. None where they had better stay plain."""
    if width < NARROWEST:
        return None
    from rich import box
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    utf8 = str(getattr(stream, "encoding", "")).lower().replace("-", "") == "utf8"
    console = Console(file=stream, force_terminal=True, highlight=False, width=min(width, WIDEST))
    headline, _, scores = printable(lines[0]).partition(": ")
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if scores:
        table.add_row("", Text(scores, style="bold"))
    for line in map(printable, lines[1:]):
        text = line[LABEL:]
        table.add_row(line[:LABEL].strip(), Text(text, style="cyan" if text.startswith("cloudrun ") else ""))
    panel = Panel(
        table,
        title=Text(headline, style="bold"),
        title_align="left",
        border_style="green" if good else "red",
        box=box.ROUNDED if utf8 else box.ASCII,
    )
    with console.capture() as drawn:
        console.print(panel)
    return drawn.get().encode("utf-8" if utf8 else "ascii", "replace")
