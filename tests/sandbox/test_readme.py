"""What the README says is so: its snippets run, and every command and setting is in it."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from cloudrun.cli.catalogue import COMMANDS
from cloudrun.config import key_of
from cloudrun.core.settings import Settings
from tests.readme_command import README, snippet
from tests.sandbox.conftest import VENV_BIN, Project

TEXT = README.read_text()


def test_the_python_snippet_runs(project: Project) -> None:
    shutil.copytree(README.parent / "jobs", project.root / "jobs")
    project.write("pyproject.toml", "")
    project.write("main.py", snippet("python") + "\nprint(best.run_id == run.run_id, model.n_features_in_)")
    done = project.python("main.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "True 64"


def test_the_pool_snippet_runs(project: Project) -> None:
    shutil.copytree(README.parent / "jobs", project.root / "jobs")
    project.write("pyproject.toml", "")
    project.write("main.py", snippet("pool"))
    done = project.python("main.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("succeeded") == 3
    assert done.stdout.splitlines()[-1].startswith("[0.0, 1.0, 1.414")
    assert project.ledger.units() == []


def test_the_sandbox_snippet_runs(project: Project) -> None:
    project.env["PATH"] = f"{VENV_BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", snippet("sandbox")], cwd=project.root, env=project.environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"Reservations"' in done.stdout


def test_the_detached_snippet_runs(project: Project) -> None:
    shutil.copytree(README.parent / "jobs", project.root / "jobs")
    project.write("pyproject.toml", "")
    project.env["PATH"] = f"{VENV_BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", snippet("detached")], cwd=project.root, env=project.environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = project.ledger.runs()
    assert run.state == "succeeded"
    assert done.stdout.count('"accuracy"') == 2, "followed twice, each time whole"
    assert project.ledger.units() == []


def test_the_grid_snippet_runs(project: Project) -> None:
    shutil.copytree(README.parent / "jobs", project.root / "jobs")
    project.write("pyproject.toml", "")
    project.env["PATH"] = f"{VENV_BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", snippet("grid")], cwd=project.root, env=project.environment, text=True,
        stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "nothing to do: all 4 cells are in the ledger" in done.stderr
    assert [run.state for run in project.ledger.runs()] == ["succeeded"] * 4
    assert project.ledger.units() == []


def test_every_installing_snippet_is_one_line() -> None:
    for name in ("first", "tests"):
        assert len(snippet(name).splitlines()) == 1


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_every_command_is_in_it(name: str) -> None:
    assert f"cloudrun {name}" in TEXT


@pytest.mark.parametrize("field", [field.name for field in fields(Settings)])
def test_every_setting_is_in_it_with_its_default(field: str) -> None:
    (row,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{key_of(field)}` |")]
    default = Settings.__dataclass_fields__[field].default
    if isinstance(default, str):
        assert f"| {default} |" in row


def test_it_names_what_the_system_must_have() -> None:
    assert "sudo apt install git python3-venv openssh-client" in TEXT
    assert Path(README.parent / ".ci" / "run").exists()
