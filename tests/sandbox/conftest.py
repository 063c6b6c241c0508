"""What the sandbox's tests share: a project to run things in, the command line, and a look at what is left."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloudrun.ledger import Ledger
from cloudrun.sandbox import client
from tests.command import call_here

VENV_BIN = Path(sys.executable).parent


@dataclass
class Project:
    """A user's folder, that is not the checkout."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "COLUMNS": "120", **self.env}

    def cloudrun(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "cloudrun", *words, timeout_s=timeout_s)

    def cloudrun_here(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The same in this process, for what ends before anything is launched: half a second of imports less."""
        return call_here(self.root, self.environment, words)

    def python(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def json(self, *words: str, timeout_s: float = 240) -> dict[str, Any]:
        return self._document(self.cloudrun(*words, "--json", timeout_s=timeout_s))

    def json_here(self, *words: str) -> dict[str, Any]:
        return self._document(self.cloudrun_here(*words, "--json"))

    @staticmethod
    def _document(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        try:
            return dict(json.loads(done.stdout))
        except ValueError:
            raise AssertionError(f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}") from None

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.root)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "project").mkdir()
    return Project(tmp_path / "project")


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(project: Project) -> Iterator[Start]:
    """Starts Python with these arguments in the project, in a process group of its own; killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=project.root,
            env=project.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def region() -> client.Region:
    return client.ensure()


Aws = Callable[..., Any]


@pytest.fixture(scope="session")
def aws(region: client.Region) -> Aws:
    """The AWS CLI against the sandbox; returns the parsed answer."""

    from awscli.clidriver import create_clidriver

    driver = create_clidriver()  # in this process: each start of the program costs as much as a whole launch
    for name in ("config_file", "credentials_file"):
        driver.session.set_config_variable(name, os.devnull)
    driver.session.set_credentials(region.access_key, region.secret_key)

    def run(*words: str) -> Any:
        said = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        with redirect_stdout(said):
            code = driver.main(
                [*words, "--output", "json", "--region", region.region, "--endpoint-url", region.endpoint_url]
            )
            said.flush()
        assert code == 0
        text = said.buffer.getvalue().decode()
        return json.loads(text) if text.strip() else None

    return run


@pytest.fixture
def no_unit_is_left_alone(project: Project) -> Iterator[None]:
    """Whatever a test does, and wherever it fails: in the end its machines do."""
    yield
    for unit in project.ledger.units():
        project.cloudrun("reap", unit.instance_id)


@pytest.fixture
def nothing_left(aws: Aws, region: client.Region) -> Callable[[Project], None]:
    """Fails where EC2 still has something of this project's, or a process of one of its units is alive."""

    def check(project: Project) -> None:
        ours = ["--filters", f"Name=tag:cloudrun:ledger,Values={project.ledger.ledger_id}"]
        instances = [
            instance
            for reservation in aws("ec2", "describe-instances", *ours)["Reservations"]
            for instance in reservation["Instances"]
        ]
        assert instances, "nothing was ever launched: this check would prove nothing"
        assert {instance["State"]["Name"] for instance in instances} == {"terminated"}
        assert aws("ec2", "describe-key-pairs", *ours)["KeyPairs"] == []
        assert aws("ec2", "describe-security-groups", *ours)["SecurityGroups"] == []
        for instance in instances:
            assert processes_of(instance["InstanceId"]) == []
        assert project.ledger.units() == []
        assert list(project.ledger.keys_dir.glob("*")) == []

    return check


def processes_of(instance_id: str) -> list[str]:
    """The processes of a unit, as seen from outside it: those whose files are the unit's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if instance_id in (folder / "mountinfo").read_text() and int(folder.name) != os.getpid():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def pids_of(instance_id: str) -> list[int]:
    """Processes of a machine, seen from outside."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if instance_id in (folder / "mountinfo").read_text() and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(0.05)
