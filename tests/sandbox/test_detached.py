"""Runs that outlive their client: left alone, come back to, cut off, cancelled, and given more time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Run
from cloudrun.sandbox import client
from tests.proxies import Proxy
from tests.sandbox.conftest import Project, Start, processes_of, wait_for

# Bytes that a careless client would change: no newline at the end, no UTF-8, a terminal escape.
TALKS = """
import json, sys, time
for number in range({lines}):
    sys.stdout.buffer.write(b"line %d \\xff\\x1b[31m\\r\\n" % number)
    sys.stderr.buffer.write(b"error %d\\n" % number)
    sys.stdout.flush()
    time.sleep({pause_s})
open("model.txt", "w").write("weights")
json.dump({{"accuracy": 0.75}}, open("scores.json", "w"))
sys.stdout.write("the end")
"""


def expected(lines: int) -> bytes:
    return b"".join(b"line %d \xff\x1b[31m\r\n" % number for number in range(lines)) + b"the end"


@pytest.fixture(autouse=True)
def no_unit_is_left_alone(project: Project) -> Iterator[None]:
    yield
    for unit in project.ledger.units():
        project.cloudrun("reap", unit.instance_id)


def detached(project: Project, script: str, *options: str) -> str:
    document = project.json("submit", script, "--detach", *options)
    assert document["state"] == "running", document
    return str(document["run_id"])


def attached(project: Project, run_id: str, folder: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "cloudrun", "attach", run_id],
        cwd=folder or project.root,
        env=project.environment,
        capture_output=True,
        timeout=200,
        check=False,
    )


def stdout_of(run: Run) -> bytes:
    return run.path("stdout.log").read_bytes()


@pytest.mark.slow
def test_a_client_killed_at_once_loses_nothing(
    project: Project, start: Start, nothing_left: Callable[[Project], None]
) -> None:
    """The row of a run that was left alone is the row of one that was not."""
    project.write("talks.py", TALKS.format(lines=40, pause_s=0.1))
    project.write("deep/down/note.txt", "")
    submitting = start("-m", "cloudrun", "submit", "talks.py", "--detach")
    ledger = project.ledger
    wait_for(lambda: any(run.state is RunState.RUNNING for run in ledger.runs()), "the job to run")
    os.kill(submitting.pid, signal.SIGKILL)
    submitting.wait()
    (run,) = ledger.runs()
    done = attached(project, run.run_id, project.root / "deep" / "down")
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected(40)
    row = ledger.get(run.run_id)
    assert stdout_of(row) == expected(40)
    assert (row.state, row.end_reason, row.exit_code, row.scores) == (
        RunState.SUCCEEDED, EndReason.COMPLETED, 0, {"accuracy": 0.75},
    )  # fmt: skip
    assert {artifact.path for artifact in row.artifacts} == {"model.txt", "scores.json", "stdout.log", "stderr.log"}
    assert row.attempts == 1
    timings = row.timings
    assert min(timings.launch_s, timings.boot_s, timings.run_s, timings.pull_s, timings.terminate_s) > 0
    assert timings.run_s >= 4.0
    assert row.usage is not None
    assert row.usage.cpu_user_s > 0
    assert row.usage.peak_memory_bytes > 1_000_000
    nothing_left(project)


@pytest.mark.slow
def test_ten_cuts_lose_and_double_nothing(project: Project, nothing_left: Callable[[Project], None]) -> None:
    project.write("talks.py", TALKS.format(lines=120, pause_s=0.05))
    run_id = detached(project, "talks.py")
    ledger = project.ledger
    (unit,) = ledger.units()
    with Proxy(unit.address or "", unit.ssh_port) as proxy:
        ledger.update_unit(unit.instance_id, address=proxy.host, ssh_port=proxy.port)
        coming_home = subprocess.Popen(
            [sys.executable, "-m", "cloudrun", "attach", run_id],
            cwd=project.root, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        cuts = 0
        while cuts < 10 and coming_home.poll() is None:
            before = proxy.connections
            wait_for(lambda: proxy.connections > 0 or coming_home.poll() is not None, "a connection")
            time.sleep(0.3)
            proxy.cut()
            cuts += 1
            wait_for(lambda before=before: proxy.connections > before or coming_home.poll() is not None, "another one")  # type: ignore[misc]
        stdout, stderr = coming_home.communicate(timeout=200)
    assert coming_home.returncode == 0, stderr
    assert cuts == 10, "the job was over before all cuts were made: they would prove nothing"
    assert stdout == expected(120)
    assert stdout_of(ledger.get(run_id)) == expected(120)
    nothing_left(project)


@pytest.mark.slow
def test_what_runs_is_listed_followed_from_any_byte_and_cancelled(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    project.write(
        "saves.py",
        """
import signal, sys, time
def save(*_):
    open("saved.txt", "w").write("as far as it came")
    sys.exit(3)
signal.signal(signal.SIGTERM, save)
print("0123456789", flush=True)
time.sleep(600)
""",
    )
    run_id = detached(project, "saves.py")
    wait_for(lambda: b"9" in subprocess.run(
        [sys.executable, "-m", "cloudrun", "logs", run_id], cwd=project.root, env=project.environment,
        capture_output=True, check=True).stdout, "the first line")  # fmt: skip
    listed = project.json("ps")["runs"]
    assert [(each["run_id"], each["doing"], each["attended"]) for each in listed] == [(run_id, "running", False)]
    assert run_id in project.cloudrun("ps").stdout
    assert project.cloudrun("logs", run_id, "--from-byte", "4").stdout == "456789\n"
    assert project.json("logs", run_id, "--stream", "stdout")["stdout"] == "0123456789\n"
    done = project.json("cancel", run_id)
    assert (done["state"], done["end_reason"]) == ("cancelled", "cancelled")
    assert "saved.txt" in {artifact["path"] for artifact in done["artifacts"]}
    assert project.json("ps")["runs"] == []
    nothing_left(project)


@pytest.mark.slow
def test_a_run_that_a_process_looks_after_is_cancelled_by_another_one(project: Project, start: Start) -> None:
    project.write("sleeps.py", "import time\nopen('begun.txt', 'w').write('x')\ntime.sleep(600)\n")
    submitting = start("-m", "cloudrun", "submit", "sleeps.py")
    ledger = project.ledger
    wait_for(lambda: any(run.state is RunState.RUNNING for run in ledger.runs()), "the job to run")
    (run,) = ledger.runs()
    refused = project.cloudrun("attach", run.run_id)
    assert refused.returncode == 2
    assert "still looks after it" in refused.stderr
    done = project.json("cancel", run.run_id, "--grace", "1s")
    assert done["state"] == "cancelled"
    assert submitting.wait(150) == 130
    assert ledger.units() == []


@pytest.mark.slow
def test_leaving_early_leaves_it_running(project: Project, start: Start) -> None:
    project.write("talks.py", "import time\nfor n in range(900): print('line', n, flush=True), time.sleep(0.1)\n")
    run_id = detached(project, "talks.py")
    watching = start("-m", "cloudrun", "attach", run_id)
    assert watching.stdout is not None
    assert "line 0" in watching.stdout.readline()
    os.kill(watching.pid, signal.SIGINT)
    assert watching.wait(150) == 130
    assert project.json("ps")["runs"][0]["doing"] == "running"
    assert project.json("cancel", run_id, "--grace", "1s")["state"] == "cancelled"


def test_what_is_done_waits_until_it_is_pulled(project: Project, nothing_left: Callable[[Project], None]) -> None:
    project.write("quick.py", "open('made.txt', 'w').write('x')\nprint('accuracy: 0.5')\n")
    run_id = detached(project, "quick.py")
    wait_for(lambda: project.json("ps")["runs"][0]["doing"] == "done", "its end")
    assert "pull" in project.json("ps")["runs"][0]["next_step"]
    shown = project.cloudrun("show", run_id).stdout
    assert f"{run_id} (quick) is done, and not home yet" in shown
    assert f"cloudrun pull {run_id}" in shown.splitlines()[-1]
    assert project.json("show", run_id)["doing"] == "done"
    assert project.cloudrun("reap").returncode == 0, "a run that was left on purpose is nobody's to reap"
    assert len(project.ledger.units()) == 1
    done = project.json("pull", run_id)
    assert (done["state"], done["scores"]) == ("succeeded", {"accuracy": 0.5})
    nothing_left(project)
    again = project.cloudrun("pull", run_id)
    assert again.returncode == 2
    assert "home already" in again.stderr


def test_with_a_bucket_the_machine_goes_at_once_and_the_outputs_wait_there(
    project: Project, region: client.Region, nothing_left: Callable[[Project], None], aws: Callable[..., dict[str, str]]
) -> None:
    project.write("makes.py", TALKS.format(lines=3, pause_s=0.01))
    run_id = detached(project, "makes.py", "--bucket", "results-of-a-test")
    ledger = project.ledger
    (unit,) = ledger.units()
    wait_for(
        lambda: (
            aws("ec2", "describe-instances", "--instance-ids", unit.instance_id)["Reservations"][0]["Instances"][0][  # type: ignore[index]
                "State"
            ]["Name"]
            == "terminated"
        ),
        "the machine to go by itself",
        90,
    )
    assert project.json("ps")["runs"][0]["doing"] == "in its bucket"
    assert project.cloudrun("logs", run_id, "--stream", "stderr").stderr == "error 0\nerror 1\nerror 2\n"
    done = project.json("pull", run_id)
    assert (done["state"], done["scores"]) == ("succeeded", {"accuracy": 0.75})
    row = ledger.get(run_id)
    assert stdout_of(row) == expected(3)
    assert row.path("model.txt").read_text() == "weights"
    left = aws("s3api", "list-objects-v2", "--bucket", "results-of-a-test", "--prefix", f"cloudrun/{ledger.ledger_id}/")
    assert not (left or {}).get("Contents")
    assert project.cloudrun("reap").returncode == 0
    nothing_left(project)


@pytest.mark.slow
def test_a_deadline_is_moved_by_its_owner_only(project: Project) -> None:
    project.write("sleeps.py", "import time\ntime.sleep(600)\n")
    run_id = detached(project, "sleeps.py", "--deadline", "30s")
    (unit,) = project.ledger.units()
    told = project.json("extend", run_id, "2h")
    (moved,) = project.ledger.units()
    assert moved.deadline - unit.deadline == timedelta(hours=2)
    assert told["instance_id"] == unit.instance_id
    refused = project.cloudrun("extend", run_id, "10000h")
    assert refused.returncode == 2, "a slip of the finger"
    left_s = (unit.deadline - moved.created_at).total_seconds()
    time.sleep(max(0.0, left_s - (time.time() - moved.created_at.timestamp())) + 3)
    assert project.json("ps")["runs"][0]["doing"] == "running", "its old deadline must have gone"
    assert project.json("cancel", run_id, "--grace", "1s")["state"] == "cancelled"


def test_data_is_found_where_it_is_and_fetched_once(
    project: Project, region: client.Region, aws: Callable[..., object], tmp_path: Path
) -> None:
    aws("s3api", "create-bucket", "--bucket", "data-of-a-test")
    s3 = boto3.client(
        "s3", region_name=region.region, endpoint_url=region.endpoint_url,
        aws_access_key_id=region.access_key, aws_secret_access_key=region.secret_key,
    )  # fmt: skip
    s3.put_object(Bucket="data-of-a-test", Key="sets/iris/a.csv", Body=b"1,2,3\n")
    project.write("big/b.csv", "4,5,6\n")
    project.write(
        "reads.py",
        """
import json
print(json.dumps({"near": len(open("big/b.csv").read()), "far": len(open("data/iris/a.csv").read())}))
""",
    )
    document = project.json("submit", "reads.py", "--data", "big", "--data", "s3://data-of-a-test/sets/iris/")
    assert document["scores"] == {"near": 6, "far": 6}, document
    assert document["digests"]["data"]
    assert [artifact["path"] for artifact in document["artifacts"] if artifact["kind"] == "output"] == []
    missing = project.cloudrun_here("submit", "reads.py", "--data", "s3://data-of-a-test/nothing")
    assert missing.returncode == 2
    assert "s3://data-of-a-test/nothing" in missing.stderr


@pytest.mark.slow
def test_data_that_a_job_has_changed_is_brought_again(project: Project) -> None:
    """A job that is root may write anywhere; the next one must not read what it has written."""
    project.write("set/a.csv", "1,2,3\n")
    project.write("spoils.py", "open('set/a.csv', 'a').write('4'); open('set/b.csv', 'w').write('5')")
    project.write(
        "reads.py", "import os; print('n:', len(open('set/a.csv').read())); print('m:', len(os.listdir('set')))"
    )
    project.write(
        "block.py",
        """
from cloudrun import process_unit
with process_unit(data=["set"]) as unit:
    for script in ("reads.py", "spoils.py", "reads.py"):
        print("scores", dict(unit.send_run(script, check=False).scores))
""",
    )
    done = project.python("block.py")
    told = [line for line in done.stdout.splitlines() if line.startswith("scores")]
    assert told == ["scores {'n': 6.0, 'm': 1.0}", "scores {}", "scores {'n': 6.0, 'm': 1.0}"], done.stderr


def test_data_that_would_hide_a_part_of_the_project_is_refused(project: Project, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "far.csv").write_text("1")
    project.write("data/set/near.csv", "2")
    project.write("reads.py", "pass")
    refused = project.cloudrun_here("submit", "reads.py", "--data", str(tmp_path / "set"))
    assert refused.returncode == 2
    assert "would hide the project's own data/set/near.csv" in refused.stderr


def test_limits_end_a_run_with_their_reason(project: Project) -> None:
    project.write("waits.py", "import time\nopen('kept.txt', 'w').write('x')\ntime.sleep(600)\n")
    document = project.json("submit", "waits.py", "--wall-time", "4s")
    assert (document["state"], document["end_reason"]) == ("failed", "wall_time")
    assert "wall_time: " in document["detail"], "by how much"
    for nonsense in ("5", "0GB", "100"):
        refused = project.cloudrun_here("submit", "waits.py", "--memory", nonsense)
        assert refused.returncode == 2, "nobody means so few bytes"
    assert "kept.txt" in {artifact["path"] for artifact in document["artifacts"]}


@pytest.mark.slow
@pytest.mark.parametrize("killed", [False, True], ids=["with its agent", "with its agent killed"])
def test_a_machine_ends_at_its_deadline_though_nobody_is_there(
    project: Project, aws: Callable[..., dict[str, object]], killed: bool
) -> None:
    project.write("sleeps.py", "import time\ntime.sleep(600)\n")
    run_id = detached(project, "sleeps.py", "--deadline", "25s")
    (unit,) = project.ledger.units()
    if killed:
        _kill_the_agent(unit.instance_id)

    def state() -> str:
        answer = json.loads(json.dumps(aws("ec2", "describe-instances", "--instance-ids", unit.instance_id)))
        return str(answer["Reservations"][0]["Instances"][0]["State"]["Name"])

    wait_for(lambda: state() == "terminated", "its end", 60)
    late_s = time.time() - unit.deadline.timestamp()
    assert late_s < 15, f"{late_s:.0f} s after its deadline"
    assert processes_of(unit.instance_id) == []
    project.cloudrun("reap")
    assert project.ledger.run(run_id).state is RunState.LOST


def _kill_the_agent(instance_id: str) -> None:
    """Every process of the agent's, seen from outside: those that run its archive."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = (
                instance_id in (folder / "mountinfo").read_text()
                and b".cloudrun/agent/" in (folder / "cmdline").read_bytes()
            )
        except OSError:
            continue
        if ours:
            os.kill(int(folder.name), signal.SIGKILL)


@pytest.mark.slow
def test_a_machine_that_nobody_needs_ends_itself_before_its_deadline(
    project: Project, start: Start, aws: Callable[..., dict[str, object]]
) -> None:
    """Its client was killed, nothing runs and nothing waits: no reaper and no deadline is needed."""
    project.write(
        "dies.py",
        """
import os, signal
from cloudrun import process_unit
with process_unit(idle="4s") as unit:
    print(unit.instance_id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    dying = start("dies.py")
    assert dying.wait(150) == -signal.SIGKILL
    assert dying.stdout is not None
    instance_id = dying.stdout.read().strip()

    def state() -> str:
        answer = json.loads(json.dumps(aws("ec2", "describe-instances", "--instance-ids", instance_id)))
        return str(answer["Reservations"][0]["Instances"][0]["State"]["Name"])

    wait_for(lambda: state() == "terminated", "its end", 90)
    assert project.cloudrun("reap").returncode == 0
    assert project.ledger.units() == []
