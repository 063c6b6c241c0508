"""Several clients for one run, and runs whose client or machine went before anybody could look after them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from cloudrun.core.states import RunState
from cloudrun.sandbox import client
from tests.sandbox.conftest import Project, Start, wait_for

Nothing = Callable[[Project], None]


@pytest.mark.slow
def test_two_who_attach_at_once_both_see_it_to_its_end(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("talks.py", "import time\nfor n in range(40): print('line', n, flush=True), time.sleep(0.1)\n")
    run_id = project.json("submit", "talks.py", "--detach")["run_id"]
    both = [start("-m", "cloudrun", "attach", run_id) for _ in range(2)]
    said = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert {stdout for stdout, _ in said} == {"".join(f"line {n}\n" for n in range(40))}
    (run,) = project.ledger.runs()
    assert (run.state, run.attempts) == (RunState.SUCCEEDED, 1)
    nothing_left(project)


@pytest.mark.slow
def test_a_run_whose_client_died_before_it_started_is_cancelled_with_its_machine(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    # An environment that no other test has, so that its machine is provisioned before it can start.
    needs = "# /// script\n# dependencies = ['joblib', 'threadpoolctl']\n# ///\n"
    project.write("never.py", f"{needs}print('never')\n")
    submitting = start("-m", "cloudrun", "submit", "never.py", "--detach")
    ledger = project.ledger
    wait_for(lambda: any(run.state is RunState.SHIPPING for run in ledger.runs()), "its machine")
    os.killpg(submitting.pid, signal.SIGKILL)
    submitting.wait()
    (run,) = ledger.runs()
    assert run.state is RunState.SHIPPING, "it came too far for this test to prove anything"
    attached = project.cloudrun("attach", run.run_id)
    assert attached.returncode == 2
    assert f"cloudrun cancel {run.run_id}" in attached.stderr
    (unit,) = ledger.units()
    assert unit.on_exit == "terminate", "a look at it must not keep its machine"
    assert project.json("cancel", run.run_id)["state"] == "cancelled"
    nothing_left(project)


@pytest.mark.slow
def test_a_machine_taken_back_while_nobody_looked_is_replaced_and_its_runner_may_go(
    project: Project, start: Start, aws: Callable[..., dict[str, object]], nothing_left: Nothing
) -> None:
    """The second attempt is left to its machine as the first was: Ctrl-C in `attach` does not end it. It has the data
    of the first, and finds its project though that is not the ledger's."""
    (project.root.parent / "far.csv").write_text("1,2,3")
    project.write("inner/cloudrun.toml", "")
    project.write(
        "inner/talks.py",
        "import time\ndata = open('data/far.csv').read()\n"
        "for n in range(900): print('line', n, data, flush=True), time.sleep(0.1)\n",
    )
    options = ("--spot", "--detach", "--deadline", "1h", "--name", "one", "--data", "../far.csv")
    run_id = project.json("submit", "inner/talks.py", *options)["run_id"]
    ledger = project.ledger
    (unit,) = ledger.units()
    aws("ec2", "create-tags", "--resources", unit.instance_id, "--tags", "Key=seen,Value=yes")
    client.interrupt(unit.instance_id, 1)

    def state() -> str:
        answer = json.loads(json.dumps(aws("ec2", "describe-instances", "--instance-ids", unit.instance_id)))
        return str(answer["Reservations"][0]["Instances"][0]["State"]["Name"])

    wait_for(lambda: state() == "terminated", "its end")
    (seen,) = project.json("ps")["runs"]
    assert (seen["doing"], seen["next_step"]) == ("gone", f"cloudrun attach {run_id}")
    watching = start("-m", "cloudrun", "attach", "one")
    assert watching.stdout is not None
    assert watching.stdout.readline() == "line 0 1,2,3\n"
    os.kill(watching.pid, signal.SIGINT)
    _, stderr = watching.communicate(timeout=150)
    assert watching.returncode == 130
    assert "goes on" in stderr
    (seen,) = project.json("ps")["runs"]
    assert (seen["doing"], seen["attempts"], seen["attended"]) == ("running", 2, False)
    assert project.json("cancel", run_id, "--grace", "1s")["state"] == "cancelled"
    assert project.cloudrun("reap").returncode == 0
    nothing_left(project)


@pytest.mark.slow
def test_what_came_home_from_its_machine_is_left_in_no_bucket(
    project: Project, aws: Callable[..., dict[str, object]], nothing_left: Nothing
) -> None:
    """And data with links in it, larger than what may be shipped, reaches a job that starts beside it."""
    (project.root.parent / "far").mkdir()
    (project.root.parent / "far" / "c.csv").write_text("7,8\n")
    project.write("cloudrun.toml", 'ship_refuse = "1kB"\n')
    project.write("big/a.csv", "1,2,3\n" * 1000)
    (project.root / "big" / "far").symlink_to(project.root.parent / "far")
    project.write(
        "sub/reads.py",
        "print('near:', len(open('../big/a.csv').read()))\nprint('far:', len(open('../big/far/c.csv').read()))\n",
    )
    done = subprocess.run(
        [sys.executable, "-m", "cloudrun", "submit", "reads.py", "--data", "../big", "--bucket", "kept-by-nobody"],
        cwd=project.root / "sub", env=project.environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = project.ledger.runs()
    assert run.scores == {"near": 6000.0, "far": 4.0}
    left = aws("s3api", "list-objects-v2", "--bucket", "kept-by-nobody")
    assert not (left or {}).get("Contents")
    nothing_left(project)
