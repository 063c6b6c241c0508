"""A machine that the provider takes back: the run goes on on another one, from what it had saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cloudrun.core.states import EndReason, RunState, UnitState
from cloudrun.sandbox import client
from tests.sandbox.conftest import Project, Start, wait_for

# Eight steps; each is written down when it is done. What it prints says which steps this attempt has done itself.
STEPS = 8
TRAINS = f"""
import json, os, signal, sys

done = json.load(open("checkpoint.json")) if os.path.exists("checkpoint.json") else []

def save():
    with open("checkpoint.tmp", "w") as file:
        json.dump(done, file)
    os.replace("checkpoint.tmp", "checkpoint.json")

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # it is heard between two steps and not within one
afresh = not done
while len(done) < {STEPS}:
    # half as long as the agent's look at the metadata; a first attempt does not end before its notice is heard
    if signal.sigtimedwait([signal.SIGTERM], 20.0 if afresh and len(done) == {STEPS - 1} else 1.0):
        save()
        sys.exit(0)
    done.append(len(done))
    save()
    print("step", done[-1], flush=True)
print(json.dumps({{"accuracy": len(done) / {STEPS}}}))
"""
MOMENTS = {
    "while it is provisioned": None,
    "as the job starts": "running",
    "after its first step": "step 0",
    "in the middle": "step 3",
    "near its end": "step 4",
}


QUICK = ("in the middle",)


@pytest.mark.parametrize(
    "moment", [pytest.param(moment, marks=[] if moment in QUICK else pytest.mark.slow) for moment in MOMENTS]
)
def test_an_interrupted_run_succeeds_on_a_second_machine(
    project: Project, start: Start, nothing_left: Callable[[Project], None], moment: str
) -> None:
    project.write("trains.py", TRAINS)
    ledger = project.ledger
    submitting = start("-m", "cloudrun", "submit", "trains.py", "--spot")
    wait_for(lambda: any(unit.state is UnitState.READY for unit in ledger.units()), "a machine")
    (unit,) = ledger.units()
    _wait_for_moment(project, MOMENTS[moment])
    client.interrupt(unit.instance_id, 60)
    stdout, stderr = submitting.communicate(timeout=180)
    assert submitting.returncode == 0, stderr
    (run,) = ledger.runs()
    assert run.state is RunState.SUCCEEDED
    assert run.scores == {"accuracy": 1.0}
    attempts = ledger.attempts(run.run_id)
    assert [attempt.end_reason for attempt in attempts] == [EndReason.INTERRUPTED, EndReason.COMPLETED], stderr
    assert attempts[0].instance_id == unit.instance_id != attempts[1].instance_id
    steps = [int(line.split()[1]) for line in stdout.splitlines() if line.startswith("step ")]
    assert sorted(set(steps)) == list(range(STEPS)), "every step was done"
    saved = {artifact.path for artifact in attempts[0].outputs}
    if "checkpoint.json" in saved:
        assert len(steps) == STEPS, f"no step of a written checkpoint is done again: {steps}"
    if moment in ("in the middle", "near its end", "after its first step"):
        assert "checkpoint.json" in saved
        assert "attempt-1/stdout.log" in {artifact.path for artifact in run.artifacts}
    nothing_left(project)


def _wait_for_moment(project: Project, what: str | None) -> None:
    ledger = project.ledger
    if what is None:
        return
    wait_for(lambda: any(run.state is RunState.RUNNING for run in ledger.runs()), "the job to run")
    if what != "running":
        (run,) = ledger.runs()
        log = ledger.home / "runs" / f"{run.run_id}.1" / "stdout.log"
        wait_for(lambda: log.exists() and what in log.read_text(), what)


@pytest.mark.slow
def test_a_block_goes_on_on_another_machine_too(project: Project, start: Start) -> None:
    project.write("trains.py", TRAINS)
    project.write(
        "block.py",
        """
from cloudrun import process_unit
with process_unit(spot=True) as unit:
    first = unit.instance_id
    run = unit.send_run("trains.py")
    print(run.attempts, run.scores["accuracy"], unit.instance_id != first)
""",
    )
    running = start("block.py")
    _wait_for_moment(project, "step 2")
    (unit,) = project.ledger.units()
    client.interrupt(unit.instance_id, 60)
    stdout, stderr = running.communicate(timeout=180)
    assert stdout.splitlines()[-1] == "2 1.0 True", stderr
    assert project.ledger.units() == []


@pytest.mark.slow
def test_a_detached_run_that_was_interrupted_goes_on_when_somebody_comes(project: Project) -> None:
    project.write("trains.py", TRAINS.replace(f"< {STEPS}", "< 20").replace(f"/ {STEPS}", "/ 20"))
    run_id = project.json("submit", "trains.py", "--spot", "--detach")["run_id"]
    (unit,) = project.ledger.units()
    wait_for(lambda: "step 2" in project.cloudrun("logs", run_id).stdout, "step 2")
    client.interrupt(unit.instance_id, 60)
    wait_for(lambda: project.json("ps")["runs"][0]["doing"] == "interrupted", "the notice to be heard")
    done = project.json("attach", run_id)
    assert (done["state"], done["attempts"], done["scores"]) == ("succeeded", 2, {"accuracy": 1.0})
    assert project.ledger.units() == []


@pytest.mark.slow
def test_a_machine_that_may_be_taken_back_lets_its_job_save(project: Project, tmp_path: Path) -> None:
    project.write(
        "saves.py",
        """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("saved", flush=True))
print("ready", flush=True)
time.sleep(600)
""",
    )
    run_id = project.json("submit", "saves.py", "--spot", "--detach")["run_id"]
    (unit,) = project.ledger.units()
    wait_for(lambda: "ready" in project.cloudrun("logs", run_id).stdout, "the job")
    client.interrupt(unit.instance_id, rebalance=True)
    wait_for(lambda: "saved" in project.cloudrun("logs", run_id).stdout, "the signal")
    assert project.json("ps")["runs"][0]["doing"] == "running", "nothing is ended by a mere recommendation"
    assert project.json("cancel", run_id, "--grace", "1s")["state"] == "cancelled"
