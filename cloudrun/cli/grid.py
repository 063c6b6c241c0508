"""A grid on the screen: one view that moves on a terminal, a line a cell elsewhere, and its ranking at the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from cloudrun.cli.grid_summary import closing_lines, detached_lines
from cloudrun.cli.printing import abandon, assignments_text, columns, is_terminal, print_json, printable
from cloudrun.core.clock import utc_text
from cloudrun.core.errors import CleanupIncomplete, JobFailed
from cloudrun.core.events import Event, Note
from cloudrun.core.records import RunRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import GridState, RunState
from cloudrun.grids.cells import Tally
from cloudrun.grids.grid import Finished, Wishes, run_grid
from cloudrun.grids.machines import units_of
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import AT_LIST_PRICES, mark, usd_text
from cloudrun.plan.estimate import work_s
from cloudrun.plan.grid import Grid
from cloudrun.plan.quantities import duration_text, score_text
from cloudrun.plan.ranking import Preferred
from cloudrun.pools.pool import Pool
from cloudrun.runs.failing import why_failed
from cloudrun.runs.prepared import Job

if TYPE_CHECKING:
    from rich.live import Live


REDRAW_S = 0.2
WHY_CHARACTERS = 120  # of what a failed cell said last
JSON_RUNS = 1000  # read from the ledger at once


class GridDisplay:
    """Called from any thread. `why` gives the reason of a run's failure in a line."""

    def __init__(
        self,
        metric: str | None = None,
        *,
        minimize: bool = False,
        verbose: bool = False,
        why: Callable[[RunRecord], str] = lambda run: run.detail or "",
        clock: Callable[[], float] = time.monotonic,
        stderr: IO[str] | None = None,
    ) -> None:
        self._metric = metric
        self._minimize = minimize
        self._verbose = verbose
        self._why = why
        self._clock = clock
        self._words = stderr or sys.stderr
        self._moving = is_terminal(self._words)
        self._live: Live | None = None
        self._is_gone = False  # nobody reads us any more
        self._lock = threading.RLock()
        self._began = clock()
        self._drawn = float("-inf")
        self._tally: Tally | None = None
        self._works = False  # there is a pool
        self._best: RunRecord | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._lock, self._writing():
            if self._live is not None:
                self._live.stop()
                self._live = None

    def __call__(self, event: Event) -> None:
        """What is said before machines work; then, of all that happens on them, only what was not meant to: what cells
        print is in their logs."""
        is_early = not self._works and isinstance(event, Note) and event.level == "info"
        if isinstance(event, Note) and (event.level == "warning" or self._verbose or is_early):
            self.say(f"  {'warning: ' if event.level == 'warning' else ''}{event.text}")

    def say(self, text: str) -> None:
        with self._lock, self._writing():
            if self._is_gone:
                return
            if self._live is not None:
                self._live.console.print(printable(text), markup=False, highlight=False)
            else:
                print(printable(text), file=self._words, flush=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A reader gone away (`| head`) or a closed terminal must not cost the grid its machines' work."""
        try:
            yield
        except (OSError, ValueError):  # ValueError: somebody closed it
            self._is_gone = True
            abandon(self._words)
            live, self._live = self._live, None
            if live is not None:
                with suppress(OSError, ValueError):
                    live.stop()  # gives back sys.stdout and sys.stderr

    def over(self, run: RunRecord) -> None:
        """A cell has ended."""
        with self._lock:
            score = run.scores.get(run.metric or "")
            if run.state is RunState.SUCCEEDED and score is not None and self._is_better(run, score):
                self._best = run
            if not self._moving or run.state is not RunState.SUCCEEDED:
                tally = self._tally
                count = f"[{tally.succeeded + tally.failed}/{tally.cells}] " if tally else ""
                words = [f"{count}{run.run_id} {run.state}", self._told(run, score), assignments_text(run.params)]
                if run.state in (RunState.FAILED, RunState.LOST):
                    words.append(f"next: cloudrun show {run.run_id} --log")
                self.say("  ".join(word for word in words if word))

    def _told(self, run: RunRecord, score: float | None) -> str:
        """How a cell ended, in few words."""
        if run.state is RunState.SUCCEEDED:
            return f"{run.metric} {score_text(score)}" if score is not None else ""
        why = self._why(run)
        return why if len(why) <= WHY_CHARACTERS else f"{why[: WHY_CHARACTERS - 1]}…"

    def changed(self, tally: Tally, pool: Pool | None) -> None:
        with self._lock:
            if self._tally is None and tally.taken == tally.cells:
                which = "its only cell is" if tally.cells == 1 else f"all {tally.cells:,} cells are"
                self.say(f"nothing to do: {which} in the ledger (--again runs them once more)")
            elif self._tally is None and tally.taken:
                verb = "is" if tally.taken == 1 else "are"
                self.say(f"{tally.taken} of {tally.cells:,} cells {verb} taken from the ledger, and not run again")
            self._tally = tally
            self._works = self._works or pool is not None
            now = self._clock()
            if self._moving and not self._is_gone and pool is not None and now - self._drawn >= REDRAW_S:
                self._drawn = now
                self._draw(tally, pool)

    def _is_better(self, run: RunRecord, score: float) -> bool:
        if self._best is None:
            return True
        best = self._best.scores.get(run.metric or "")
        if best is None:
            return True
        return score < best if run.minimize else score > best

    def _draw(self, tally: Tally, pool: Pool) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            console = Console(file=self._words, highlight=False, markup=False)
            self._live = Live(console=console, auto_refresh=False, transient=True)
        width = self._live.console.width
        lines = [line[: width - 1] for line in self._lines(tally, pool, width)]
        with self._writing():
            self._live.start()  # nothing where it has
            self._live.update(Text("\n".join(lines)), refresh=True)

    def _lines(self, tally: Tally, pool: Pool, width: int) -> list[str]:
        done = tally.over
        elapsed_s = self._clock() - self._began
        left_s, expected_usd = _outlook(pool)
        left = f", some {duration_text(left_s)} left" if left_s is not None else ""
        room = min(30, width - 50)
        filled = room * done // max(1, tally.cells)
        bar = f"[{'#' * filled}{' ' * (room - filled)}] " if room >= 8 else ""
        cancelled = f", {tally.cancelled} cancelled" if tally.cancelled else ""
        ahead = sum(hand.ahead for hand in list(pool.hands.values()))
        running, waiting = tally.running - ahead, tally.left + ahead
        counts = f"{done} done, {running} running, {tally.failed} failed{cancelled}, {waiting} wait"
        lines = [
            f"{bar}{done}/{tally.cells}  {duration_text(elapsed_s)}{left}",
            f"cells: {counts}{f', {tally.elsewhere} out of reach' if tally.elsewhere else ''}",
        ]
        states = [hand.state for hand in pool.hands.values()]
        units = ", ".join(
            f"{states.count(word)} {word}" for word in ("ready", "launching", "draining") if word in states
        )
        lines.append(f"units: {units or 'none yet'}")
        if pool.limits.usd_per_hour:
            most = f" of ${pool.limits.budget_usd:g}" if pool.limits.budget_usd is not None else ""
            expected = f", some {usd_text(expected_usd)} expected in all" if expected_usd is not None else ""
            spent = f"spent: {usd_text(pool.spent_usd)}{most} {AT_LIST_PRICES}{expected}"
            lines.append(spent + mark(pool.settings.provider))
        if pool.why:
            lines.append(f"why:   {pool.why}")
        if self._best is not None and self._best.metric:
            score = self._best.scores[self._best.metric]
            lines.append(f"best:  {self._best.metric} {score_text(score)}  {assignments_text(self._best.params)}")
        lines += [
            f"  {name}  {hand.state:<9}  {' '.join(cell.run.run_id for cell in hand.tasks)}"
            for name, hand in list(pool.hands.items())[:12]
        ]
        return [printable(line) for line in lines]


def _outlook(pool: Pool) -> tuple[float | None, float | None]:
    """Seconds until the end and US dollars by then, with the units that there are; None where nobody knows."""
    backlog, ready = pool.backlog, [hand for hand in pool.hands.values() if hand.state == "ready"]
    if backlog.expected_s is None or not ready:
        return None, None
    left_s = work_s(backlog.queued, backlog.running, backlog.expected_s, sum(hand.slots for hand in ready))
    return left_s, pool.spent_usd + sum(hand.usd_per_hour for hand in ready) * left_s / 3600


def submit_grid(
    script: Path,
    arguments: tuple[str, ...],
    grid: Grid,
    name: str | None,
    settings: Settings,
    wishes: Wishes,
    *,
    asked: Preferred,
    minimize: bool | None = None,
    detach: bool = False,
    verbose: bool,
    as_json: bool,
) -> int:
    """Run a grid from the command line; returns the exit code: 5 where a cell failed, 1 where some are left.
    Its cells are ranked as `asked`; `minimize`: what was typed, whatever ranks then."""
    with (
        closing(Ledger()) as ledger,
        GridDisplay(
            settings.metric, minimize=bool(settings.minimize), verbose=verbose, why=partial(why_failed, ledger)
        ) as display,
    ):
        close = partial(close_with, ledger=ledger, display=display, asked=asked, minimize=minimize, as_json=as_json)
        codes: list[int] = []
        finished = run_grid(
            Job(script, arguments, {}, name),
            grid,
            settings,
            wishes,
            ledger=ledger,
            observe=display,
            changed=display.changed,
            over=display.over,
            detach=detach,
            left_alone=lambda finished: codes.append(close(finished)),
            estimated=lambda estimate: (
                display.say(f"{estimate}{mark(settings.provider) if estimate.usd_per_hour else ''}")
                if estimate.cells
                else None
            ),
        )
        return codes[0] if codes else close(finished)


def show_grid(job: Job, grid: Grid, settings: Settings, wishes: Wishes, *, as_json: bool) -> int:
    """Say what it would do, and do nothing."""
    from cloudrun.cli.preview import grid_lines, shown
    from cloudrun.grids.preview import document as preview_document
    from cloudrun.grids.preview import preview_grid

    with closing(Ledger()) as ledger, GridDisplay(settings.metric) as display:
        seen = preview_grid(job, grid, settings, wishes, ledger=ledger, observe=display)
    if as_json:
        print_json(preview_document(seen))
    else:
        print(shown(grid_lines(seen), columns(sys.stdout)), flush=True)
    if seen.seen.problem is not None:
        raise seen.seen.problem
    return 0


def close_with(
    finished: Finished,
    ledger: Ledger,
    display: GridDisplay,
    asked: Preferred,
    *,
    minimize: bool | None = None,
    as_json: bool,
) -> int:
    """Say how it went, ranked as `asked`; returns the exit code."""
    is_left_alone = finished.grid.state is GridState.OPEN
    lines = (
        detached_lines(finished, ledger) if is_left_alone else closing_lines(finished, ledger, asked, minimize=minimize)
    )
    for line in lines:
        display.say(line)
    if as_json:
        print_json(document(finished, ledger))
    elif is_left_alone:
        print(finished.grid.grid_id)
    return exit_code(finished)


def exit_code(finished: Finished) -> int:
    if finished.grid.state is GridState.OPEN:  # its machines go on with it
        return 0 if finished.tally.running and not finished.why else 1
    if finished.tally.elsewhere:
        return CleanupIncomplete.exit_code  # on machines that may be billing
    if finished.tally.failed or finished.tally.cancelled:
        return JobFailed.exit_code
    return 0 if finished.grid.state is GridState.DONE else 1


def document(finished: Finished, ledger: Ledger) -> dict[str, Any]:
    """{grid_id, runs, summary}; `runs` in the order of the cells."""
    runs: list[dict[str, Any]] = []
    after = -1
    while batch := ledger.cells(finished.grid.grid_id, after=after, limit=JSON_RUNS):
        runs += [ledger.get(cell.run_id).to_dict() for cell in batch]
        after = batch[-1].number
    tally = finished.tally
    units = units_of(ledger, finished.grid.grid_id)
    summary = {
        "state": str(finished.grid.state),
        "cells": tally.cells,
        "succeeded": tally.succeeded,
        "taken": tally.taken,
        "failed": tally.failed,
        "cancelled": tally.cancelled,
        "left": tally.left + tally.elsewhere,
        "on_units": tally.running,
        "instance_ids": [unit.instance_id for unit in units],
        "deadline": utc_text(max(unit.deadline for unit in units)) if units else None,
        "why": finished.why,
        "spent_usd": round(finished.most_usd or finished.bill.usd, 6),
        "cost": finished.bill.document(),
    }
    return {"grid_id": finished.grid.grid_id, "runs": runs, "summary": summary}
