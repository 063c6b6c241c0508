"""What users are told of runs that nobody looked after: how they ended, what is lost with them, and what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from cloudrun.core.states import EndReason, RunState
from tests.sandbox.conftest import Project, wait_for

WAITS = "import time\nprint('begun', flush=True)\ntime.sleep(300)\n"


@pytest.fixture(autouse=True)
def no_unit_is_left_alone(project: Project) -> Iterator[None]:
    yield
    for unit in project.ledger.units():
        project.cloudrun("reap", unit.instance_id)


def doing(project: Project, run_id: str) -> str:
    return next((str(run["doing"]) for run in project.json("ps")["runs"] if run["run_id"] == run_id), "")


def test_a_run_that_went_with_its_machine_names_the_deadline_and_what_would_have_helped(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    project.write("waits.py", WAITS)
    run_id = project.json("submit", "waits.py", "--detach", "--deadline", "15s")["run_id"]
    wait_for(lambda: doing(project, run_id) == "gone", "its machine's end")
    (seen,) = project.json("ps")["runs"]
    assert seen["deadline"] is None, "it powers off no more"
    assert "its deadline was" in seen["problem"]
    pulled = project.cloudrun("pull", run_id)
    assert pulled.returncode == 1
    assert "went at its deadline" in pulled.stderr
    assert "--bucket" in pulled.stderr
    assert project.cloudrun("reap").returncode == 0
    run = project.ledger.run(run_id)
    assert (run.state, run.end_reason) == (RunState.LOST, EndReason.DEADLINE)
    assert "cloudrun extend" in project.cloudrun("show", run_id).stdout
    nothing_left(project)


def test_ps_says_how_a_run_ended_that_waits_to_be_pulled(project: Project) -> None:
    project.write("fails.py", "raise SystemExit(3)\n")
    run_id = project.json("submit", "fails.py", "--detach")["run_id"]
    wait_for(lambda: doing(project, run_id) != "running", "its end")
    assert doing(project, run_id) == "failed"
    assert project.cloudrun("pull", run_id).returncode == 5
