"""What a notebook shows while machines work: one line on stderr that is written over.

Jupyter shows a carriage return as terminals do, so that needs no widgets and nothing installed; a notebook that is
saved, or shown by another program, has the line's last state.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from threading import Event, Lock, Thread
from typing import IO, TypeVar

from cloudrun.core import events
from cloudrun.core.events import Note, Output, PhaseEnded, PhaseStarted, Progress
from cloudrun.plan.quantities import counted, duration_text, size_text

T = TypeVar("T")
EVERY_S = 0.2  # a front end takes its time to draw


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel. IPython on a terminal is none, and is a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return shell is not None and hasattr(shell, "kernel")


class Line:
    """One line that changes. From any thread."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._width = 0
        self._drawn = float("-inf")
        self._lock = Lock()

    def show(self, text: str, *, at_once: bool = False) -> None:
        with self._lock:
            now = self._clock()
            if at_once or now - self._drawn >= EVERY_S:
                self._drawn = now
                self._write(f"\r{text:<{self._width}}")
                self._width = len(text)

    def end(self) -> None:
        """What is written next has a line of its own."""
        with self._lock:
            if self._width:
                self._write("\n")
                self._width = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Watcher:
    """An observer: phases on one line, what the job prints below it, warnings on lines of their own."""

    def __init__(self, line: Line | None = None) -> None:
        self._line = line or Line()
        self._done: list[str] = []

    def __call__(self, event: events.Event) -> None:
        match event:
            case PhaseStarted(phase, detail):
                self._line.show(self._text(f"{phase} ... {detail}"), at_once=True)
            case PhaseEnded(phase, elapsed_s, _):
                self._done.append(f"{phase} {duration_text(elapsed_s)}")
                self._line.show(self._text(), at_once=True)
            case Progress(phase, done_bytes, total_bytes):
                self._line.show(self._text(f"{phase} {size_text(done_bytes)} of {size_text(total_bytes)}"))
            case Output(stream, data):
                self._end()
                target = sys.stdout if stream == "stdout" else sys.stderr
                target.write(data.decode(errors="replace"))
                target.flush()
            case Note(text, "warning"):
                self._end()
                print(f"cloudrun: {text}", file=sys.stderr)

    def _text(self, now: str = "") -> str:
        return ", ".join([*self._done, now] if now else self._done)

    def _end(self) -> None:
        self._line.end()
        self._done.clear()


def grid_text(done: int, running: int, failed: int, cells: int, elapsed_s: float) -> str:
    """ "[#####     ] 6 of 12 cells, 4 running, 1 failed, 12 s"."""
    over = done + failed
    bar = "#" * (20 * over // max(1, cells))
    trouble = f", {failed} failed" if failed else ""
    return f"[{bar:<20}] {over} of {counted(cells, 'cell')}, {running} running{trouble}, {duration_text(elapsed_s)}"


def watched(
    runs: Iterator[T], counts: Callable[[], tuple[int, int, int, int]], line: Line | None = None
) -> Iterator[T]:
    """The same runs, and a line that says how far they are: `counts` tells how many are done, running, failed and there
    are in all. It goes on while nothing comes."""
    line, over, began = line or Line(), Event(), time.monotonic()

    def draw(*, at_once: bool = False) -> None:
        done, running, failed, cells = counts()
        line.show(grid_text(done, running, failed, cells, time.monotonic() - began), at_once=at_once)

    def go_on() -> None:
        while not over.wait(1.0):
            draw()

    thread = Thread(target=go_on, name="cloudrun-progress", daemon=True)
    thread.start()
    try:
        for run in runs:
            draw()
            yield run
    finally:
        over.set()
        thread.join()
        draw(at_once=True)
        line.end()
        if isinstance(runs, Generator):
            runs.close()  # whoever leaves the loop early leaves ours as well
