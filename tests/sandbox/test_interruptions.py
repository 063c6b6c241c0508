"""Whatever ends a client, its machines end too; and what a job had written by then is home."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudrun.core.states import RunState
from tests.sandbox.conftest import Aws, Project, Start, processes_of, wait_for

LONG = "import time; open('early.txt', 'w').write('x'); print('started', flush=True); time.sleep(600)"
Nothing = Callable[[Project], None]


def running(project: Project) -> bool:
    return any(run.state is RunState.RUNNING for run in project.ledger.runs())


def start_long_job(project: Project, start: Start) -> subprocess.Popen[str]:
    project.write("long.py", LONG)
    client = start("-m", "cloudrun", "submit", "long.py")
    wait_for(lambda: said(project, "started") or client.poll() is not None, "the job to run")
    assert client.poll() is None, client.communicate()[1]
    return client


def said(project: Project, text: str) -> bool:
    """Whether what a job has printed has come here."""
    return any(text in log.read_text() for log in project.root.rglob("stdout.log"))


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_brings_home_what_there_is_and_ends_the_machine(
    project: Project, start: Start, nothing_left: Nothing, number: int, code: int
) -> None:
    client = start_long_job(project, start)
    client.send_signal(number)
    _, err = client.communicate(timeout=150)
    assert client.returncode == code, err
    assert "Traceback" not in err
    (record,) = project.ledger.runs()
    assert record.state is RunState.CANCELLED
    assert [one.path for one in record.artifacts if one.kind == "output"] == ["early.txt"]
    assert project.ledger.get(record.run_id).log() == "started\n"
    nothing_left(project)


def test_a_second_ctrl_c_terminates_at_once(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("stubborn.py", "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LONG)
    client = start("-m", "cloudrun", "submit", "stubborn.py", "--grace", "240s")
    wait_for(lambda: said(project, "started"), "the job to run")
    client.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        client.wait(2)  # the job ignores SIGTERM: it is given its grace
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=150)
    assert client.returncode == 130
    (record,) = project.ledger.runs()
    assert record.state is RunState.CANCELLED
    nothing_left(project)


@pytest.mark.parametrize(
    "when",
    [
        pytest.param("launching", marks=pytest.mark.slow),
        pytest.param("booting", marks=pytest.mark.slow),
        "provisioning",
    ],
)
def test_a_signal_before_the_job_runs_leaves_nothing(
    project: Project, start: Start, nothing_left: Nothing, when: str
) -> None:
    project.write("long.py", LONG)
    client = start("-m", "cloudrun", "submit", "long.py")
    ready = {
        "launching": lambda: bool(project.ledger.launches()),
        "booting": lambda: bool(project.ledger.units()),
        "provisioning": lambda: bool(project.ledger.runs()),
    }
    wait_for(ready[when], when)
    client.send_signal(signal.SIGINT)
    _, err = client.communicate(timeout=150)
    assert client.returncode == 130, err
    assert all(run.state is RunState.CANCELLED for run in project.ledger.runs())
    nothing_left(project)


def test_after_kill_9_the_reaper_saves_what_there_is_and_ends_the_machine(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    client = start_long_job(project, start)
    client.kill()
    client.communicate()
    planned = project.json("reap", "--dry-run")
    assert [action["kind"] for action in planned["actions"]].count("terminate") == 1
    assert len(project.ledger.units()) == 1, "a dry run does nothing"
    done = project.cloudrun("reap")
    assert done.returncode == 0, done.stderr
    (record,) = project.ledger.runs()
    assert (record.state, record.end_reason) == (RunState.FAILED, "client_lost")
    assert [one.path for one in record.artifacts if one.kind == "output"] == ["early.txt"]
    nothing_left(project)


@pytest.mark.slow
def test_after_kill_9_a_finished_job_is_still_a_success(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("quick.py", "import time; print('n: 1', flush=True); time.sleep(3); open('done.txt', 'w').write('x')")
    client = start("-m", "cloudrun", "submit", "quick.py")
    wait_for(lambda: running(project), "the job to run")
    client.kill()
    client.communicate()
    (unit,) = project.ledger.units()
    assert any("quick.py" in line for line in processes_of(unit.instance_id)), "it outlives its client"
    wait_for(lambda: not any("quick.py" in line for line in processes_of(unit.instance_id)), "the job to end")
    assert project.cloudrun("reap").returncode == 0
    (run,) = project.ledger.ranking("n")
    assert run.path("done.txt").read_text() == "x"
    nothing_left(project)


@pytest.mark.slow
def test_after_kill_9_and_no_reaper_the_deadline_ends_the_machine(project: Project, start: Start, aws: Aws) -> None:
    project.write("long.py", LONG)
    client = start("-m", "cloudrun", "submit", "long.py", "--deadline", "30s")
    wait_for(lambda: running(project), "the job to run")
    client.kill()
    client.communicate()
    (unit,) = project.ledger.units()

    def state() -> str:
        found = aws("ec2", "describe-instances", "--instance-ids", unit.instance_id)
        return str(found["Reservations"][0]["Instances"][0]["State"]["Name"])

    assert state() == "running"
    wait_for(lambda: state() == "terminated", "the deadline", timeout_s=120)
    assert processes_of(unit.instance_id) == []
    assert project.cloudrun("reap").returncode == 0
    assert project.ledger.units() == []
    (record,) = project.ledger.runs()
    assert record.state is RunState.LOST


@pytest.mark.slow
def test_a_finished_job_stays_a_success_when_its_way_home_is_interrupted(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("big.py", "open('big.bin', 'wb').write(bytes(400_000_000)); print('n: 1')")
    client = start("-m", "cloudrun", "submit", "big.py")
    wait_for(lambda: any(run.state is RunState.PULLING for run in project.ledger.runs()), "the pull to begin")
    client.send_signal(signal.SIGINT)
    _, err = client.communicate(timeout=200)
    assert client.returncode == 130, err
    (run,) = project.ledger.ranking("n")
    assert run.state is RunState.SUCCEEDED
    assert run.path("big.bin").stat().st_size == 400_000_000
    nothing_left(project)


@pytest.mark.slow
def test_a_job_that_cuts_every_connection_still_succeeds(project: Project, nothing_left: Nothing) -> None:
    # The machine's SSH server is killed in the middle, with the connection and the agent that follows the job.
    project.write(
        "cut.py",
        "import os, signal, subprocess, time\n"
        "print('before', flush=True); time.sleep(1)\n"
        "found = subprocess.run(['pgrep', '-f', 'agent/.*pyz'], capture_output=True, text=True).stdout.split()\n"
        "mine = {os.getpid(), os.getppid()}\n"
        "for pid in map(int, found):\n"
        "    if pid not in mine: os.kill(pid, signal.SIGKILL)\n"
        "time.sleep(2); print('n: 1'); open('out.txt', 'w').write('x')\n",
    )
    done = project.cloudrun("submit", "cut.py")
    assert done.returncode == 0, done.stderr
    assert "connecting again" in done.stderr
    assert done.stdout == "before\nn: 1\n", "no line lost or doubled"
    (run,) = project.ledger.ranking("n")
    assert run.path("out.txt").read_text() == "x"
    nothing_left(project)


def test_what_was_seen_is_kept_where_nothing_can_be_brought_home(project: Project, start: Start) -> None:
    client = start_long_job(project, start)
    (unit,) = project.ledger.units()
    client.send_signal(signal.SIGINT)
    client.send_signal(signal.SIGTERM)
    client.communicate(timeout=150)
    (record,) = project.ledger.runs()
    assert record.state is RunState.CANCELLED
    assert project.ledger.get(record.run_id).log() == "started\n"
    assert project.ledger.unit(unit.instance_id).state == "terminated"


@pytest.mark.slow
def test_when_the_whole_region_dies_its_client_says_so_soon(project: Project, start: Start, tmp_path: Path) -> None:
    project.env["CLOUDRUN_SANDBOX_DIR"] = str(tmp_path / "own")
    client = start_long_job(project, start)
    daemon = json.loads((tmp_path / "own" / "region.json").read_text())["pid"]
    os.kill(daemon, signal.SIGKILL)
    _, err = client.communicate(timeout=200)
    assert client.returncode == 1, err
    (record,) = project.ledger.runs()
    assert record.state is RunState.LOST
    assert project.ledger.units() == []


def test_a_machine_that_vanishes_under_a_run_is_noticed(
    project: Project, start: Start, aws: Aws, nothing_left: Nothing
) -> None:
    client = start_long_job(project, start)
    (unit,) = project.ledger.units()
    aws("ec2", "terminate-instances", "--instance-ids", unit.instance_id)
    _, err = client.communicate(timeout=200)
    assert client.returncode == 1, err
    (record,) = project.ledger.runs()
    assert (record.state, record.end_reason) == (RunState.LOST, "unit_lost")
    nothing_left(project)


@pytest.mark.slow
def test_a_job_that_powers_the_machine_off_ends_the_machine_only(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write(
        "off.py", "import os, time; print('bye', flush=True); os.system('sudo shutdown -h now'); time.sleep(60)"
    )
    done = project.cloudrun("submit", "off.py")
    assert done.returncode == 1, done.stderr
    (record,) = project.ledger.runs()
    assert record.state is RunState.LOST
    nothing_left(project)


@pytest.mark.slow
def test_ctrl_c_while_a_block_waits_for_what_it_submitted_brings_home_what_there_is(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("long.py", LONG)
    project.write(
        "main.py", "from cloudrun import process_unit\nwith process_unit() as unit:\n    unit.submit('long.py')\n"
    )
    client = start("main.py")
    wait_for(lambda: running(project), "the job to run")
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=150)
    (record,) = project.ledger.runs()
    assert (record.state, record.end_reason) == (RunState.CANCELLED, "cancelled")
    assert "early.txt" in [one.path for one in record.artifacts]
    nothing_left(project)


@pytest.mark.slow
def test_sigterm_ends_the_units_of_every_thread(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("long.py", LONG)
    project.write(
        "threads.py",
        "import threading\n"
        "from cloudrun import process_unit\n"
        "def work():\n"
        "    with process_unit() as unit:\n"
        "        unit.send_run('long.py')\n"
        "threads = [threading.Thread(target=work) for _ in range(2)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n",
    )
    client = start("threads.py")
    wait_for(lambda: sum(r.state is RunState.RUNNING for r in project.ledger.runs()) == 2, "two jobs to run")
    client.send_signal(signal.SIGTERM)
    client.communicate(timeout=150)
    assert client.returncode == 143
    assert {run.state for run in project.ledger.runs()} == {RunState.CANCELLED}
    nothing_left(project)


@pytest.mark.slow
def test_a_failing_playbook_is_told_with_its_task_and_log(
    project: Project, start: Start, nothing_left: Nothing
) -> None:
    project.write("train.py", "# /// script\n# dependencies = ['joblib', 'threadpoolctl']\n# ///\nprint(1)\n")
    # The machine's own clock of trouble: no room for an environment where it is to be built.
    project.write(
        "main.py",
        "from cloudrun import process_unit\n"
        "with process_unit() as unit:\n"
        "    unit.run('mkdir -p .cloudrun && rm -rf .cloudrun/envs && echo file > .cloudrun/envs')\n"
        "    unit.send_run('train.py')\n",
    )
    done = project.python("main.py")
    assert done.returncode == 1
    assert "ProvisionError" in done.stderr
    assert "Build the environment" in done.stderr
    (record,) = project.ledger.runs()
    assert (record.state, record.end_reason) == (RunState.FAILED, "provision_failed")
    assert "Build the environment" in project.ledger.get(record.run_id).log("provision")
    nothing_left(project)


def test_no_process_of_ours_is_left_when_a_client_ends(project: Project, start: Start) -> None:
    client = start_long_job(project, start)
    client.send_signal(signal.SIGTERM)
    client.communicate(timeout=150)
    group = subprocess.run(["ps", "-o", "pid=", "-g", str(client.pid)], capture_output=True, text=True, check=False)
    assert group.stdout.split() == []
    assert os.getpgid(0) != client.pid
