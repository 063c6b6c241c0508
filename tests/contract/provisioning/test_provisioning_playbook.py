"""The playbook against a real SSH host: what it builds, how it fails, and that nothing of it is left running."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from uv import find_uv_bin

from cloudrun.core.errors import Cancelled, HostKeyMismatch, ProvisionError, UsageError
from cloudrun.core.records import Environment, SshTarget
from cloudrun.core.rundir import env_dir, env_python, env_ready
from cloudrun.plan.fingerprint import environment_fingerprint
from cloudrun.provisioning.ansible import ansible_environment
from cloudrun.provisioning.environment import client_python
from cloudrun.provisioning.playbook import check_playbook, provision
from cloudrun.provisioning.resources import playbook_dir
from tests.waiting import until

from .conftest import Host

TIMEOUT_S = 240


def environment(*requirements: str) -> Environment:
    fingerprint = environment_fingerprint(client_python(), "x86_64", requirements)
    return Environment(client_python(), "x86_64", requirements, "a test", fingerprint)


def playbook(tmp_path: Path, tasks: str) -> Path:
    path = tmp_path / "own.yml"
    path.write_text(f"- hosts: unit\n  gather_facts: false\n  tasks:\n{tasks}")
    return path


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return tmp_path / "private folder"


def processes_with(text: str) -> list[str]:
    """Command lines of processes that have `text` in them or in their environment."""
    listed = subprocess.run(["ps", "axeww", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line[:200] for line in listed.splitlines() if text in line and line.split(None, 1)[0] != str(os.getpid())]


# -- what it builds --------------------------------------------------------------------------------------------------


def test_a_unit_gets_the_environment_and_a_second_time_keeps_it(
    host: Host, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "must-not-be-written")
    wanted = environment("joblib==1.4.0")
    lines: list[str] = []
    log = provision(host.target, wanted, private_dir=private, timeout_s=TIMEOUT_S, on_line=lines.append)
    assert log == private / "provision.log"
    assert log.read_text().splitlines() == lines
    assert any("Build the environment" in line for line in lines)
    python = host.home / env_python(wanted.fingerprint)
    told = subprocess.run(
        [python, "-c", "import joblib, sys; print(joblib.version, '%d.%d' % sys.version_info[:2], sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split() == ["1.4.0", client_python(), str(host.home / env_dir(wanted.fingerprint))]
    marker = host.home / env_ready(wanted.fingerprint)
    made = marker.stat().st_mtime_ns
    assert list(private.iterdir()) == [log]  # inventory and Ansible's own files have gone
    assert "must-not-be-written" not in log.read_text()
    provision(host.target, wanted, private_dir=private, timeout_s=TIMEOUT_S, verbose=True, on_line=lines.append)
    assert marker.stat().st_mtime_ns == made
    assert processes_with(str(private)) == []


def test_two_that_build_the_same_environment_at_once_leave_one(host: Host, private: Path) -> None:
    wanted = environment("joblib==1.4.0")
    with ThreadPoolExecutor(2) as threads:
        jobs = [
            threads.submit(provision, host.target, wanted, private_dir=private / str(n), timeout_s=TIMEOUT_S)
            for n in range(2)
        ]
        assert [job.result() for job in jobs] == [private / "0" / "provision.log", private / "1" / "provision.log"]
    assert [path.name for path in (host.home / ".cloudrun" / "envs").iterdir()] == [wanted.fingerprint]
    assert (host.home / env_ready(wanted.fingerprint)).exists()


def test_a_machine_without_uv_gets_the_pinned_one(
    host: Host, private: Path, wheels: Callable[..., None], tmp_path: Path
) -> None:
    (host.tools / "uv").unlink()
    (host.tools / "python3").symlink_to(f"{sys.base_prefix}/bin/python{client_python()}")
    pinned = (Path(__file__).parents[3] / "inventory" / "group_vars" / "all.yml").read_text()
    version = pinned.split("uv_version:")[1].split()[0]
    wheels("uv", version, scripts={"uv": f'#!/bin/sh\necho used >> {tmp_path}/used\nexec {find_uv_bin()} "$@"\n'})
    wanted = environment("joblib==1.4.0")
    provision(host.target, wanted, private_dir=private, timeout_s=TIMEOUT_S)
    assert (host.home / env_ready(wanted.fingerprint)).exists()
    assert (tmp_path / "used").exists()


def test_neither_the_users_settings_nor_a_template_in_a_requirement_have_a_say(
    host: Host, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "ansible.cfg").write_text(
        "[defaults]\nremote_user = nobody\ncallback_result_format = nonsense\n"
    )
    (tmp_path / "here" / "json.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("ANSIBLE_STRATEGY", "nonsense")
    monkeypatch.setenv("ANSIBLE_REMOTE_USER", "nobody")
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # as where the virtual environment is not activated
    trap = tmp_path / "trap"
    line = f"""# {{{{ lookup('pipe', 'touch {trap}') }}}} {{% set a = 1 %}} {{# gone #}}"""  # to uv a comment
    wanted = environment("joblib==1.4.0", line)
    provision(host.target, wanted, private_dir=private, timeout_s=TIMEOUT_S)
    assert not trap.exists()
    record = json.loads((host.home / env_ready(wanted.fingerprint)).read_text())
    assert record["requirements"] == ["joblib==1.4.0", line]


# -- how it fails ----------------------------------------------------------------------------------------------------


def test_a_requirement_that_cannot_be_installed_is_told_in_uvs_words(host: Host, private: Path) -> None:
    wanted = environment("nowhere==1.0")
    with pytest.raises(ProvisionError, match="nowhere") as caught:
        provision(host.target, wanted, private_dir=private, timeout_s=TIMEOUT_S)
    assert caught.value.task == "Build the environment"
    assert caught.value.log_path == private / "provision.log"
    assert "nowhere" in caught.value.log_path.read_text()
    assert list((host.home / ".cloudrun" / "envs").iterdir()) == []


def test_another_host_key_is_refused(host: Host, private: Path, tmp_path: Path) -> None:
    target = dataclasses.replace(host.target, host_key=(tmp_path / "some keys" / "login.pub").read_text())
    with pytest.raises(HostKeyMismatch, match="another host key"):
        provision(target, environment(), private_dir=private, timeout_s=TIMEOUT_S)
    assert list(host.home.iterdir()) == []


def test_a_machine_that_does_not_answer_is_told(host: Host, private: Path) -> None:
    with pytest.raises(ProvisionError, match="could not reach the unit"):
        provision(dataclasses.replace(host.target, port=9), environment(), private_dir=private, timeout_s=TIMEOUT_S)


def test_a_failing_task_of_ones_own_playbook_is_named(host: Host, private: Path, tmp_path: Path) -> None:
    tasks = """
    - {name: Harmless, raw: 'exit 3', ignore_errors: true}
    - {name: Break it, raw: 'echo why >&2; exit 4'}
"""
    with pytest.raises(ProvisionError, match="why") as caught:
        provision(
            host.target, environment(), private_dir=private, timeout_s=TIMEOUT_S, playbook=playbook(tmp_path, tasks)
        )
    assert caught.value.task == "Break it"


@pytest.mark.parametrize("text", ["- hosts: unit\n  tasks: [\n", "- hosts: unit\n  tsaks: []\n", "just words\n"])
def test_what_is_no_playbook_is_refused_before(tmp_path: Path, text: str) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(text)
    with pytest.raises(ProvisionError, match=r"(?s)cannot read the playbook .*broken\.yml") as caught:
        check_playbook(broken)
    assert str(broken) in caught.value.next_step


def test_what_has_become_no_playbook_is_refused_while(host: Host, private: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text("- hosts: unit\n  tsaks: []\n")
    with pytest.raises(ProvisionError, match="the playbook did not run"):
        provision(host.target, environment(), private_dir=private, timeout_s=TIMEOUT_S, playbook=broken)


def test_our_own_playbook_is_readable(tmp_path: Path) -> None:
    check_playbook(playbook_dir() / "unit.yml")
    check_playbook()
    with pytest.raises(UsageError, match="there is no playbook"):
        check_playbook(tmp_path / "absent.yml")


def test_without_an_ssh_client_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    target = SshTarget("127.0.0.1", 9, "ubuntu", tmp_path / "key", "ssh-ed25519 AAAA")
    with pytest.raises(UsageError, match="no ssh client") as caught:
        provision(target, environment(), private_dir=tmp_path / "private", timeout_s=TIMEOUT_S)
    assert "openssh-client" in caught.value.next_step
    assert not (tmp_path / "private").exists()


def test_a_log_that_cannot_be_written_is_told(host: Host, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProvisionError, match="could not be written"):
        provision(host.target, environment(), private_dir=tmp_path / "file" / "below", timeout_s=TIMEOUT_S)


def test_no_key_of_the_callers_reaches_ansible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "must-not-be-known")
    monkeypatch.setenv("ANSIBLE_STRATEGY", "nonsense")
    told = ansible_environment(None)
    assert "must-not-be-known" not in told.values()
    assert {name for name in told if name.startswith("ANSIBLE")} == {"ANSIBLE_CONFIG", "ANSIBLE_HOST_KEY_CHECKING"}


# -- how it ends -----------------------------------------------------------------------------------------------------

SLEEP = "    - {name: Wait, raw: 'touch began; sleep 300'}\n"


def test_cancelling_ends_ansible_with_its_workers(host: Host, private: Path, tmp_path: Path) -> None:
    cancelled = threading.Event()
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def run() -> None:
        provision(
            host.target,
            environment(),
            private_dir=private,
            timeout_s=TIMEOUT_S,
            cancelled=cancelled,
            playbook=playbook(tmp_path, SLEEP),
        )

    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(run)
        until((host.home / "began").exists)
        assert processes_with(str(private)) != []
        cancelled.set()
        with pytest.raises(Cancelled):
            job.result()
    until(lambda: processes_with(str(private)) == [])
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_playbook_that_takes_too_long_is_ended(host: Host, private: Path, tmp_path: Path) -> None:
    with pytest.raises(ProvisionError, match="took longer than 2 s"):
        provision(host.target, environment(), private_dir=private, timeout_s=2, playbook=playbook(tmp_path, SLEEP))
    until(lambda: processes_with(str(private)) == [])


CLIENT = """
import sys
from pathlib import Path
from cloudrun.core.records import Environment, SshTarget
from cloudrun.provisioning.playbook import provision

port, key, host_key, private, book = sys.argv[1:]
target = SshTarget("127.0.0.1", int(port), "ubuntu", Path(key), host_key)
wanted = Environment("3.11", "x86_64", (), "", "f")
try:
    provision(target, wanted, private_dir=Path(private), timeout_s=240, playbook=Path(book))
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


@pytest.mark.parametrize(("number", "ends_with"), [(signal.SIGINT, 1), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_client_that_is_interrupted_or_killed_leaves_no_ansible(
    host: Host, private: Path, tmp_path: Path, number: signal.Signals, ends_with: int
) -> None:
    target = host.target
    where = [str(target.port), str(target.key_path), target.host_key.strip()]
    what = [str(private), str(playbook(tmp_path, SLEEP))]
    client = subprocess.Popen([sys.executable, "-c", CLIENT, *where, *what], stderr=subprocess.DEVNULL)
    until((host.home / "began").exists)
    client.send_signal(number)
    assert client.wait(TIMEOUT_S) == ends_with
    until(lambda: processes_with(str(private)) == [])
