"""A job that starts as a fork does what `python script.py` does: the same scripts, run in both ways, compared."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import processes
from cloudrun.core.rundir import read_object
from tests.forked_scripts import HELPERS, SCRIPTS
from tests.forking import QUICK, Ended, Files, Warden
from tests.pythons import find_python
from tests.waiting import until

SEES = "import sys, helper; print(sys.path, sys.argv, __file__, helper.__file__); 1 / 0"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parents are for units, which run Linux")


def ready(folder: Path, **more: Any) -> Iterator[Warden]:
    if sys.prefix == sys.base_prefix:
        pytest.skip("no virtual environment")
    warden = Warden(folder, **more)
    warden.warm(warden.spec(["train.py"]))
    yield warden
    warden.close()


@pytest.fixture(scope="module")
def warden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warden]:
    yield from ready(tmp_path_factory.mktemp("home"), modules=QUICK)


@pytest.fixture(scope="module")
def heavy_warden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warden]:
    """Its parent has imported scikit-learn, too."""
    yield from ready(tmp_path_factory.mktemp("home"))


def both(warden: Warden, files: Files, argv: list[str], **changes: Any) -> tuple[Ended, Ended]:
    spec = warden.spec(argv, **changes)
    assert warden.ask("fits", spec)
    fresh, forked = (warden.begin(spec, files, forked=way) for way in (False, True))  # side by side
    return warden.end(fresh), warden.end(forked)


def same(fresh: Ended, forked: Ended) -> None:
    assert (forked.code, forked.stdout, forked.stderr) == (fresh.code, fresh.stdout, fresh.stderr)


HEAVY = [name for name, script in SCRIPTS.items() if "sklearn" in script]


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in HEAVY])
def test_a_forked_job_does_what_a_fresh_interpreter_does(warden: Warden, name: str) -> None:
    compare(warden, name)


@pytest.mark.parametrize("name", [*HEAVY, "arguments, flags and names", "process", "atexit order"])
def test_one_that_finds_scikit_learn_imported_does_so_too(heavy_warden: Warden, name: str) -> None:
    compare(heavy_warden, name)


def compare(warden: Warden, name: str) -> None:
    files = {**HELPERS, "train.py": textwrap.dedent(SCRIPTS[name]).lstrip("\n")}
    env = {"PYTHONPATH": "lib:.::lib"} if name == "pythonpath" else {}
    fresh, forked = both(warden, files, ["train.py", "--epochs", "3", "", "a b"], env=env)
    same(fresh, forked)
    assert forked.forked == (name not in {"syntax error", "indentation error", "nul byte"})


# what is next to the script -> the script's own name, and whether it is forked
LAYOUTS: dict[str, tuple[Files, str, dict[str, Any], bool]] = {
    "a script in a folder": ({"src/train.py": SEES, "src/helper.py": ""}, "src/train.py", {}, True),
    "a script by a roundabout path": ({"src/train.py": SEES, "src/helper.py": ""}, "./src/../src/train.py", {}, True),
    "a working directory below": ({"src/train.py": SEES, "src/helper.py": ""}, "train.py", {"cwd": "src"}, True),
    "a script above the working directory": ({"train.py": SEES, "helper.py": ""}, "../train.py", {"cwd": "new"}, True),
    "a script that is missing": ({}, "train.py", {}, False),
    "a script that is a folder": ({"train.py/__main__.py": SEES, "train.py/helper.py": ""}, "train.py", {}, False),
    "a coding line": (
        {"train.py": b"# -*- coding: latin-1 -*-\nprint(ascii('\xe4'), __file__)\n"}, "train.py", {}, True,
    ),
    "a byte order mark": ({"train.py": "print(ascii('\xe4'))".encode("utf-8-sig")}, "train.py", {}, True),
    "bytes that are no UTF-8": ({"train.py": b"print('\xe4')\n"}, "train.py", {}, False),
    "lines of Windows": ({"train.py": "x = '''a\r\nb'''\r\nprint(repr(x))\r\n"}, "train.py", {}, True),
    "a cloudrun of its own": (
        {"train.py": "import cloudrun; print(cloudrun.__file__)", "cloudrun.py": ""}, "train.py", {}, True,
    ),
    "a random of its own": (
        {"train.py": "import random; print(random.__file__)", "random.py": ""}, "train.py", {}, False,
    ),
    "a package named like one that is loaded": (
        {"train.py": "import joblib; print(joblib.__file__)", "joblib/__init__.py": ""}, "train.py", {}, False,
    ),
    "a folder named like a module": (
        {"train.py": "import json; print(json.__name__)", "json/data.txt": "", "numpy/x.csv": ""}, "train.py", {}, True,
    ),
    "an os of its own, which nobody finds": (
        {"train.py": "import os; print(os.path.dirname(os.__file__))", "os.py": ""}, "train.py", {}, True,
    ),
    "an os of its own, which everybody finds": (
        {"train.py": "print(1)", "lib/os.py": "from posix import *; import posixpath as path"}, "train.py",
        {"env": {"PYTHONPATH": "lib"}}, False,
    ),
    "a sitecustomize": (
        {"train.py": "print(1)", "lib/sitecustomize.py": "print('customized')"}, "train.py",
        {"env": {"PYTHONPATH": "lib"}}, False,
    ),
    "variables": (
        {"train.py": "import sklearn, os, time; print(sorted(os.environ.items()), time.tzname)"}, "train.py",
        {"env": {"TZ": "Asia/Tokyo", "A": "\u00e4 = b", "PATH": "/usr/bin:/bin"}}, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_are_found_as_a_fresh_interpreter_finds_them(warden: Warden, name: str) -> None:
    files, script, changes, is_forked = LAYOUTS[name]
    fresh, forked = both(warden, files, [script], **changes)
    same(fresh, forked)
    assert forked.forked == is_forked


def test_a_script_that_is_a_link_is_found_where_it_leads_to(warden: Warden, tmp_path: Path) -> None:
    (tmp_path / "real.py").write_text("import sys; print(sys.path[0], __file__)")
    fresh, forked = both(warden, {"train.py": tmp_path / "real.py"}, ["train.py"])
    same(fresh, forked)
    assert forked.forked
    assert str(tmp_path) in forked.stdout


def test_two_forked_jobs_draw_different_random_numbers(warden: Warden) -> None:
    script = """
import random, numpy, uuid, tempfile
print(numpy.random.rand(), numpy.random.default_rng().random(), random.random(), uuid.uuid4())
print(next(tempfile._get_candidate_names()))
"""
    ends = [warden.run(warden.spec(["train.py"]), {"train.py": script}) for _ in range(2)]
    assert all(end.forked for end in ends)
    drawn = [end.stdout.split() for end in ends]
    assert len(drawn[0]) == 5
    assert not set(drawn[0]) & set(drawn[1])


def test_many_forked_jobs_fit_models_side_by_side(heavy_warden: Warden) -> None:
    script = """
import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
X = np.random.RandomState(0).rand(300, 5)
print(HistGradientBoostingRegressor(max_iter=5, random_state=0).fit(X, X[:, 0]).predict(X[:2]))
"""
    spec = heavy_warden.spec(["train.py"])
    runs = [heavy_warden.begin(spec, {"train.py": script}, forked=True) for _ in range(2)]
    ends = [heavy_warden.end(run) for run in runs]
    assert all(end.forked and end.code == 0 for end in ends), ends
    assert len({end.stdout for end in ends}) == 1


def test_a_forked_job_leaves_its_exit_code_for_whoever_is_not_its_parent(warden: Warden) -> None:
    alone = "import os\nopen('pid', 'w').write(str(os.getpid()))\nos.kill(os.getppid(), 9)\n"  # its supervisor
    for script, told in (
        ("if not os.fork(): raise SystemExit(1)\nos.wait()\nraise SystemExit(3)", {"exit_code": 3}),
        ("raise ValueError", {"exit_code": 1}),
        ("raise KeyboardInterrupt", {"signal": 2}),
        ("os._exit(4)", None),
    ):
        run = warden.begin(warden.spec(["train.py"]), {"train.py": alone + script}, forked=True)
        until(lambda note=run.work / "pid": note.exists() and note.read_text())
        pid = int((run.work / "pid").read_text())
        until(lambda pid=pid: (found := processes.look(pid)) is None or found.state == "Z")
        assert read_object(run.ended) == (told and {"pid": pid, **told})
        shutil.rmtree(run.root)  # nobody is left to write down its end, for which `close` would wait


# What changes from one Python to the next: how errors are shown and remembered, what there is from the beginning. The
# rest is tried with the oldest.
CHANGING = ("names", "process", "excep", "exit", "error", "interrupt", "warning", "pythonpath", "main")


@pytest.mark.parametrize(
    "version",
    ["3.9", pytest.param("3.10", marks=pytest.mark.slow), pytest.param("3.12", marks=pytest.mark.slow), "3.13"],
)
def test_other_pythons_fork_as_well(version: str, tmp_path: Path) -> None:
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version}")
    subprocess.run([python, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # stands for what a real one imports
    (packages / "numpy.py").write_text("import random, threading, multiprocessing, tempfile, subprocess, logging\n")
    warden = Warden(tmp_path, str(tmp_path / "env" / "bin" / "python"))
    try:
        warden.warm(warden.spec(["train.py"]))
        for name, script in SCRIPTS.items():
            if any(word in script for word in ("numpy", "sklearn", "joblib", "threadpoolctl", "orig_argv")):
                continue
            if version != "3.9" and not any(word in name for word in CHANGING):
                continue
            files = {**HELPERS, "train.py": textwrap.dedent(script).lstrip("\n")}
            env = {"PYTHONPATH": "lib"} if name == "pythonpath" else {}
            fresh, forked = both(warden, files, ["train.py", "x"], env=env)
            assert (name, forked.code, forked.stdout, forked.stderr) == (name, fresh.code, fresh.stdout, fresh.stderr)
    finally:
        warden.close()
