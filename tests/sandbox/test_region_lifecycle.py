"""The region's daemon from outside: started once by many, recognised when dead, stopped, idle, withdrawn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from cloudrun.core.errors import SandboxError
from cloudrun.sandbox import client
from cloudrun.sandbox.state import locked, process_started, state_dir
from tests.waiting import PATIENCE_S, until


@pytest.fixture
def own_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sandbox of this test's own."""
    folder = tmp_path / "sandbox"
    monkeypatch.setenv("CLOUDRUN_SANDBOX_DIR", str(folder))
    yield folder
    client.stop()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE_S:.0f} s for {what}"
        time.sleep(0.05)


def launch(region: client.Region) -> str:
    ec2 = boto3.client(
        "ec2",
        endpoint_url=region.endpoint_url,
        region_name=region.region,
        aws_access_key_id=region.access_key,
        aws_secret_access_key=region.secret_key,
    )
    image = ec2.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}])["Images"][0]["ImageId"]
    answer = ec2.run_instances(ImageId=image, InstanceType="m7i.large", MinCount=1, MaxCount=1)
    instance_id = str(answer["Instances"][0]["InstanceId"])
    ec2.get_waiter("instance_running").wait(InstanceIds=[instance_id], WaiterConfig={"Delay": 0.1, "MaxAttempts": 900})
    return instance_id


def processes_of(folder: Path) -> list[str]:
    """Processes that name a sandbox's directory in their environment or command line."""
    listed = subprocess.run(["ps", "axeww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    lines = [line for line in listed.splitlines() if f"{folder}" in line]
    return [line for line in lines if int(line.split(None, 1)[0]) not in (os.getpid(), os.getppid())]


def test_a_region_is_started_once_and_found_again(own_dir: Path) -> None:
    assert client.current() is None
    said: list[str] = []
    region = client.ensure(say=said.append)
    assert client.ensure(say=said.append) == region
    assert said == ["starting the sandbox (the first time: some 20 s)"]
    assert client.current() == region
    assert region.endpoint_url.startswith("http://127.0.0.1:")
    assert client.stop() is True
    assert client.current() is None
    assert client.stop() is False


def test_only_the_user_can_read_its_secret(own_dir: Path) -> None:
    client.ensure()
    assert stat.S_IMODE(own_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((own_dir / "region.json").stat().st_mode) == 0o600


def test_processes_that_start_one_at_the_same_time_get_the_same_one(own_dir: Path) -> None:
    program = "from cloudrun.sandbox import client; print(client.ensure().generation)"
    starters = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    generations = {starter.communicate(timeout=120)[0] for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0, 0]
    assert len(generations) == 1


def test_a_killed_daemon_takes_its_machines_along_and_a_new_region_has_another_generation(own_dir: Path) -> None:
    before = client.ensure()
    launch(before)
    os.kill(before.pid, signal.SIGKILL)
    wait_for(lambda: client.current() is None, "the lock of a killed daemon")
    wait_for(lambda: not processes_of(own_dir / "units"), "the machines of a killed daemon")
    after = client.ensure()
    assert after.generation != before.generation
    assert after.secret_key != before.secret_key
    assert client.status()["instances"] == []
    assert list((own_dir / "units").iterdir()) == []


def test_a_stale_region_file_whose_pid_is_somebody_elses_is_not_believed(own_dir: Path) -> None:
    region = client.ensure()
    told = (own_dir / "region.json").read_text()
    client.stop()
    innocent = subprocess.Popen(["sleep", "60"])
    try:
        (own_dir / "region.json").write_text(told.replace(str(region.pid), str(innocent.pid)))
        (own_dir / "daemon.lock").write_text(f"{innocent.pid} {process_started(innocent.pid)}")
        assert client.current() is None
        assert client.stop() is False
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", '{"schema_version": 1}', "\x00"])
def test_a_region_file_that_cannot_be_read_is_none(own_dir: Path, content: str) -> None:
    own_dir.mkdir()
    (own_dir / "region.json").write_text(content)
    with locked(own_dir / "daemon.lock", timeout_s=1):
        assert client.current() is None


def test_what_is_not_a_machines_is_left_alone(own_dir: Path, tmp_path: Path) -> None:
    """A directory that had a folder `units` before it was a sandbox's."""
    (own_dir / "units" / "imperial").mkdir(parents=True)
    (own_dir / "units" / "metric.csv").write_text("kept")
    (own_dir / "units" / "i-0123456789abcdef0" / "root").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (own_dir / "units" / "i-link").symlink_to(tmp_path / "mine")
    client.ensure()
    left = sorted(path.name for path in (own_dir / "units").iterdir())
    assert left == ["i-link", "imperial", "metric.csv"]
    assert (tmp_path / "mine").is_dir()


def _rewrite(own_dir: Path, **changes: object) -> None:
    document = json.loads((own_dir / "region.json").read_text())
    (own_dir / "region.json").write_text(json.dumps({**document, **changes}))


@pytest.mark.parametrize("change", [{"version": "0.0.1"}, {"python": "/no/such/python"}])
def test_an_unused_region_of_another_installation_is_replaced(own_dir: Path, change: dict[str, object]) -> None:
    before = client.ensure()
    _rewrite(own_dir, **change)
    after = client.ensure()
    assert after.generation != before.generation
    until(lambda: process_started(before.pid) == "")  # it lets go of its lock a moment before


def test_a_region_of_another_installation_keeps_its_machines(own_dir: Path) -> None:
    region = client.ensure()
    launch(region)
    for change in ({"version": "0.0.1"}, {"schema_version": 99}):
        _rewrite(own_dir, **change)
        with pytest.raises(SandboxError, match="may have machines") as error:
            client.ensure()
        assert "sandbox stop" in error.value.next_step
    assert process_started(region.pid)
    assert client.stop()


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CLOUDRUN_SANDBOX_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(SandboxError) as error:
        client.current()
    assert "CLOUDRUN_SANDBOX_DIR" in error.value.next_step


def test_a_daemon_that_cannot_write_its_files_says_so_without_its_log(own_dir: Path) -> None:
    """A disk that is full takes no log either."""
    (own_dir / "cache").mkdir(parents=True)
    (own_dir / "cache" / "pages").write_text("")  # where a folder is to be
    with pytest.raises(SandboxError, match=r"did not start: .*pages"):
        client.ensure()


def test_stopping_ends_every_machine_and_leaves_no_file_of_one(own_dir: Path) -> None:
    region = client.ensure()
    launch(region)
    assert processes_of(own_dir / "units")
    client.stop()
    assert processes_of(own_dir / "units") == []
    assert list((own_dir / "units").iterdir()) == []
    assert not (own_dir / "region.json").exists()
    wait_for(lambda: process_started(region.pid) == "", "the daemon's own end")


def test_an_instance_whose_machine_dies_is_terminated_and_the_log_says_so(own_dir: Path) -> None:
    region = client.ensure()
    instance_id = launch(region)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(region.pid)], capture_output=True, text=True, check=True
    )
    for pid in children.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    wait_for(lambda: client.status()["instances"][0]["state"] == "terminated", "the end of a dead instance")
    wait_for(lambda: f"{instance_id}: ended (died)" in (own_dir / "daemon.log").read_text(), "the log's line")


def test_an_unused_region_stops_by_itself(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDRUN_SANDBOX_IDLE_S", "2")
    client.ensure()
    wait_for(lambda: client.current() is None, "the idle region's end")


def test_a_region_with_an_instance_is_not_idle(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDRUN_SANDBOX_IDLE_S", "6")
    region = client.ensure()
    launch(region)
    time.sleep(8)
    assert client.current() == region


def test_a_region_whose_file_is_removed_ends(own_dir: Path) -> None:
    region = client.ensure()
    (own_dir / "region.json").unlink()
    wait_for(lambda: process_started(region.pid) == "", "the end of a region that nobody can find")


def test_a_daemon_that_cannot_start_says_why_at_once(own_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDRUN_SANDBOX_IDLE_S", "soon")
    with pytest.raises(SandboxError, match="soon") as error:
        client.ensure()
    assert error.value.next_step


def test_a_directory_that_cannot_be_made_is_an_error_with_a_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLOUDRUN_SANDBOX_DIR", str(tmp_path / "file" / "sandbox"))
    with pytest.raises(SandboxError, match="cannot be made") as error:
        client.ensure()
    assert "CLOUDRUN_SANDBOX_DIR" in error.value.next_step


def test_without_a_variable_the_directory_is_in_the_state_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLOUDRUN_SANDBOX_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert state_dir().root == Path("/state/cloudrun/sandbox")
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert state_dir().root == Path.home() / ".local/state/cloudrun/sandbox"


def test_the_users_own_aws_settings_and_modules_do_not_reach_the_daemon(
    own_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('the wrong random')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    region = client.ensure()
    monkeypatch.delenv("AWS_PROFILE")
    launch(region)


def test_a_web_page_gets_nothing_from_the_real_server(region: client.Region) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for headers in ({"Origin": "https://example.com"}, {"Host": "example.com"}, {}):
        with pytest.raises(urllib.error.HTTPError) as error:
            opener.open(urllib.request.Request(region.endpoint_url + "/", headers=headers), timeout=60)
        with error.value as refusal:
            assert refusal.code == 403
            assert not any(name.lower().startswith("access-control") for name in refusal.headers)


def test_status_lets_the_aws_cli_in(region: client.Region) -> None:
    status = client.status()
    for name in ("endpoint_url", "region", "pid", "access_key_id", "secret_access_key"):
        assert status[name]
    assert status["not_emulated"]
    aws = Path(sys.executable).parent / "aws"
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **status["env"]}
    told = subprocess.run(
        [aws, "sts", "get-caller-identity", "--output", "json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert json.loads(told)["Account"] == "123456789012"
