"""Grids that are killed, cut short, cancelled and robbed of their machines: every cell once, and nothing left."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from cloudrun.core.states import EndReason, GridState, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.ledger.home import DATABASE
from cloudrun.sandbox import client
from tests.sandbox.cells import CELL, command, only_grid
from tests.sandbox.conftest import Aws, Project, Start, pids_of, wait_for

Nothing = Callable[[Project], None]


@pytest.fixture(autouse=True)
def no_unit_is_left_alone(project: Project) -> Iterator[None]:
    yield
    for unit in project.ledger.units():
        project.cloudrun("reap", unit.instance_id)


def done(ledger: Ledger) -> int:
    return sum(run.state is RunState.SUCCEEDED for run in ledger.runs())


def running(ledger: Ledger) -> int:
    return sum(run.state is RunState.RUNNING for run in ledger.runs())


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


def test_machines_that_go_away_in_the_middle_cost_no_cell(
    project: Project, start: Start, aws: Aws, nothing_left: Nothing
) -> None:
    """One of four is ended behind our back, one is taken back by the provider, and one hangs before it lets us in."""
    project.write("cell.py", CELL.format(sleep_s=0.6))
    submitting = start("-m", "cloudrun", *command(24, "--units", "4", "--spot"))
    ledger = project.ledger
    wait_for(lambda: len(ledger.units()) == 4, "machines")
    hangs = ledger.units()[0].instance_id
    wait_for(lambda: bool(pids_of(hangs)), "its processes")
    for pid in pids_of(hangs):
        os.kill(pid, signal.SIGSTOP)
    assert ledger.unit(hangs).state is not UnitState.READY, "it was too quick for this test to prove anything"
    wait_for(lambda: running(ledger) == 3, "three cells")
    at_work = {run.instance_id for run in ledger.runs() if run.state is RunState.RUNNING and run.instance_id}
    ended, interrupted, _ = at_work
    client.interrupt(interrupted, 1)
    aws("ec2", "terminate-instances", "--instance-ids", ended)
    _, said = submitting.communicate(timeout=100)
    assert submitting.returncode == 0, said
    runs = ledger.runs()
    assert Counter(run.state for run in runs) == {RunState.SUCCEEDED: 24}
    assert {run.params["n"] for run in runs} == set(range(24))
    ends = [each.end_reason for run in runs for each in ledger.attempts(run.run_id)]
    assert Counter(ends)[EndReason.COMPLETED] == 24
    assert {EndReason.UNIT_LOST} <= set(ends), "the one that went without a word is under suspicion"
    assert hangs not in {each.instance_id for run in runs for each in ledger.attempts(run.run_id)}
    nothing_left(project)


def test_two_clients_do_not_run_the_same_grid_at_once(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("cell.py", CELL.format(sleep_s=1))
    words = command(4, "--units", "2")
    both = [start("-m", "cloudrun", *words) for _ in range(2)]
    said = [process.communicate(timeout=100)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    refused = next(text for process, text in zip(both, said, strict=True) if process.returncode == 2)
    assert "another process goes on with this very grid" in refused
    each_cell_once(project, 4)
    nothing_left(project)


def test_a_grid_whose_first_cells_fail_alike_stops_unless_it_is_told_to_go_on(
    project: Project, nothing_left: Nothing
) -> None:
    project.write("cell.py", "raise ValueError('no such parameter: ' + str(hash('x')))\n")
    stopped = project.cloudrun(*command(10))
    assert stopped.returncode == 5, stopped.stderr
    assert "the first 3 cells failed in the same way: ValueError: no such parameter" in stopped.stderr
    assert len(project.ledger.runs(states=[RunState.FAILED])) == 3
    assert only_grid(project).state is GridState.STOPPED
    project.write("cell.py", "import json, os\nn = json.loads(os.environ['CLOUDRUN_PARAMS'])['n']\nassert n > 1\n")
    some = project.json(*command(4, "--keep-going"))
    assert (some["summary"]["succeeded"], some["summary"]["failed"], some["summary"]["state"]) == (2, 2, "done")
    nothing_left(project)


FLAKY = """
import json, os, sys
n = json.loads(os.environ["CLOUDRUN_PARAMS"])["n"]
if n == 1 and not os.path.exists("{seen}"):
    open("{seen}", "w").close()
    sys.exit("flaky")
print(json.dumps({{"accuracy" if n else "other": n}}))
"""


def test_a_script_that_fails_once_is_tried_again_where_that_was_asked_for(project: Project) -> None:
    """And a score that one of the cells does not give leaves it out of the ranking, and nothing else."""
    # /tmp is the machine's own: what one cell leaves there, the next one on the same machine finds
    project.write("cell.py", FLAKY.format(seen="/tmp/seen"))
    words = command(3, "--retries", "1", "--metric", "accuracy")
    said = project.json(*words)
    assert (said["summary"]["succeeded"], said["summary"]["failed"]) == (3, 0)
    ledger = project.ledger
    assert Counter(run.state for run in ledger.runs()) == {RunState.SUCCEEDED: 3, RunState.FAILED: 1}
    assert [run.params["n"] for run in ledger.ranking(grid_id=said["grid_id"])] == [2, 1]


@pytest.mark.slow
def test_a_cell_that_takes_two_machines_down_gets_no_third(project: Project, nothing_left: Nothing) -> None:
    project.write(
        "cell.py",
        "import json, os, time\nn = json.loads(os.environ['CLOUDRUN_PARAMS'])['n']\n"
        "if n == 0:\n    os.system('sudo -n systemctl poweroff')\n    time.sleep(60)\n",
    )
    said = project.cloudrun(*command(3))
    assert said.returncode == 5, said.stderr
    assert "was there when 2 machines went down" in said.stderr
    ledger = project.ledger
    (bad,) = ledger.runs(states=[RunState.FAILED])
    assert (bad.params["n"], bad.end_reason, bad.attempts) == (0, EndReason.UNIT_LOST, 2)
    assert len(ledger.runs(states=[RunState.SUCCEEDED])) == 2
    nothing_left(project)


@pytest.mark.parametrize(
    ("options", "word", "step"),
    [
        (("--budget", "0.001"), "budget", "--budget 0.0"),
        (("--budget", "0"), "--budget", "--budget 5"),
        (("--deadline", "30s"), "live", "--deadline 70s"),
        (("--units", "0"), "--units", "--units"),
        (("--slots", "100000"), "--slots", ""),
        (("--retries", "-1"), "--retries", ""),
    ],
)
def test_limits_that_nothing_fits_in_are_refused_before_anything_is_launched(
    project: Project, options: tuple[str, ...], word: str, step: str
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0))
    refused = project.cloudrun(*command(4, *options))
    assert refused.returncode == 2, refused.stderr
    assert word in refused.stderr
    assert step in refused.stderr
    assert project.ledger.launches() == []
    assert project.ledger.grids() == []


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
    _, said = submitting.communicate(timeout=60)
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
def test_only_what_is_new_runs_and_all_of_it_where_it_is_asked_for(project: Project) -> None:
    project.write("cell.py", CELL.format(sleep_s=0))

    def taken(cells: int, *options: str) -> tuple[int, int]:
        summary = project.json(*command(cells, *options))["summary"]
        return summary["succeeded"], summary["taken"]

    assert taken(2) == (2, 0)
    assert taken(3) == (3, 2), "another grid, and the same cells"
    assert len(project.ledger.units(live=False)) == 2, "nothing to do, and no machine for it"
    project.write("cell.py", CELL.format(sleep_s=0.01))
    assert taken(2) == (2, 0), "another script, and other cells"
    assert taken(2, "--again") == (2, 0)


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
    again.communicate(timeout=60)
    assert {grid.state for grid in ledger.grids()} == {GridState.CANCELLED, GridState.STOPPED}
    nothing_left(project)


def test_a_budget_that_ends_in_the_middle_is_kept_and_the_next_command_goes_on(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    """What an earlier command of the same grid has spent counts."""
    project.write("cell.py", CELL.format(sleep_s=0.1))
    words = command(4, "--budget", "0.0105")  # one machine, for as long as it needs to be worth its boot
    submitting = start("-m", "cloudrun", *words)
    ledger = project.ledger
    wait_for(lambda: done(ledger) >= 1, "a cell")
    os.kill(submitting.pid, signal.SIGINT)
    submitting.communicate(timeout=60)
    stopped = project.cloudrun(*words)
    assert stopped.returncode == 1, stopped.stderr
    assert "what is left of the budget" in stopped.stderr
    assert "with a higher --budget" in stopped.stderr
    assert len(ledger.units(live=False)) == 1
    more = project.cloudrun(*command(4, "--budget", "0.05"))
    assert more.returncode == 0, more.stderr
    assert len(project.ledger.grids()) == 1
    nothing_left(project)


@pytest.mark.slow
def test_a_smaller_budget_than_what_lives_may_cost_is_said(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=3))
    submitting = start("-m", "cloudrun", *command(4))
    wait_for(lambda: running(project.ledger) == 1, "a cell")
    os.kill(submitting.pid, signal.SIGKILL)
    submitting.wait()
    resumed = project.cloudrun(*command(4, "--budget", "0.05"))
    assert resumed.returncode == 0, resumed.stderr
    assert "more than the budget of $0.05" in resumed.stderr
    assert len(project.ledger.units(live=False)) == 1
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
    _, said = sleeper.communicate(timeout=60)
    assert sleeper.returncode == 1, said
    assert "another process goes on with grid" in said
    _, told = second.communicate(timeout=60)
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
