"""Draws a submission while it goes on: phases on stderr, the job's own bytes untouched."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Literal, Self

from cloudrun.cli.printing import Style, abandon, is_terminal, printable, styled
from cloudrun.core.events import Event, Note, Output, Phase, PhaseEnded, PhaseStarted, Progress, Rented
from cloudrun.plan.budget import cost_usd
from cloudrun.plan.quantities import duration_text, size_text
from cloudrun.prices import usd_per_hour

if TYPE_CHECKING:
    from rich.live import Live

Stream = Literal["stdout", "stderr"]
BAR = 20  # characters


def phase_line(phase: Phase, elapsed_s: float, detail: str = "", *, outcome: str = "done") -> str:
    how = "" if outcome == "done" else f"{outcome}  "
    return f"  {phase:<10}{duration_text(elapsed_s):>9}  {how}{printable(detail)}".rstrip()


class Rate:
    """How fast bytes move, and how long the rest takes at that. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None  # when bytes were first counted, and how many were there already

    def text(self, done_bytes: int, total_bytes: int) -> str:
        """ "[#####     ]  128 MB of 256 MB  64 MB/s  2.0 s left"; rate and rest once a second of it has been seen."""
        now = self._clock()
        if self._first is None or done_bytes < self._first[1]:
            self._first = (now, done_bytes)
        began, before = self._first
        filled = min(BAR, BAR * done_bytes // max(1, total_bytes))
        text = f"[{'#' * filled}{' ' * (BAR - filled)}] {size_text(done_bytes)} of {size_text(total_bytes)}"
        elapsed_s, moved = now - began, done_bytes - before
        if elapsed_s < 1.0 or moved <= 0:
            return text
        rate = moved / elapsed_s
        return f"{text}  {size_text(int(rate))}/s  {duration_text((total_bytes - done_bytes) / rate)} left"


class Meter:
    """What machines cost while one looks on, at list prices. `now` in seconds since 1970."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._rented: dict[str, Rented] = {}

    def add(self, rented: Rented) -> None:
        self._rented[rented.instance_id] = rented

    def text(self) -> str:
        """ "$0.0031"; "EC2: $0.0031" where it is only what EC2 would take; "" where no price is known."""
        prices = [(each, usd_per_hour(each.instance_type, each.place.region)) for each in self._rented.values()]
        known = [(each, price) for each, price in prices if price is not None]
        if not known:
            return ""
        now = self._now()
        usd = sum(cost_usd(price.usd_per_hour, now - each.since) for each, price in known)
        return f"{'' if any(each.place.provider == 'aws' for each, _ in known) else 'EC2: '}${usd:.4f}"


class Display:
    """An observer, called from any thread. On a terminal the phase at work has a line that moves; elsewhere each phase
    has one plain line when it begins and one when it has ended. While the job runs only the job writes.

    `job_stdout` False sends all of the job's output to stderr, where stdout is to hold one document.
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        job_stdout: bool = True,
        clock: Callable[[], float] = time.monotonic,
        stdout: IO[str] | None = None,
        stderr: IO[str] | None = None,
    ) -> None:
        self._words = stderr or sys.stderr
        self._job: dict[Stream, IO[str]] = {
            "stdout": (stdout or sys.stdout) if job_stdout else self._words,
            "stderr": self._words,
        }
        self._verbose = verbose
        self._clock = clock
        self._lock = threading.RLock()
        self._moving = is_terminal(self._words)
        self._live: Live | None = None
        self._phase: PhaseStarted | None = None
        self._began = 0.0
        self._progress = ""
        self._rate = Rate(clock)
        self._meter = Meter(time.time)
        self._mid_line = False  # the job's last words on this screen did not end their line
        self._gone: set[IO[Any]] = set()  # streams that nobody reads any more

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._stop_moving()
            self._end_line()

    def __call__(self, event: Event) -> None:
        with self._lock:
            match event:
                case PhaseStarted():
                    self._phase_started(event)
                case PhaseEnded():
                    self._phase_ended(event)
                case Output(stream, data):
                    self._output(stream, data)
                case Progress(_, done_bytes, total_bytes):
                    self._progress = self._rate.text(done_bytes, total_bytes)
                case Rented():
                    self._meter.add(event)
                case Note(text, level):
                    if level != "verbose" or self._verbose:
                        is_warning = level == "warning"
                        self.say(f"  warning: {text}" if is_warning else f"  {text}", "careful" if is_warning else None)

    def say(self, text: str, style: Style | None = None) -> None:
        """Lines of ours on stderr, never in the middle of a line of the job's."""
        with self._lock:
            self._stop_moving()
            self._end_line()
            for line in text.split("\n"):
                shown = printable(line) if style is None else styled(printable(line), style, self._words)
                self._write(self._words, (shown + "\n").encode("utf-8", "backslashreplace"))
            self._start_moving()

    def close(self, lines: list[str], *, good: bool) -> None:
        """The closing lines, in a frame where a person watches."""
        drawn = None
        if self._moving:
            from cloudrun.cli.panel import framed

            width = shutil.get_terminal_size().columns
            drawn = framed(lines, self._words, width, good=good)
        if drawn is None:
            self.say("\n".join(lines))
            return
        with self._lock:
            self._stop_moving()
            self._end_line()
            self._write(self._words, drawn)

    def _phase_started(self, event: PhaseStarted) -> None:
        self._stop_moving()
        self._phase, self._began, self._progress = event, self._clock(), ""
        self._rate = Rate(self._clock)
        if self._stands(event.phase):
            self.say(f"  {event.phase:<10}{'...':>9}  {event.detail}".rstrip(), "quiet")
        self._start_moving()

    def _stands(self, phase: Phase) -> bool:
        """Whether a phase's first line stays on the screen, rather than move until the phase has ended."""
        return phase == "run" or not self._moving

    def _phase_ended(self, event: PhaseEnded) -> None:
        detail = event.detail
        if not detail and self._phase is not None and not self._stands(event.phase):
            detail = self._phase.detail
        self._stop_moving()
        self._phase = None
        style: Style = "quiet" if event.outcome == "done" else "careful"
        self.say(phase_line(event.phase, event.elapsed_s, detail, outcome=event.outcome), style)

    def _output(self, stream: Stream, data: bytes) -> None:
        self._stop_moving()
        target = self._job[stream]
        self._write(target, data)
        if data and (target is self._words or is_terminal(target)):
            self._mid_line = not data.endswith(b"\n")

    def _end_line(self) -> None:
        if self._mid_line:
            self._write(self._words, b"\n")
            self._mid_line = False

    def _write(self, stream: IO[str], data: bytes) -> None:
        """The bytes as they are. A reader gone away (`| head`) or a full disk must not cost the run its results."""
        if stream in self._gone:
            return
        try:
            stream.flush()
            stream.buffer.write(data)  # type: ignore[attr-defined]
            stream.buffer.flush()  # type: ignore[attr-defined]
        except (OSError, ValueError) as error:  # ValueError: somebody closed it
            self._gone.add(stream)
            abandon(stream)
            if not isinstance(error, BrokenPipeError):
                self.say(f"  warning: the job's output cannot be printed any more: {error}")

    # -- the line that moves -------------------------------------------------------------------------------------

    def _start_moving(self) -> None:
        if self._live is not None or self._phase is None or self._stands(self._phase.phase):
            return
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        spinner = Spinner("line")
        console = Console(file=self._words, force_terminal=True, highlight=False)

        def frame() -> Spinner:
            spinner.update(text=Text(self._moving_text(), no_wrap=True, overflow="ellipsis"))
            return spinner

        # The job's bytes pass rich by: it redirects nothing and is stopped before anything else is written.
        self._live = Live(
            console=console,
            get_renderable=frame,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    def _stop_moving(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _moving_text(self) -> str:
        # Called by rich's own thread, which must not wait for our lock: `_stop_moving` joins it while holding that.
        phase = self._phase
        if phase is None:
            return ""
        line = phase_line(phase.phase, self._clock() - self._began, self._progress or phase.detail)[
            2:
        ]  # the spinner has its room
        cost = self._meter.text()
        return f"{line}  {cost}" if cost else line
