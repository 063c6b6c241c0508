"""Grids whose cells fail, whose machines go and whose money ends: every cell once, and nothing left."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import pytest

from cloudrun.agent import processes
from cloudrun.core.states import EndReason, GridState, RunState, UnitState
from cloudrun.sandbox import client
from tests.sandbox.cells import CELL, command, done, each_cell_once, only_grid, running
from tests.sandbox.conftest import Aws, Project, Start, pids_of, wait_for

pytestmark = pytest.mark.usefixtures("no_unit_is_left_alone")
Nothing = Callable[[Project], None]


def stopped(instance_id: str) -> bool:
    """Whether no process of that machine goes on; stops those that do."""
    for _ in range(4):  # one that is being made, or begins another program just now, is seen a moment later
        there = pids_of(instance_id)
        awake = [pid for pid in there if (found := processes.look(pid)) and found.state not in "TZ"]
        for pid in awake:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        if awake or not there:
            return False
        time.sleep(0.1)
    return True


def test_machines_that_go_away_in_the_middle_cost_no_cell(
    project: Project, start: Start, aws: Aws, nothing_left: Nothing
) -> None:
    """One of four is ended behind our back, one is taken back by the provider, and one hangs before it lets us in."""
    project.write("cell.py", CELL.format(sleep_s=0.6))
    submitting = start("-m", "cloudrun", *command(24, "--units", "4", "--spot"))
    ledger = project.ledger
    wait_for(lambda: len(ledger.units()) == 4, "machines")
    os.kill(submitting.pid, signal.SIGSTOP)  # it shall not be let in before that machine hangs
    hangs = ledger.units()[0].instance_id
    wait_for(lambda: stopped(hangs), "its processes")
    assert ledger.unit(hangs).state is not UnitState.READY, "it was too quick for this test to prove anything"
    os.kill(submitting.pid, signal.SIGCONT)
    at_work: set[str] = set()

    def three_work() -> bool:
        at_work.clear()
        at_work.update(run.instance_id for run in ledger.runs(states=[RunState.RUNNING]) if run.instance_id)
        return len(at_work) == 3

    wait_for(three_work, "three cells")
    ended, interrupted, _ = at_work
    client.interrupt(interrupted, 1)
    aws("ec2", "terminate-instances", "--instance-ids", ended)
    _, said = submitting.communicate(timeout=200)
    assert submitting.returncode == 0, said
    runs = ledger.runs()
    assert Counter(run.state for run in runs) == {RunState.SUCCEEDED: 24}
    assert {run.params["n"] for run in runs} == set(range(24))
    ends = [each.end_reason for run in runs for each in ledger.attempts(run.run_id)]
    assert Counter(ends)[EndReason.COMPLETED] == 24
    lost = {each.end_reason for each in ledger.attempts_on([ended])} - {EndReason.COMPLETED}
    assert lost <= {EndReason.UNIT_LOST, EndReason.INTERRUPTED}, "suspected where it had begun, else it waits again"
    assert hangs not in {each.instance_id for run in runs for each in ledger.attempts(run.run_id)}
    nothing_left(project)


def test_two_clients_do_not_run_the_same_grid_at_once(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("cell.py", CELL.format(sleep_s=1))
    words = command(4, "--units", "2")
    both = [start("-m", "cloudrun", *words) for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in both]
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
    assert "failed with the same error, so no other was begun: ValueError: no such parameter" in stopped.stderr
    assert len(project.ledger.runs(states=[RunState.FAILED])) == 3
    assert only_grid(project).state is GridState.STOPPED
    project.write("cell.py", "import json, os\nn = json.loads(os.environ['CLOUDRUN_PARAMS'])['n']\nassert n > 1\n")
    some = project.json(*command(4, "--keep-going"))
    assert (some["summary"]["succeeded"], some["summary"]["failed"], some["summary"]["state"]) == (2, 2, "done")
    nothing_left(project)


FLAKY = """
import json, os, sys
n = json.loads(os.environ["CLOUDRUN_PARAMS"])["n"]
seen = os.path.expanduser("~/seen")  # the machine's own: what one cell leaves there, the next one on it finds
if n == 1 and not os.path.exists(seen):
    open(seen, "w").close()
    sys.exit("flaky")
print(json.dumps({"accuracy" if n else "other": n}))
"""


def test_a_script_that_fails_once_is_tried_again_where_that_was_asked_for(project: Project) -> None:
    """And a score that one of the cells does not give leaves it out of the ranking, and nothing else."""
    project.write("cell.py", FLAKY)
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
    refused = project.cloudrun_here(*command(4, *options))
    assert refused.returncode == 2, refused.stderr
    assert word in refused.stderr
    assert step in refused.stderr
    assert project.ledger.launches() == []
    assert project.ledger.grids() == []


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


def test_a_budget_that_ends_in_the_middle_is_kept_and_the_next_command_goes_on(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    """What an earlier command of the same grid has spent counts."""
    project.write("cell.py", CELL.format(sleep_s=0.1))
    words = command(4, "--budget", "0.0045")  # one machine, for as long as it needs to be worth its boot
    submitting = start("-m", "cloudrun", *words)
    ledger = project.ledger
    wait_for(lambda: done(ledger) >= 1, "a cell")
    os.kill(submitting.pid, signal.SIGINT)
    submitting.communicate(timeout=150)
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
def test_a_smaller_budget_than_what_lives_may_cost_brings_deadlines_nearer(
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
    (unit,) = project.ledger.units(live=False)
    assert (unit.deadline - unit.created_at).total_seconds() < 0.05 / 0.1008 * 3600 - 60
    nothing_left(project)
