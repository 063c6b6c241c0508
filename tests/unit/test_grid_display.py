"""What a grid shows while it runs."""

from __future__ import annotations

import io
import os
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.cli.grid import GridDisplay
from cloudrun.core.events import Note
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.grids.cells import Tally
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.pool import Pool


def pool(**limits: Any) -> Pool:
    hand = SimpleNamespace(
        state="ready", slots=2, ahead=1, usd_per_hour=0.1, tasks=[SimpleNamespace(run=SimpleNamespace(run_id="r-3"))]
    )
    shown = SimpleNamespace(
        hands={"i-0123456789abcdef0": hand},
        limits=SimpleNamespace(usd_per_hour=0.1, budget_usd=None, **limits),
        spent_usd=0.0123,
        settings=SimpleNamespace(provider="aws"),
        why="",
        backlog=Backlog(70, 4, 10.0),
    )
    return cast("Pool", shown)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_narrow_terminal_shows_every_count(width: int) -> None:
    times = iter([0.0, 60.0])
    display = GridDisplay(clock=lambda: next(times), stderr=io.StringIO())
    tally = Tally(cells=144, succeeded=70, taken=10, failed=2, running=4)
    lines = [line[: width - 1] for line in display._lines(tally, pool(), width)]
    shown = "\n".join(lines)
    assert "72/144  1 min" in shown
    assert "some 6 min left" in lines[0]  # 72 cells of 10 s on two slots
    assert "72 done, 3 running, 2 failed" in shown, "one of the four waits for a slot"
    assert "1 ready" in shown
    assert "$0.0123" in shown
    assert width < 80 or "some $0.0223 expected in all" in shown
    assert "i-0123456789abcdef0  ready      r-3" in shown


def test_a_reader_that_has_seen_enough_costs_the_grid_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, GridDisplay(stderr=stream) as display:
        for text in ("the first line that nobody reads", "and the next"):
            display.say(text)
        display(Note("a warning from another thread", "warning"))
        display.changed(Tally(4, taken=1), pool())


@pytest.mark.parametrize("lines_before", [0, 1])
def test_a_terminal_that_was_closed_costs_the_grid_nothing(lines_before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    printed = sys.stdout
    master, slave = os.openpty()
    times = iter([0.0] + [time for draw in range(1, 5) for time in (draw, draw)])
    with os.fdopen(slave, "w") as stream, GridDisplay(clock=lambda: next(times), stderr=stream) as display:
        for _ in range(lines_before):
            display.changed(Tally(4, running=1), pool())
        os.close(master)
        display.changed(Tally(4, running=2), pool())
        display.say("a line that nobody reads")
        display.changed(Tally(4, running=3), pool())
        assert sys.stdout is printed


def test_a_cell_that_failed_says_why_and_what_to_type_and_a_cancelled_one_counts_as_none_of_that() -> None:
    words = io.StringIO()
    said = {"r-1": "ValueError: alpha\x1b[2J must be > 0" + 200 * "!"}
    display = GridDisplay(stderr=words, why=lambda run: said.get(run.run_id, "it was asked to end"))
    display.changed(Tally(4, succeeded=1, failed=1, cancelled=1), None)
    display.over(RunRecord("r-1", "a", "a.py", RunState.FAILED, datetime.now(UTC), params={"alpha": -1}))
    display.over(RunRecord("r-2", "a", "a.py", RunState.CANCELLED, datetime.now(UTC), params={"alpha": 2}))
    failed, cancelled = words.getvalue().splitlines()
    assert failed.startswith("[2/4] r-1 failed  ValueError: alpha\\x1b[2J must be > 0!!!")
    assert failed.endswith("…  alpha=-1  next: cloudrun show r-1 --log")
    assert len(failed) < 220
    assert cancelled == "[2/4] r-2 cancelled  it was asked to end  alpha=2"


def test_before_machines_work_everything_is_said_and_then_only_what_was_not_meant_to_happen() -> None:
    words = io.StringIO()
    display = GridDisplay(stderr=words)
    display(Note("starting the sandbox"))
    display.changed(Tally(4), None)
    display(Note("2 cells go on"))
    display.changed(Tally(4), pool())
    display(Note("a machine is up"))
    display(Note("a machine went", "warning"))
    assert words.getvalue().splitlines() == [
        "  starting the sandbox",
        "  2 cells go on",
        "  warning: a machine went",
    ]
