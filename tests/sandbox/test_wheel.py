"""The built wheel, in an empty virtual environment, from an empty folder, with a sandbox of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.conftest import VENV_BIN, Project

CHECKOUT = Path(__file__).parents[2]
SCRIPT = """
import json, joblib
from sklearn.tree import DecisionTreeClassifier
from sklearn.datasets import load_iris
X, y = load_iris(return_X_y=True)
tree = DecisionTreeClassifier(random_state=0).fit(X[::2], y[::2])
joblib.dump(tree, "tree.joblib")
print(json.dumps({"accuracy": tree.score(X[1::2], y[1::2])}))
"""


def uv(*words: str) -> None:
    subprocess.run([str(VENV_BIN / "uv"), *words], check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    uv("build", "--quiet", "--wheel", "--out-dir", str(folder), str(CHECKOUT))
    (wheel,) = folder.glob("*.whl")
    uv("venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    uv("pip", "install", "--quiet", "--python", str(folder / "venv"), str(wheel))
    return folder / "venv" / "bin"


@pytest.fixture
def wheel_project(project: Project, installed: Path, tmp_path: Path) -> Iterator[Project]:
    project.env = {
        "CLOUDRUN_SANDBOX_DIR": str(tmp_path / "sandbox"),
        "PATH": f"{installed}{os.pathsep}/usr/bin:/bin",
    }
    yield project
    subprocess.run(
        ["cloudrun", "sandbox", "stop", "--force"],
        env=project.environment,
        check=True,
        capture_output=True,
        timeout=150,
    )


def run(project: Project, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(words), cwd=project.root, env=project.environment, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=180, check=False,
    )  # fmt: skip


def test_it_runs_a_script_that_is_not_ours(wheel_project: Project, installed: Path) -> None:
    wheel_project.write("tree.py", SCRIPT)
    done = run(wheel_project, "cloudrun", "submit", "tree.py")
    assert done.returncode == 0, done.stderr
    load = "from cloudrun import Ledger; print(Ledger().ranking()[0].model().get_depth() > 1)"
    assert run(wheel_project, "python", "-c", load).stdout == "True\n"
    assert run(wheel_project, "cloudrun", "units").returncode == 0
    (byte_code,) = installed.parent.glob("lib/python3*/site-packages/asyncssh/__pycache__")
    assert list(byte_code.glob("connection.*")), "machines can only read, and would compile it at each boot"
    assert str(CHECKOUT) not in run(wheel_project, "python", "-c", "import cloudrun; print(cloudrun.__file__)").stdout
