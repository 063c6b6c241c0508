"""The main job as a user does it: one command or two lines, results home, nothing left running."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from cloudrun import JobFailed, Run, process_unit
from cloudrun.core.errors import CloudrunError, UsageError
from tests.sandbox.conftest import Project, wait_for

JOBS = Path(__file__).parents[2] / "jobs"

ML = """
import json, joblib
from sklearn.linear_model import LinearRegression
model = LinearRegression().fit([[0.0], [1.0], [2.0]], [1.0, 3.0, 5.0])
joblib.dump(model, "line.joblib")
print(json.dumps({"r2": model.score([[3.0], [4.0]], [7.0, 9.0])}))
"""


def test_one_command_brings_the_digits_model_home(project: Project, nothing_left: Callable[[Project], None]) -> None:
    project.write("digits.py", (JOBS / "digits.py").read_text())
    done = project.cloudrun("submit", "digits.py", "--set", "C=0.05")
    assert done.returncode == 0, done.stderr
    assert "training on 1347 images" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr

    (run,) = project.ledger.ranking("accuracy")
    assert run.params == {"C": 0.05}
    assert run.scores["accuracy"] > 0.95
    assert run.model().predict([[0.0] * 64]).shape == (1,)
    assert run.passport is not None
    assert run.passport.python.startswith("{}.{}.".format(*sys.version_info))
    assert run.passport.packages["scikit-learn"]
    assert run.timings.total_s >= run.timings.run_s > 0
    nothing_left(project)


@pytest.mark.slow
def test_two_lines_of_python_do_the_same(project: Project, nothing_left: Callable[[Project], None]) -> None:
    project.write("ml.py", ML)
    project.write(
        "main.py", "from cloudrun import process_unit\nwith process_unit() as instance: instance.send_run('ml.py')\n"
    )
    done = project.python("main.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '{"r2": 1.0}'
    (run,) = project.ledger.ranking()
    assert run.model().predict([[10.0]])[0] == pytest.approx(21.0)
    nothing_left(project)


def test_one_unit_runs_several_scripts_and_is_provisioned_once(project: Project) -> None:
    first = project.write("first.py", "print('loss: 3')")
    second = project.write("second.py", "import sys, os, json; print(json.dumps({'loss': 2, 'n': float(sys.argv[2])}))")
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        one = unit.send_run(first)
        two = unit.send_run(second, params={"alpha": 4})
        here = unit.run("pwd")
        unit.put(first, "copied.py")
        unit.get("copied.py", project.root / "back.py")
    assert here.stdout == "/home/ubuntu\n"
    assert (project.root / "back.py").read_text() == first.read_text()
    assert one.timings.launch_s > 0
    assert two.timings.provision_s == two.timings.launch_s == 0
    assert two.scores == {"loss": 2.0, "n": 4.0}
    assert [run.run_id for run in project.ledger.ranking("loss")] == [two.run_id, one.run_id], (
        "a smaller loss is better"
    )


def test_what_a_job_makes_or_changes_comes_home_and_what_it_only_reads_does_not(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write("pyproject.toml", "")
    project.write("data/read.csv", "1")
    project.write("data/changed.csv", "1")
    script = project.write(
        "jobs/work.py",
        "import os, pathlib\n"
        "print(open('data/read.csv').read())\n"
        "open('data/changed.csv', 'a').write('2')\n"
        "pathlib.Path('out/deep').mkdir(parents=True); open('out/deep/new file.txt', 'w').write('new')\n"
        "os.symlink('/etc/passwd', 'out/link'); os.mkfifo('out/pipe'); open('out/two\\nlines', 'w')\n",
    )
    notes: list[str] = []
    with process_unit(project=project.root, observe=lambda event: notes.append(str(event))) as unit:
        monkeypatch.chdir(project.root)
        run = unit.send_run(script)
    files = {artifact.path for artifact in run.artifacts if artifact.kind == "output"}
    assert files == {"data/changed.csv", "out/deep/new file.txt"}
    assert {name for name in ("out/link", "out/pipe", r"out/two\\nlines") if name in str(notes)} >= {
        "out/link",
        "out/pipe",
    }


PARTLY = "open('partial.txt', 'w').write('so far'); print('last words', flush=True); "


@pytest.mark.parametrize(
    ("end", "reason", "words"),
    [
        ("import sys; sys.exit(3)", "exited", "code 3"),
        pytest.param("import os; os.kill(os.getpid(), 9)", "signalled", "SIGKILL", marks=pytest.mark.slow),
        pytest.param("raise ValueError('no')", "exited", "code 1", marks=pytest.mark.slow),
    ],
)
def test_a_failing_script_is_exit_code_5_and_its_logs_and_files_are_home(
    project: Project, nothing_left: Callable[[Project], None], end: str, reason: str, words: str
) -> None:
    project.write("bad.py", PARTLY + end)
    done = project.cloudrun("submit", "bad.py")
    assert done.returncode == 5, done.stderr
    assert words in done.stderr
    assert done.stderr.count("Traceback") == ("ValueError" in end), "the job's own traceback, and none of ours"
    (record,) = project.ledger.runs()
    run = project.ledger.get(record.run_id)
    assert (run.state, run.end_reason) == ("failed", reason)
    assert "last words" in run.log()
    assert run.path("partial.txt").read_text() == "so far"
    nothing_left(project)


def test_in_python_a_failing_script_raises_with_the_run(project: Project) -> None:
    script = project.write("bad.py", "import sys; sys.exit(7)")
    with (
        process_unit(project=project.root, observe=lambda event: None) as unit,
        pytest.raises(JobFailed, match="code 7") as caught,
    ):
        unit.send_run(script)
    assert caught.value.run.exit_code == 7


def test_nan_and_infinity_are_kept_and_never_win(project: Project) -> None:
    script = project.write("score.py", "import sys; print(f'accuracy: {sys.argv[2]}')")
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        runs = [unit.send_run(script, params={"x": value}) for value in ("nan", "inf", "0.5", "-inf")]
    scores = [run.scores["accuracy"] for run in runs]
    assert math.isnan(scores[0])
    assert scores[1] == math.inf
    best = project.ledger.ranking("accuracy")
    assert best[0].scores["accuracy"] == 0.5
    assert len(best) == 4


@pytest.mark.slow
def test_an_exception_in_the_block_surfaces_unchanged(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    mine = RuntimeError("mine")
    with pytest.raises(RuntimeError) as caught, process_unit(project=project.root):
        raise mine
    assert caught.value is mine
    nothing_left(project)


@pytest.mark.slow
def test_several_threads_open_units_at_once(project: Project, nothing_left: Callable[[Project], None]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    script = project.write("who.py", "import socket; print(f'n: 1'); open('host.txt', 'w').write(socket.gethostname())")

    def one(_: int) -> str:
        with process_unit(project=project.root, observe=lambda event: None) as unit:
            run = unit.send_run(script)
        return run.path("host.txt").read_text()

    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(one, range(3)))) == 3
    nothing_left(project)


def test_submitted_scripts_run_in_order_and_the_block_waits_for_them(project: Project) -> None:
    script = project.write("n.py", "import sys, time; time.sleep(0.3); print(f'n: {sys.argv[2]}')")
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        futures = [unit.submit(script, params={"i": number}) for number in range(3)]
    assert [future.result().scores["n"] for future in futures] == [0, 1, 2]


@pytest.mark.slow
def test_an_exception_in_the_block_ends_what_was_submitted(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    script = project.write("long.py", "import time; time.sleep(600)")
    futures: list[Future[Run]] = []

    def block() -> None:
        with process_unit(project=project.root) as unit:
            futures.extend([unit.submit(script), unit.submit(script)])
            wait_for(lambda: any(run.state == "running" for run in project.ledger.runs()), "the job to run")
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        block()
    running, waiting = futures
    assert waiting.cancelled()
    with pytest.raises(CloudrunError):
        running.result(timeout=0)
    assert [run.state for run in project.ledger.runs()] == ["cancelled"]
    nothing_left(project)


def test_a_kept_unit_is_listed_joined_and_ended(project: Project, nothing_left: Callable[[Project], None]) -> None:
    script = project.write("hello.py", "print('n: 1')")
    with process_unit(project=project.root, on_exit="keep", observe=lambda event: None) as unit:
        unit.send_run(script)
    (row,) = project.ledger.units()
    assert row.instance_id in project.cloudrun("units").stdout
    assert project.json("reap")["actions"] == [], "a unit that is kept on purpose is needed"
    with process_unit(project=project.root, instance_id=row.instance_id, observe=lambda event: None) as unit:
        run = unit.send_run(script)
    assert run.timings.provision_s == 0, "its environment was still there"
    nothing_left(project)


@pytest.mark.slow
def test_a_kept_unit_is_ended_by_name(project: Project, nothing_left: Callable[[Project], None]) -> None:
    with process_unit(project=project.root, on_exit="keep", observe=lambda event: None) as unit:
        busy = project.cloudrun("reap", unit.instance_id)
    assert busy.returncode == 2, "its process still uses it"
    assert project.cloudrun("reap", "i-00000000000000000").returncode == 2
    done = project.cloudrun("reap", unit.instance_id)
    assert done.returncode == 0, done.stderr
    nothing_left(project)


def test_a_job_past_its_deadline_is_ended_and_its_files_are_home(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    project.write("long.py", "import time; open('early.txt', 'w').write('x'); time.sleep(600)")
    done = project.cloudrun("submit", "long.py", "--deadline", "30s")
    assert done.returncode == 124, done.stderr
    (record,) = project.ledger.runs()
    assert (record.state, record.end_reason) == ("failed", "deadline")
    assert [artifact.path for artifact in record.artifacts if artifact.kind == "output"] == ["early.txt"]
    nothing_left(project)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"instance_type": "m7i.lrage"}, r"m7i\.large"),
        ({"image": "ami-00000000000000000"}, "ami-00000000000000000"),
        ({"region": "mars-east-1"}, "mars-east-1"),
        ({"deadline": "soon"}, "soon"),
        ({"on_exit": "explode"}, "explode"),
        ({"provider": "azure"}, "azure"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_launched(
    project: Project, keywords: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message), process_unit(project=project.root, **keywords):  # type: ignore[arg-type]
        pass
    assert project.ledger.launches() == []


def test_errors_of_a_closed_unit_are_ours(project: Project) -> None:
    with process_unit(project=project.root) as unit:
        pass
    with pytest.raises(CloudrunError):
        unit.run("true")
