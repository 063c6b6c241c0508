"""Grids that are killed, cut short, cancelled and robbed of their machines: every cell once, and nothing left."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudrun.core.records import GridRecord
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.ledger import Ledger
from cloudrun.sandbox import client
from tests.sandbox.conftest import Aws, Project, Start, wait_for

Nothing = Callable[[Project], None]

# Sleeps as long as it is told, and gives a score; what it makes says which cell it was.
CELL = """
import json, os, time
params = json.loads(os.environ["CLOUDRUN_PARAMS"])
open("began.txt", "w").write(str(params))
time.sleep({sleep_s})
print(json.dumps({{"accuracy": params["n"] / 100}}))
"""


@pytest.fixture(autouse=True)
def no_unit_is_left_alone(project: Project) -> Iterator[None]:
    yield
    for unit in project.ledger.units():
        project.cloudrun("reap", unit.instance_id)


def numbers(count: int) -> str:
    return "n=" + ",".join(map(str, range(count)))


def command(cells: int, *options: str) -> tuple[str, ...]:
    return ("submit", "cell.py", "--set", numbers(cells), "--slots", "1", *options)


def done(ledger: Ledger) -> int:
    return sum(run.state is RunState.SUCCEEDED for run in ledger.runs())


def running(ledger: Ledger) -> int:
    return sum(run.state is RunState.RUNNING for run in ledger.runs())


def only_grid(project: Project) -> GridRecord:
    (grid,) = project.ledger.grids()
    return grid


def each_cell_once(project: Project, cells: int, twice: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Every cell has one run, which succeeded at the first attempt; those that ran when something was killed may have
    had two."""
    ledger = project.ledger
    runs = ledger.runs()
    assert Counter(run.state for run in runs) == {RunState.SUCCEEDED: cells}
    assert {run.params["n"] for run in runs} == set(range(cells))
    for run in runs:
        assert run.attempts == 1 or (run.attempts == 2 and run.run_id in twice), (run.run_id, run.attempts)


def test_a_grid_whose_client_is_killed_twice_goes_on_by_the_same_command(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.7))
    words = command(24, "--units", "3")
    ledger = project.ledger
    at_work: set[str] = set()
    for share in (8, 16):
        submitting = start("-m", "cloudrun", *words)
        wait_for(lambda share=share: done(ledger) >= share and running(ledger) > 0, f"{share} cells")  # type: ignore[misc]
        os.kill(submitting.pid, signal.SIGKILL)
        submitting.wait()
        unfinished = [run for run in ledger.runs() if run.state not in (RunState.SUCCEEDED, RunState.QUEUED)]
        assert unfinished, "nothing ran when it was killed: this would prove nothing"
        at_work |= {run.run_id for run in unfinished}
    before = done(ledger)
    document = project.json(*words)
    assert document["summary"]["taken"] >= before
    assert document["summary"]["succeeded"] == 24
    assert len(document["runs"]) == 24
    each_cell_once(project, 24, at_work)
    assert only_grid(project).state is GridState.DONE
    nothing_left(project)


def test_machines_without_a_cell_are_not_left_by_a_client_that_is_killed(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    """They are just booting: no run says that they are there."""
    project.write("cell.py", CELL.format(sleep_s=0.1))
    submitting = start("-m", "cloudrun", *command(4, "--units", "3"))
    ledger = project.ledger
    wait_for(lambda: len(ledger.units()) == 3, "machines")
    os.kill(submitting.pid, signal.SIGKILL)
    submitting.wait()
    assert running(ledger) == 0
    again = project.cloudrun(*command(4, "--units", "3"))
    assert again.returncode == 0, again.stderr
    assert len(ledger.units(live=False)) == 3, "what booted already is what works on it"
    each_cell_once(project, 4)
    nothing_left(project)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_brings_home_what_is_done_and_the_same_command_goes_on(
    project: Project, start: Start, nothing_left: Nothing, number: signal.Signals, code: int
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.5))
    words = command(8, "--units", "2")
    submitting = start("-m", "cloudrun", *words)
    ledger = project.ledger
    wait_for(lambda: done(ledger) >= 2 and running(ledger) > 0, "some cells")
    os.kill(submitting.pid, number)
    _, said = submitting.communicate(timeout=60)
    assert submitting.returncode == code, said
    assert "the same command goes on" in said
    assert "Traceback" not in said
    grid = only_grid(project)
    assert grid.state is GridState.STOPPED
    nothing_left(project)
    first = {run.run_id for run in ledger.runs() if run.state is RunState.SUCCEEDED}
    assert len(first) >= 2
    again = project.json(*words)
    assert (again["grid_id"], again["summary"]["succeeded"]) == (grid.grid_id, 8)
    assert first <= {run["run_id"] for run in again["runs"]}
    nothing_left(project)


def test_two_signals_end_a_grid_at_once(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("cell.py", "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(600)\n")
    submitting = start("-m", "cloudrun", *command(4, "--units", "2"))
    ledger = project.ledger
    wait_for(lambda: running(ledger) == 2, "two cells")
    os.kill(submitting.pid, signal.SIGINT)
    assert submitting.stderr is not None
    while "once more" not in submitting.stderr.readline():
        assert submitting.poll() is None
    os.kill(submitting.pid, signal.SIGINT)
    assert submitting.wait(20) == 130, "each cell has 30 seconds to end, and would take them"
    nothing_left(project)
