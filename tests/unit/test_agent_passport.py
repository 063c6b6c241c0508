"""The passport of a virtual environment, read from its folders; what cannot be read is asked."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cloudrun.agent import passport


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Its `python` must not be started: it is none."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    for name in ("numpy-2.1.0", "scikit_learn-1.6.1", "joblib-1.4.2", "numpydoc-1.0", "other-3.0"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    (tmp_path / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.12.4\n")
    return tmp_path


@pytest.mark.parametrize("version", ["version_info = 3.12.4", "version = 3.12.4", "version_info = 3.12.4.final.0"])
def test_an_environment_is_read_without_starting_its_python(environment: Path, version: str) -> None:
    (environment / "pyvenv.cfg").write_text(f"home = /usr/bin\n{version}\ninclude-system-site-packages = false\n")
    asked = passport.begin(str(environment / "bin" / "python"))
    assert passport.finish(asked) == {
        "versions": {"numpy": "2.1.0", "scikit-learn": "1.6.1", "joblib": "1.4.2"},
        "python": "3.12.4",
        "platform": platform.platform(),
    }


def test_an_environment_that_sees_other_packages_is_not_read(environment: Path) -> None:
    (environment / "pyvenv.cfg").write_text("version = 3.12.4\ninclude-system-site-packages = true\n")
    assert passport.read(str(environment / "bin" / "python")) is None


def test_what_was_read_is_what_its_python_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path)], check=True, timeout=60)
    python = str(tmp_path / "bin" / "python")
    asked = subprocess.run([python, "-I", "-c", passport._QUESTION], capture_output=True, check=True, timeout=60)
    read = passport.read(python)
    assert read is not None
    assert asked.stdout.decode() == passport.json.dumps(read) + "\n"


def test_any_other_python_is_asked(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    asked = passport.begin(str(python))
    assert isinstance(asked, subprocess.Popen)
    assert passport.finish(asked)["platform"] == platform.platform()


def test_what_is_no_python_has_no_passport() -> None:
    assert passport.finish(passport.begin("/bin/sh")) == {"versions": {}, "python": "", "platform": ""}
