"""What users are told of runs that nobody looked after: how they ended, what is lost with them, and what helps."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator

import pytest

from cloudrun.core.states import EndReason, RunState
from cloudrun.sandbox import client
from tests.sandbox.conftest import Aws, Project, Start, wait_for

WAITS = "import time\nprint('begun', flush=True)\ntime.sleep(300)\n"


@pytest.fixture(autouse=True)
def no_unit_is_left_alone(project: Project) -> Iterator[None]:
    yield
    for unit in project.ledger.units():
        project.cloudrun("reap", unit.instance_id)


def doing(project: Project, run_id: str) -> str:
    return next((str(run["doing"]) for run in project.json("ps")["runs"] if run["run_id"] == run_id), "")


@pytest.mark.slow
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


@pytest.mark.slow
def test_ps_says_how_a_run_ended_that_waits_to_be_pulled(project: Project) -> None:
    project.write("fails.py", "raise SystemExit(3)\n")
    run_id = project.json("submit", "fails.py", "--detach")["run_id"]
    wait_for(lambda: doing(project, run_id) != "running", "its end")
    assert doing(project, run_id) == "failed"
    assert project.cloudrun("pull", run_id).returncode == 5


SAVES = """
import os, signal, sys, time
first = not os.path.exists("seen")
open("seen", "w").close()
sys.stdout.buffer.write(b"first \\xff no newline" if first else b"second\\n")
sys.stdout.flush()
if first:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    time.sleep(300)
print("accuracy: 1.0")
"""


@pytest.mark.slow
def test_what_an_interrupted_attempt_has_printed_and_its_time_are_not_lost(project: Project) -> None:
    project.write("saves.py", SAVES)
    run_id = project.json("submit", "saves.py", "--spot", "--detach")["run_id"]
    (unit,) = project.ledger.units()
    wait_for(lambda: "first" in project.json("logs", run_id)["stdout"], "the job")
    client.interrupt(unit.instance_id, 60)
    wait_for(lambda: doing(project, run_id) == "interrupted", "the notice to be heard")
    assert project.cloudrun("pull", run_id).returncode in (0, 1)
    before = project.ledger.run(run_id)
    assert before.state is RunState.QUEUED
    assert before.timings.run_s > 0
    assert project.json("logs", run_id)["stdout"] == "first \ufffd no newline", "also while it has no machine"

    attached = project.cloudrun("attach", run_id)
    assert attached.returncode == 0, attached.stderr
    assert f"cloudrun logs {run_id} --attempt 1" in attached.stderr
    last = project.cloudrun("logs", run_id)
    assert last.stdout == "second\naccuracy: 1.0\n"
    assert f"cloudrun logs {run_id} --attempt 1" in last.stderr
    first = subprocess.run(
        [sys.executable, "-m", "cloudrun", "logs", run_id, "--attempt", "1", "--from-byte", "2"],
        cwd=project.root, env=project.environment, capture_output=True, timeout=150, check=True,
    )  # fmt: skip
    assert first.stdout == b"rst \xff no newline"
    assert project.cloudrun("logs", run_id, "--attempt", "3").returncode == 2
    after = project.ledger.run(run_id).timings
    assert after.run_s >= before.timings.run_s
    assert after.boot_s > before.timings.boot_s, "both machines booted"
    assert after.total_s > before.timings.total_s + after.boot_s - before.timings.boot_s


def test_who_interrupts_a_detached_submission_is_told_that_nothing_is_billed(
    project: Project, start: Start, nothing_left: Callable[[Project], None]
) -> None:
    project.write("waits.py", WAITS)
    submitting = start("-m", "cloudrun", "submit", "waits.py", "--detach")
    wait_for(lambda: project.ledger.units() != [], "a machine")
    (unit,) = project.ledger.units()
    submitting.send_signal(signal.SIGINT)
    _, stderr = submitting.communicate(timeout=150)
    assert submitting.returncode == 130, stderr
    assert f"{unit.instance_id} is terminated: nothing runs on it, and nothing is billed any more" in stderr
    nothing_left(project)


@pytest.mark.slow
def test_what_waits_in_a_bucket_is_in_a_dry_run_and_a_bucket_that_is_gone_is_named(project: Project, aws: Aws) -> None:
    project.write("quick.py", "print('accuracy: 1.0')\n")
    name = f"waits-{uuid.uuid4().hex}"
    run_id = project.json("submit", "quick.py", "--detach", "--bucket", name)["run_id"]
    wait_for(lambda: doing(project, run_id) == "in its bucket", "its machine's end")
    (seen,) = project.json("ps")["runs"]
    assert seen["deadline"] is None
    waiting = [action for action in project.json("reap", "--dry-run")["actions"] if action["target"] == run_id]
    assert [(action["kind"], action["done"]) for action in waiting] == [("pull", False)]
    assert f"s3://{name}/" in waiting[0]["reason"]
    for stored in aws("s3api", "list-objects-v2", "--bucket", name)["Contents"]:
        aws("s3api", "delete-object", "--bucket", name, "--key", stored["Key"])
    aws("s3api", "delete-bucket", "--bucket", name)
    pulled = project.cloudrun("pull", run_id)
    assert pulled.returncode == 1
    assert f"there is no bucket {name}" in pulled.stderr
    assert project.cloudrun("reap").returncode == 0
    run = project.ledger.run(run_id)
    assert run.state is RunState.LOST
    assert name in run.detail


def test_a_machine_that_the_sandbox_has_not_is_a_wrong_word_and_those_it_has_are_named(project: Project) -> None:
    project.write("waits.py", WAITS)
    project.json("submit", "waits.py", "--detach")
    (unit,) = project.ledger.units()
    done = project.cloudrun("sandbox", "interrupt", "i-0123456789abcdef0")
    assert done.returncode == 2
    assert unit.instance_id in done.stderr
