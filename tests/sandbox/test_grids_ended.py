"""Grids whose command is killed, told to stop or overtaken: the same command goes on, and nothing is left."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable

import pytest

from cloudrun.core.states import GridState, RunState
from cloudrun.ledger import Ledger
from cloudrun.ledger.home import DATABASE
from tests.sandbox.cells import CELL, command, done, each_cell_once, only_grid, running
from tests.sandbox.conftest import Project, Start, wait_for

pytestmark = pytest.mark.usefixtures("no_unit_is_left_alone")
Nothing = Callable[[Project], None]


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_brings_home_what_is_done_and_the_same_command_goes_on(
    project: Project, start: Start, nothing_left: Nothing, number: signal.Signals, code: int
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.5))
    words = command(8, "--units", "2")
    submitting = start("-m", "cloudrun", *words)
    ledger = project.ledger
    wait_for(lambda: done(ledger) >= 2 and running(ledger) > 0, "some cells")
    os.kill(submitting.pid, number)
    _, said = submitting.communicate(timeout=150)
    assert submitting.returncode == code, said
    assert "the same command goes on" in said
    assert re.search(r"machines? that it had are terminated: \$|its machine is terminated: \$", said)
    assert "Traceback" not in said
    grid = only_grid(project)
    assert grid.state is GridState.STOPPED
    nothing_left(project)
    first = {run.run_id for run in ledger.runs() if run.state is RunState.SUCCEEDED}
    assert len(first) >= 2
    how = "interrupted by Ctrl-C" if number == signal.SIGINT else "ended by SIGTERM"
    cut = [run for run in ledger.runs() if run.state is RunState.CANCELLED]
    assert all(run.detail.startswith(how) and run.detail.endswith("to go on") for run in cut), cut
    assert not any(run.scores for run in cut), "a cell that had come to its end is judged by that"
    again = project.json(*words)
    assert (again["grid_id"], again["summary"]["succeeded"]) == (grid.grid_id, 8)
    assert first <= {run["run_id"] for run in again["runs"]}
    nothing_left(project)


@pytest.mark.slow
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


def test_a_grid_that_runs_is_one_line_and_is_cancelled_from_outside(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s="0.2 if params['n'] < 2 else 600"))
    words = command(8, "--units", "2", "--grace", "1s")
    submitting = start("-m", "cloudrun", *words)
    ledger = project.ledger
    wait_for(lambda: done(ledger) == 2 and running(ledger) == 2, "two cells, and two that go on")
    listed = project.json("ps")
    assert listed["runs"] == []
    (seen,) = listed["grids"]
    assert (seen["cells"], seen["succeeded"], seen["running"], seen["left"]) == (8, 2, 2, 4)
    assert seen["attended"]
    grid_id = only_grid(project).grid_id
    (line,) = [line for line in project.cloudrun("ps").stdout.splitlines() if grid_id in line]
    assert "2 of 8 cells done, 2 running" in line
    cancelled = project.cloudrun("cancel", grid_id)
    assert cancelled.returncode == 0, cancelled.stderr
    assert "2 of 8 cells had succeeded" in cancelled.stderr
    _, said = submitting.communicate(timeout=150)
    assert submitting.returncode == 130, said
    assert f"{grid_id} was cancelled" in said
    assert Counter(run.state for run in ledger.runs()) == {RunState.SUCCEEDED: 2, RunState.CANCELLED: 6}
    assert project.json("ps")["grids"] == []
    assert project.cloudrun("cancel", grid_id).returncode == 2
    nothing_left(project)


@pytest.mark.slow
def test_a_grid_that_a_dead_client_has_left_is_cancelled_with_its_machines(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=600))
    submitting = start("-m", "cloudrun", *command(5, "--units", "2"))
    ledger = project.ledger
    wait_for(lambda: running(ledger) == 2, "two cells")
    os.kill(submitting.pid, signal.SIGKILL)
    submitting.wait()
    (seen,) = project.json("ps")["grids"]
    assert not seen["attended"]
    cancelled = project.json("cancel", seen["grid_id"], "--grace", "1s")
    assert cancelled["summary"]["state"] == "cancelled"
    runs = ledger.runs()
    assert Counter(run.state for run in runs) == {RunState.CANCELLED: 5}
    saved = [artifact.path for run in runs for artifact in run.artifacts if artifact.kind == "output"]
    assert saved == ["began.txt"] * 2, "what they had written is home"
    nothing_left(project)


@pytest.mark.slow
def test_what_is_begun_anew_leaves_no_machine_of_what_was_killed(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s="600 if os.getcwd() and not params['n'] else 0"))
    submitting = start("-m", "cloudrun", *command(2, "--units", "2", "--grace", "1s"))
    ledger = project.ledger
    wait_for(lambda: done(ledger) == 1, "the other cell")
    os.kill(submitting.pid, signal.SIGKILL)
    submitting.wait()
    again = start("-m", "cloudrun", *command(2, "--units", "2", "--grace", "1s", "--again"))
    wait_for(lambda: done(ledger) == 2 and running(ledger) == 1, "the same once more")
    os.kill(again.pid, signal.SIGINT)
    again.communicate(timeout=150)
    assert {grid.state for grid in ledger.grids()} == {GridState.CANCELLED, GridState.STOPPED}
    nothing_left(project)


def elsewhere(ledger: Ledger) -> None:
    """Make every client one of another computer, not heard of for an hour."""
    with sqlite3.connect(ledger.home / DATABASE, timeout=0.5) as connection:
        connection.execute("UPDATE clients SET host = 'far-away', heartbeat_at = '2020-01-01T00:00:00.000000Z'")
    connection.close()


@pytest.mark.slow
def test_a_client_that_slept_while_another_took_over_does_no_harm(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.5))
    words = command(16, "--units", "2")
    sleeper = start("-m", "cloudrun", *words)
    ledger = project.ledger
    wait_for(lambda: done(ledger) >= 2 and running(ledger) > 0, "some cells")
    while True:
        os.kill(sleeper.pid, signal.SIGSTOP)
        try:
            elsewhere(ledger)
            break
        except sqlite3.OperationalError:  # it fell asleep in the middle of writing, which on one computer locks
            os.kill(sleeper.pid, signal.SIGCONT)
            time.sleep(0.05)
    at_work = {run.run_id for run in ledger.runs() if run.state not in (RunState.SUCCEEDED, RunState.QUEUED)}
    second = start("-m", "cloudrun", *words)
    before = done(ledger)
    wait_for(lambda: done(ledger) >= before + 3, "some cells of the other client's")
    os.kill(sleeper.pid, signal.SIGCONT)
    _, said = sleeper.communicate(timeout=150)
    assert sleeper.returncode == 1, said
    assert "another process goes on with grid" in said
    _, told = second.communicate(timeout=150)
    assert second.returncode == 0, told
    each_cell_once(project, 16, at_work)
    nothing_left(project)


BROKEN_FACE = """
import sys
from pathlib import Path
from cloudrun import Ledger, config
from cloudrun.core.events import nobody
from cloudrun.grids.grid import Wishes, run_grid
from cloudrun.plan.grid import make_grid
from cloudrun.runs.prepared import Job

def over(run):
    raise BrokenPipeError("nobody reads this any more")

ledger = Ledger()
run_grid(Job(Path("cell.py")), make_grid({"n": [1, 2, 3, 4, 5, 6]}), config.load(Path.cwd(), {}), Wishes(2, slots=2),
         ledger=ledger, observe=nobody, over=over)
"""


@pytest.mark.slow
def test_a_face_that_breaks_again_and_again_leaves_no_machine_and_no_thread(
    project: Project, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.5))
    project.write("face.py", BROKEN_FACE)
    broken = project.python("face.py")
    assert broken.returncode == 1, broken.stderr
    assert "BrokenPipeError" in broken.stderr
    nothing_left(project)
