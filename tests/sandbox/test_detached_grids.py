"""Grids that are left to their machines: nobody looks, and every cell comes home all the same."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cloudrun.core.states import GridState, RunState
from tests.sandbox.cells import CELL, only_grid
from tests.sandbox.cells import command as cells_command
from tests.sandbox.conftest import Aws, Project, Start, wait_for

pytestmark = pytest.mark.usefixtures("no_unit_is_left_alone")
Nothing = Callable[[Project], None]


def command(cells: int, *options: str) -> tuple[str, ...]:
    return cells_command(cells, "--units", "2", *options)


def seen(project: Project) -> dict[str, Any]:
    (grid,) = project.json("ps")["grids"]
    return dict(grid)


def state_of(aws: Aws, instance_id: str) -> str:
    found = aws("ec2", "describe-instances", "--instance-ids", instance_id)
    return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])


def all_succeeded(project: Project, cells: int, *, attempts: int = 1) -> None:
    runs = project.ledger.runs()
    assert Counter(run.state for run in runs) == {RunState.SUCCEEDED: cells}
    assert {run.params["n"] for run in runs} == set(range(cells))
    for run in runs:
        assert run.attempts <= attempts
        assert run.scores == {"accuracy": run.params["n"] / 100}
        assert project.ledger.get(run.run_id).path("began.txt").read_text() == str(run.params["n"])


def test_with_a_bucket_the_machines_go_by_themselves_and_a_pull_brings_everything_home(
    project: Project, aws: Aws, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.2))
    handed = project.json(*command(6, "--detach", "--bucket", "cells-of-a-test"))
    assert handed["summary"]["on_units"] == 6
    assert {run["state"] for run in handed["runs"]} == {"shipping"}
    machines = handed["summary"]["instance_ids"]
    assert len(machines) == 2
    on_each = Counter(run["unit"]["instance_id"] for run in handed["runs"])
    assert set(on_each.values()) == {3}
    wait_for(lambda: {state_of(aws, each) for each in machines} == {"terminated"}, "the machines to go by themselves")
    told = seen(project)
    assert (told["succeeded"], told["not_home"], told["running"], told["waiting"], told["left"]) == (6, 6, 0, 0, 0)
    assert told["next_step"] == f"cloudrun pull {told['grid_id']}"
    pulled = project.json("pull", told["grid_id"])
    assert (pulled["summary"]["state"], pulled["summary"]["succeeded"]) == ("done", 6)
    all_succeeded(project, 6)
    left = aws("s3api", "list-objects-v2", "--bucket", "cells-of-a-test")
    ours = [each["Key"] for each in (left or {}).get("Contents", []) if project.ledger.ledger_id in each["Key"]]
    assert ours == []
    nothing_left(project)


def test_a_cell_that_failed_is_tried_again_as_often_as_was_said_when_somebody_comes_back(
    project: Project, nothing_left: Nothing
) -> None:
    project.write(
        "cell.py", "import os\n" + CELL.format(sleep_s="0 if params['n'] or os.path.exists('ok.txt') else 1 / 0")
    )
    assert project.cloudrun(*command(2, "--detach", "--retries", "1")).returncode == 0
    grid_id = only_grid(project).grid_id
    wait_for(lambda: seen(project)["not_home"] == 2, "both to end")
    pulled = project.cloudrun("pull", grid_id)
    assert pulled.returncode == 5, pulled.stderr
    assert f"cloudrun attach {grid_id} tries again" in pulled.stderr
    assert only_grid(project).state is GridState.OPEN
    assert f"cloudrun attach {grid_id}" in seen(project)["next_step"]
    project.write("ok.txt", "")
    attached = project.cloudrun("attach", grid_id)
    assert attached.returncode == 0, attached.stderr
    assert only_grid(project).state is GridState.DONE
    assert Counter(run.state for run in project.ledger.runs()) == {RunState.SUCCEEDED: 2, RunState.FAILED: 1}
    nothing_left(project)


@pytest.mark.slow
def test_without_one_what_has_ended_waits_for_a_pull_and_the_rest_goes_on(
    project: Project, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s="0.1 if params['n'] < 2 else 600 if params['n'] == 5 else 0.3"))
    done = project.cloudrun(*command(6, "--detach"))
    assert done.returncode == 0, done.stderr
    grid_id = only_grid(project).grid_id
    assert done.stdout == f"{grid_id}\n"
    assert f"cloudrun attach {grid_id}" in done.stderr
    wait_for(lambda: seen(project)["not_home"] == 5, "five of them to end")
    (line,) = [line for line in project.cloudrun("ps").stdout.splitlines() if grid_id in line]
    assert "5 of 6 cells done, 1 running, 5 not home" in line
    assert "5 of 6 cells done, 1 running, 5 not home" in project.cloudrun("show", grid_id).stdout
    assert project.cloudrun("reap").returncode == 0, "what was left on purpose is nobody's to reap"
    pulled = project.json("pull", grid_id)
    assert (pulled["summary"]["succeeded"], pulled["summary"]["on_units"]) == (5, 1)
    assert len(project.ledger.units()) == 1, "the machine that has nothing left is ended"
    assert seen(project)["running"] == 1
    cancelled = project.json("cancel", grid_id, "--grace", "1s")
    assert (cancelled["summary"]["state"], cancelled["summary"]["succeeded"]) == ("cancelled", 5)
    nothing_left(project)


@pytest.mark.slow
def test_a_client_that_is_killed_while_it_hands_over_loses_nothing(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.1))
    words = command(30, "--detach")
    submitting = start("-m", "cloudrun", *words)
    ledger = project.ledger
    wait_for(lambda: any(run.state is RunState.SHIPPING for run in ledger.runs()), "a cell that is on its way")
    os.kill(submitting.pid, signal.SIGKILL)
    submitting.wait()
    again = project.json(*words)
    assert again["summary"]["left"] == 0
    assert len(ledger.units(live=False)) == 2, "what booted already is what works on it"
    folder = project.root / "deep" / "down"
    folder.mkdir(parents=True)
    attached = Project(folder).cloudrun("attach", again["grid_id"])
    assert attached.returncode == 0, attached.stderr
    all_succeeded(project, 30)
    nothing_left(project)


@pytest.mark.slow
def test_attach_is_left_without_ending_anything_and_what_was_lost_is_handed_out_again(
    project: Project, start: Start, aws: Aws, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.5))
    words = command(8, "--detach")
    grid_id = project.json(*words)["grid_id"]
    attached = start("-m", "cloudrun", "attach", grid_id)
    ledger = project.ledger
    wait_for(lambda: any(run.state is RunState.SUCCEEDED for run in ledger.runs()), "a cell")
    os.kill(attached.pid, signal.SIGINT)
    _, said = attached.communicate(timeout=150)
    assert attached.returncode == 130, said
    assert f"cloudrun attach {grid_id}" in said
    lost, _ = (unit.instance_id for unit in ledger.units())
    aws("ec2", "terminate-instances", "--instance-ids", lost)
    wait_for(lambda: state_of(aws, lost) == "terminated", "its end")
    without = seen(project)["left"]
    assert without > 0
    pulled = project.cloudrun("pull", grid_id)
    assert pulled.returncode == 0, pulled.stderr
    assert f"{without} without a machine" in pulled.stderr
    again = project.json(*words)
    assert again["summary"]["left"] == 0
    assert lost not in again["summary"]["instance_ids"]
    document = project.json(*command(8))
    assert (document["grid_id"], document["summary"]["succeeded"]) == (grid_id, 8)
    all_succeeded(project, 8, attempts=2)
    assert only_grid(project).state is GridState.DONE
    nothing_left(project)


@pytest.mark.slow
def test_a_grid_whose_code_has_changed_is_not_gone_on_with_under_its_name(project: Project) -> None:
    project.write("cell.py", CELL.format(sleep_s=0.1))
    grid_id = project.json(*command(2, "--detach"))["grid_id"]
    project.write("cell.py", CELL.format(sleep_s=0.2))
    refused = project.cloudrun("attach", grid_id)
    assert refused.returncode == 2, refused.stderr
    assert "is not what it was" in refused.stderr
    assert f"cloudrun pull {grid_id}" in refused.stderr
    wait_for(lambda: seen(project)["not_home"] == 2, "their end")
    assert project.cloudrun("pull", grid_id).returncode == 0
    all_succeeded(project, 2)
