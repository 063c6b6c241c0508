"""Parents are kept for those jobs that a fork of them can be, and end whatever becomes of their warden."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import parent, parents, processes
from cloudrun.core.rundir import read_object
from cloudrun.runs.prepared import THREAD_VARIABLES
from cloudrun.ssh.archive import archive as make_archive
from tests.forking import MODULES, Warden
from tests.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="parents are for units, which run Linux")
QUICK = ["numpy"]


@pytest.fixture
def warden(tmp_path: Path) -> Iterator[Warden]:
    if sys.prefix == sys.base_prefix:
        pytest.skip("no virtual environment")
    warden = Warden(tmp_path)
    yield warden
    warden.close()


def of_parents(warden: Warden) -> list[int]:
    pids = warden.ask("children")[1]
    assert isinstance(pids, list)
    return pids


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_only_modules_that_start_nothing_are_imported_ahead() -> None:
    assert parents.preloadable(["torch", "sklearn.ensemble", "numpy", "osx", "numpy_x", "numpy"]) == [
        "numpy",
        "sklearn.ensemble",
    ]


@pytest.mark.parametrize(
    ("argv", "changes"),
    [
        (["train.py"], {"fresh": True}),
        (["train.py"], {"preload": []}),
        (["train.py"], {"preload": ["torch", "json"]}),
        (["-m", "train.py"], {}),
        (["-u", "train.py"], {}),
        (["-train.py"], {}),
        (["-c", "print(1)"], {}),
        (["train"], {}),
        ([], {}),
        (["train.py"], {"argv": ["/bin/sh", "train.py"]}),
        (["train.py"], {"argv": ["python", "train.py"]}),
        (["train.py"], {"env": {"OMP_NUM_THREADS": "1"}}),
        (["train.py"], {"env": {"PYTHONHASHSEED": "0"}}),
        (["train.py"], {"env": {"PYTHONUNBUFFERED": "0"}}),
        (["train.py"], {"env": {"LD_PRELOAD": "x.so"}}),
        (["train.py"], {"env": {"LC_ALL": "C"}}),
        (["train.py"], {"env": {"OPENBLAS_CORETYPE": "Haswell"}}),
    ],
)
def test_what_a_fork_could_not_be_is_started_freshly(
    shared_warden: Warden, argv: list[str], changes: dict[str, Any]
) -> None:
    assert not shared_warden.ask("fits", shared_warden.spec(argv, **changes))


@pytest.mark.parametrize(
    "env", [{}, {"PYTHONPATH": "src"}, {"PYTHONUNBUFFERED": "1"}, {"HOME": "/"}, {"LANG": "C.UTF-8"}]
)
def test_other_jobs_of_the_environment_are_forked(shared_warden: Warden, env: dict[str, str]) -> None:
    assert shared_warden.ask("fits", shared_warden.spec(["src/other.py", "-x"], env=env, preload=["numpy", "torch"]))


def test_so_are_those_that_share_a_unit_and_compute_on_their_part_of_it(warden: Warden) -> None:
    variables = dict.fromkeys(THREAD_VARIABLES, "1")
    warden.warm(warden.spec(["train.py"], preload=QUICK, env=variables))
    assert warden.ask("fits", warden.spec(["train.py"], preload=QUICK, env=variables))
    assert not warden.ask("fits", warden.spec(["train.py"], preload=QUICK, env=dict.fromkeys(THREAD_VARIABLES, "2")))


@pytest.fixture(scope="module")
def shared_warden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warden]:
    if sys.prefix == sys.base_prefix:
        pytest.skip("no virtual environment")
    warden = Warden(tmp_path_factory.mktemp("home"))
    warden.warm(warden.spec(["train.py"], preload=QUICK))
    yield warden
    warden.close()


def test_a_program_is_found_from_the_home(warden: Warden) -> None:
    (warden.folder / "env").symlink_to(sys.prefix)
    spec = warden.spec(["train.py"], preload=QUICK)
    spec["argv"][0] = "env/bin/" + Path(sys.executable).name
    warden.warm(spec)
    fresh, forked = (
        warden.run(spec, {"train.py": "import sys; print(sys.executable, sys.path)"}, forked=way)
        for way in (False, True)
    )
    assert forked.forked
    assert forked.stdout == fresh.stdout


def test_an_agent_in_its_archive_forks_as_well(tmp_path: Path) -> None:
    archive = tmp_path / "agent.pyz"
    archive.write_bytes(make_archive().data)
    warden = Warden(tmp_path, package=archive)
    try:
        spec = warden.spec(["t.py"], preload=QUICK)
        warden.warm(spec)
        script = "import sys; print(sys.path, [name for name in sys.modules if 'cloudrun' in name])"
        fresh, forked = (warden.run(spec, {"t.py": script}, forked=way) for way in (False, True))
        assert (forked.forked, forked.stdout) == (True, fresh.stdout)
    finally:
        warden.close()


def test_scripts_that_import_nothing_heavy_are_forks_of_a_parent_that_has_not_either(warden: Warden) -> None:
    heavy, light = warden.spec(["t.py"], preload=QUICK), warden.spec(["t.py"], preload=["json", "torch"])
    warden.warm(heavy)
    assert warden.ask("fits", light) is False, "to fork all that takes longer than to start an interpreter"
    warden.warm(light)
    assert len(of_parents(warden)) == 2
    script = {"t.py": "import sys; print('joblib' in sys.modules, 'numpy' in sys.modules)"}
    end = warden.run(light, script)
    assert (end.forked, end.stdout) == (True, "False False\n")


def test_nothing_is_started_where_memory_is_short() -> None:
    family = parents.Parents(available=lambda: parents.LEAST_MEMORY - 1)
    family.warm({"argv": [sys.executable, "train.py"], "env": {}, "preload": QUICK})
    assert family._parents == {}
    assert parents.available_memory() > 0


def test_at_most_two_parents_are_kept_and_the_least_recently_used_goes(warden: Warden) -> None:
    specs = [warden.spec(["t.py"], preload=QUICK, env={"OMP_NUM_THREADS": str(count)}) for count in (1, 2, 3)]
    for spec in specs[:2]:
        warden.warm(spec)
    script = {"t.py": "import os; print(os.environ['OMP_NUM_THREADS'])"}
    assert warden.run(specs[0], script).forked
    warden.warm(specs[2])
    assert [warden.ask("fits", spec) for spec in specs] == [True, False, True]
    assert len(of_parents(warden)) == 2
    ends = [warden.run(spec, script) for spec in (specs[0], specs[2])]
    assert [(end.stdout, end.forked) for end in ends] == [("1\n", True), ("3\n", True)]


def test_a_parent_is_replaced_by_one_that_has_imported_more(warden: Warden) -> None:
    warden.warm(warden.spec(["t.py"], preload=["numpy"]))
    first = of_parents(warden)
    warden.ask("warm", warden.spec(["t.py"], preload=["numpy"]))
    assert of_parents(warden) == first
    spec = warden.spec(["t.py"], preload=["joblib"])
    warden.warm(spec)
    assert of_parents(warden) != first
    end = warden.run(spec, {"t.py": "import sys; print('numpy' in sys.modules, 'joblib' in sys.modules)"})
    assert end.stdout == "True True\n"
    until(lambda: gone(first[0]))


def test_the_job_of_a_dead_parent_is_started_freshly(warden: Warden) -> None:
    spec = warden.spec(["t.py"], preload=QUICK)
    warden.warm(spec)
    (pid,) = of_parents(warden)
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid) and not warden.ask("fits", spec))
    warden.warm(spec)  # and there is another one then
    assert warden.run(spec, {"t.py": ""}).forked


def test_the_job_of_a_parent_that_hangs_is_started_freshly_and_only_once(warden: Warden) -> None:
    spec = warden.spec(["t.py"], preload=QUICK)
    warden.warm(spec)
    (pid,) = of_parents(warden)
    os.kill(pid, signal.SIGSTOP)
    run = warden.folder / "run00001"
    run.mkdir()
    assert warden.ask("start", str(run), spec, True) is None
    until(lambda: gone(pid))
    assert (read_object(run / "status.json") or {})["state"] == "starting"
    assert not (run / "stdout.log").exists()
    until(lambda: of_parents(warden) == [])


STARTS_A_THREAD = """
import threading, time
named = threading.Event()
def live():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as stream:
        stream.write(NAME)
    named.set()
    time.sleep(600)
threading.Thread(target=live, daemon=True).start()
named.wait()
"""


def with_numpy(folder: Path, source: str) -> Warden:
    """One of an environment that has nothing but this for numpy."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    (packages / "numpy.py").write_text(source)
    warden = Warden(folder)
    warden.python = str(folder / "env" / "bin" / "python")
    return warden


def test_a_thread_that_no_fork_misses_keeps_no_parent_from_forking(tmp_path: Path) -> None:
    warden = with_numpy(tmp_path, f"NAME = 'jemalloc_bg_thd'\n{STARTS_A_THREAD}")
    try:
        spec = warden.spec(["t.py"], preload=QUICK)
        warden.warm(spec)
        ended = warden.run(spec, {"t.py": "import sys; print('numpy' in sys.modules)"})
        assert (ended.forked, ended.stdout) == (True, "True\n")
    finally:
        warden.close()


def test_an_import_that_starts_threads_makes_no_parent(tmp_path: Path) -> None:
    warden = with_numpy(tmp_path, f"NAME = 'numbers'\n{STARTS_A_THREAD}")
    try:
        spec = warden.spec(["t.py"], preload=QUICK)
        warden.ask("warm", spec)
        pids = of_parents(warden)  # or none, where it was that quick
        until(lambda: not warden.ask("fits", spec) and of_parents(warden) == [])
        until(lambda: all(gone(pid) for pid in pids))
        warden.ask("warm", spec)
        assert of_parents(warden) == []  # it would only end again
    finally:
        warden.close()


@pytest.mark.parametrize("ready", [True, False])
def test_a_parent_ends_with_its_warden_and_its_jobs_go_on(tmp_path: Path, ready: bool) -> None:
    warden = Warden(tmp_path)
    spec = warden.spec(["t.py"], preload=QUICK if ready else MODULES)  # those take a while
    runs = []
    if ready:
        warden.warm(spec)
        script = "import os, time\nwhile not os.path.exists('../../go'): time.sleep(0.01)\nprint('done')"
        runs = [warden.begin(spec, {"t.py": script}, forked=True) for _ in range(2)]
    else:
        warden.ask("warm", spec)
    (pid,) = of_parents(warden)
    warden.process.kill()
    warden.process.wait()
    until(lambda: gone(pid))
    (tmp_path / "go").touch()
    for run in runs:
        assert warden.end(run).stdout == "done\n"
    warden.close()


def test_a_job_of_a_supervisor_that_is_killed_is_its_warden_s_and_says_how_it_ended(warden: Warden) -> None:
    spec = warden.spec(["t.py"], preload=QUICK)
    warden.warm(spec)
    script = "import os, sys, time\nwhile not os.path.exists('../../go'): time.sleep(0.01)\nsys.exit(3)"
    run = warden.begin(spec, {"t.py": script}, forked=True)
    job = (read_object(run.status) or {})["pid"]
    (supervisor,) = [pid for pid in warden.ask("children")[0] if job in processes.children(pid)]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: job in warden.ask("children")[0])
    (warden.folder / "go").touch()
    assert until(lambda: read_object(run.ended)) == {"pid": job, "exit_code": 3}
    until(lambda: job not in warden.ask("children")[0])
    run.status.unlink()  # there is nobody to write what became of it


def test_ps_shows_the_script_and_not_the_parent(warden: Warden) -> None:
    spec = warden.spec(["t.py", "--epochs", "3"], preload=QUICK)
    warden.warm(spec)
    script = "import os, time\nwhile not os.path.exists('../../go'): time.sleep(0.01)"
    run = warden.begin(spec, {"t.py": script}, forked=True)
    job = (read_object(run.status) or {})["pid"]
    ps = ["ps", "-ww", "-o", "args=", "-p", str(job)]
    shown = f"{sys.executable} t.py --epochs 3\n"
    until(lambda: subprocess.run(ps, capture_output=True, text=True, check=True).stdout == shown)
    (warden.folder / "go").touch()
    warden.end(run)


def test_threads_that_end_while_they_are_listed_are_none() -> None:
    """The kernel knows such a one by its folder, and then has nothing to say of it."""
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            short = threading.Thread(target=str)
            short.start()
            short.join()

    restless = [threading.Thread(target=come_and_go) for _ in range(4)]
    for each in restless:
        each.start()
    try:
        for _ in range(1000):
            assert all(parent._threads())
    finally:
        over.set()
        for each in restless:
            each.join()
