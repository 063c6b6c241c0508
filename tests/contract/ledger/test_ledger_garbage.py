"""Freeing what nothing refers to, beside processes that bring files home: no result is ever lost over it."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudrun import garbage
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import LedgerError, NotFound, UsageError
from cloudrun.core.records import FileEntry
from cloudrun.core.states import EndReason, GridState, RunState
from cloudrun.ledger import Ledger
from cloudrun.plan.endings import CANCELLED, Ending
from cloudrun.plan.fingerprint import code_digest
from cloudrun.runs.homecoming import end_queued
from cloudrun.runs.rescue import end_lost
from cloudrun.units.clients import this_client

SOON = time.time() + 1e6  # everything was touched before


def freed(ledger: Ledger) -> int:
    """All that can go, however new it is (code: of two minutes ago). Returns how many bytes that were."""
    for sha256, status in ledger.artifacts.digests():
        if status.st_mtime > time.time() - 120:
            os.utime(ledger.artifacts.path(sha256), (time.time() - 120, time.time() - 120))
    return garbage.free(ledger, garbage.find(ledger, alone_s=-1e6), alone_s=-1e6).size


def kept(ledger: Ledger) -> list[str]:
    return sorted(sha256 for sha256, _ in ledger.artifacts.digests())


@pytest.fixture
def project(ledger: Ledger, make: SimpleNamespace) -> Ledger:
    make.launched(ledger, "i-1")
    return ledger


def test_files_stay_while_a_run_has_them_and_go_with_the_last_one(project: Ledger, make: SimpleNamespace) -> None:
    one = make.finished(project, make.run("run-1"), files={"a": b"shared", "b": b"alone"})
    two = make.finished(project, make.run("run-2"), files={"a": b"shared"}, logs={"stdout.log": b"said"})
    assert freed(project) == 0
    project.remove_runs([one.run_id])
    with pytest.raises(NotFound):
        project.run(one.run_id)
    assert freed(project) == len(b"alone")
    assert kept(project) == sorted(artifact.sha256 for artifact in two.artifacts)
    project.remove_runs([two.run_id])
    assert freed(project) == len(b"shared") + len(b"said")
    assert kept(project) == []
    assert project.ranking() == []


def test_what_an_interrupted_attempt_has_saved_is_referred_to(project: Ledger, make: SimpleNamespace) -> None:
    saved = make.stored(project, "checkpoint", b"step 3")
    make.pulling(project, make.run("run-1"))
    project.requeue_run("run-1", reason=EndReason.INTERRUPTED, detail="", outputs=[saved])
    assert freed(project) == 0
    assert project.artifacts.has(saved.sha256)


def test_what_is_new_stays_however_unused_it_is(project: Ledger, make: SimpleNamespace) -> None:
    loose = make.stored(project, "loose", b"on its way home")
    assert list(garbage.find(project)) == []
    assert project.free_artifacts([loose.sha256], before=time.time() - 3600) == 0
    hours_ago = time.time() - 2 * 3600
    os.utime(project.artifacts.path(loose.sha256), (hours_ago, hours_ago))
    [found] = garbage.find(project)
    assert (found.kind, found.name, found.size) == ("artifact", loose.sha256, loose.size)
    assert project.artifacts.touch(loose.sha256), "somebody is about to refer to it"
    assert garbage.free(project, [found]).size == 0
    assert project.artifacts.has(loose.sha256)


def test_code_of_a_run_whose_machine_is_on_its_way_stays_whatever_is_asked_for(project: Ledger) -> None:
    """It is in no row before the machine is there, minutes later."""
    files = {"a.py": b"print(1)"}
    project.keep_code(code_digest(files), files)
    client = this_client(SystemClock().now())
    project.register_client(client)
    assert freed(project) == 0
    assert project.code(code_digest(files)) == {"a.py": "print(1)"}
    project.dismiss_client(client.client_id)
    assert freed(project) == 8


def test_while_somebody_brings_files_home_nothing_is_freed(project: Ledger, make: SimpleNamespace) -> None:
    loose = make.stored(project, "loose", b"x")
    with Ledger(project.project).artifacts.in_use():
        result = garbage.free(project, garbage.find(project, alone_s=-1e6), alone_s=-1e6)
    assert result.size == 0
    assert "brought home" in next(iter(result.problems))
    assert project.artifacts.has(loose.sha256)
    assert freed(project) == loose.size


def test_who_keeps_files_waits_for_who_frees_some_and_not_for_ever(
    project: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudrun.ledger.gate.PATIENCE_S", 0.1)
    store = Ledger(project.project).artifacts
    with store.alone(), pytest.raises(LedgerError, match="frees files"), project.artifacts.in_use():
        pass
    with project.artifacts.in_use(), project.artifacts.in_use():  # a block inside another one is the same
        pass
    with store.alone():
        pass


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_neither_holds_nor_lets_go_of_what_its_parent_holds(project: Ledger) -> None:
    with project.artifacts.in_use():
        child = os.fork()
        if child == 0:
            status = 1
            with suppress(BaseException):
                with project.artifacts.in_use():
                    pass
                status = 0
            os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(LedgerError, match="brought home"), Ledger(project.project).artifacts.alone():
            pass
    with Ledger(project.project).artifacts.alone():
        pass


def test_code_without_a_run_goes_unless_it_was_just_kept(project: Ledger, make: SimpleNamespace) -> None:
    files = {"train.py": b"print(1)\n", "helper.py": b""}
    digest = code_digest(files)
    project.keep_code(digest, files)
    assert [each.kind for each in garbage.find(project)] == []
    run = make.finished(project, make.run("run-1", code_digest=digest))
    assert freed(project) == 0
    assert project.code(digest) == {path: content.decode() for path, content in files.items()}
    project.remove_runs([run.run_id])
    assert freed(project) == sum(map(len, files.values()))
    assert (project.code(digest), kept(project), project.has_code(digest)) == ({}, [], False)
    project.keep_code(digest, files)
    assert project.has_code(digest)


def test_a_part_that_somebody_writes_stays(project: Ledger) -> None:
    content = os.urandom(3 << 20)
    entry = FileEntry("large", len(content), hashlib.sha256(content).hexdigest())
    with suppress(ConnectionError), project.artifacts.writer(entry) as sink:
        sink.write(content[: 2 << 20])
        raise ConnectionError
    [(part, _)] = project.artifacts.parts()
    assert list(garbage.find(project, alone_s=0)) == [], "it can be gone on with for a week"
    with project.artifacts.writer(entry) as sink:
        assert project.artifacts.free_part(part, before=SOON) == 0
        sink.write(content[2 << 20 :])
    assert project.artifacts.has(entry.sha256)


def test_an_old_part_goes(project: Ledger) -> None:
    (project.artifacts.root / "ab").mkdir(parents=True)
    part = project.artifacts.root / "ab" / ".0123.part"
    part.write_bytes(b"half")
    month_ago = time.time() - 30 * 86400
    os.utime(part, (month_ago, month_ago))
    assert garbage.free(project, garbage.find(project)).size == 4
    assert not part.exists()


@pytest.mark.parametrize("state", [state for state in RunState if state not in (
    RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.LOST)])  # fmt: skip
def test_a_run_that_is_not_over_is_never_removed(project: Ledger, make: SimpleNamespace, state: RunState) -> None:
    over = make.finished(project, make.run("run-0"))
    project.add_run(make.run("run-1"))
    path = [RunState.SHIPPING, RunState.RUNNING, RunState.PULLING]
    if state is not RunState.QUEUED:
        project.begin_attempt("run-1", "i-1", make.noon)
        for each in [RunState.RUNNING, state] if state is RunState.PULL_PENDING else path[1 : path.index(state) + 1]:
            project.move_run("run-1", each)
    with pytest.raises(UsageError, match=f"run-1 is {state}"):
        project.remove_runs([over.run_id, "run-1"])
    assert project.run(over.run_id) == over, "all of them or none"


def test_a_cell_of_a_grid_that_goes_on_stays_and_a_grid_goes_with_its_own_cells(
    project: Ledger, make: SimpleNamespace
) -> None:
    project.begin_grid(make.grid("g-1", cells=2))
    for name in ("run-1", "run-2"):
        make.finished(project, make.run(name, grid_id="g-1"), {"a": 1.0})
    project.add_cells("g-1", [(0, "run-1"), (1, "run-2")])
    for act in (lambda: project.remove_runs(["run-1"]), lambda: project.remove_grid("g-1")):
        with pytest.raises(UsageError, match="not over"):
            act()
    project.end_grid("g-1", GridState.DONE)
    project.begin_grid(make.grid("g-2", cells=1))
    project.add_cells("g-2", [(0, "run-2")])
    assert project.remove_grid("g-1") == (["run-1"], ["run-2"]), "the other one is a cell of g-2 too"
    assert [run.run_id for run in project.runs()] == ["run-2"]
    assert [run.run_id for run in project.ranking("a", grid_id="g-2")] == ["run-2"]
    with pytest.raises(NotFound):
        project.grid("g-1")


def test_a_grid_goes_without_the_runs_that_it_has_only_taken_over(project: Ledger, make: SimpleNamespace) -> None:
    make.finished(project, make.run("run-1", cell_key="k" * 64), {"a": 1.0})
    project.begin_grid(make.grid("g-1", cells=1))
    make.finished(project, make.run("run-2", grid_id="g-1"))
    project.add_cells("g-1", [(0, "run-2")])
    project.end_grid("g-1", GridState.DONE)
    project.begin_grid(make.grid("g-2", cells=3))
    make.finished(project, make.run("run-3", grid_id="g-2"))
    project.add_cells("g-2", [(0, project.succeeded_by_cell(["k" * 64])["k" * 64]), (1, "run-2"), (2, "run-3")])
    project.end_grid("g-2", GridState.DONE)
    assert project.remove_grid("g-2") == (["run-3"], ["run-1", "run-2"])
    assert {run.run_id for run in project.runs()} == {"run-1", "run-2"}
    assert project.remove_grid("g-1") == (["run-2"], [])


def test_a_grid_goes_with_the_failed_runs_that_others_have_taken_the_place_of(
    project: Ledger, make: SimpleNamespace
) -> None:
    project.begin_grid(make.grid("g-1", cells=2))
    make.finished(project, make.run("run-1", grid_id="g-1"), state=RunState.FAILED)
    make.finished(project, make.run("run-2", grid_id="g-1"), state=RunState.FAILED)
    project.add_cells("g-1", [(0, "run-1"), (1, "run-2")])
    project.add_cells("g-1", [(0, make.run("run-3")), (1, make.run("run-4"))])
    for name in ("run-3", "run-4"):
        end_queued(project, name, CANCELLED)
    project.end_grid("g-1", GridState.DONE)
    project.begin_grid(make.grid("g-2", cells=1))
    project.add_cells("g-2", [(0, "run-2")])
    assert project.grids_with(["run-2", "run-3"]) == ["g-2", "g-1"]
    assert project.remove_grid("g-1") == (["run-1", "run-3", "run-4"], ["run-2"])
    assert [run.run_id for run in project.runs()] == ["run-2"]


def test_code_that_was_kept_a_moment_ago_waits_for_its_submission_to_be_known(project: Ledger) -> None:
    files = {"a.py": b"print(1)"}
    project.keep_code(code_digest(files), files)
    assert list(garbage.find(project, alone_s=0)) == []
    later = garbage.waiting(project, alone_s=0)
    assert (later.count, later.size, later.clients) == (1, 8, False)
    assert 0 < later.until - time.time() <= 60


# -- two processes ---------------------------------------------------------------------------------------------------

BRINGS = """
import hashlib, random, sys, time
from pathlib import Path
from datetime import UTC, datetime
from cloudrun.core.records import Artifact, FileEntry, RunRecord, Timings
from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Ledger

# As `runs.homecoming`: what is here already is not fetched. A few contents that many runs make, and each run is removed
# soon again: so files go out of use all the time, while others come to rely on them.
ledger, name, enough = Ledger(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
rng, number, store = random.Random(name), 0, ledger.artifacts
mine = []
while not enough.exists():
    number += 1
    run_id, now = f"run-{name}-{number:06}", datetime.now(UTC)
    contents = [b"content %d" % rng.randrange(6) for _ in range(3)]
    entries = [FileEntry(f"f{at}", len(each), hashlib.sha256(each).hexdigest()) for at, each in enumerate(contents)]
    ledger.begin_run(RunRecord(run_id, "n", "t.py", RunState.QUEUED, now), "i-1", now)
    ledger.move_run(run_id, RunState.RUNNING)
    with store.in_use():
        missing = {e.sha256: (e, c) for e, c in zip(entries, contents) if not store.has(e.sha256)}
        time.sleep(rng.random() * 0.01)  # the network
        with store.batch() as open_writer:
            for entry, content in missing.values():
                with open_writer(entry) as sink:
                    sink.write(content)
        ledger.finish_run(
            run_id, RunState.SUCCEEDED, reason=EndReason.COMPLETED, exit_code=0, detail="", scores={}, metric=None,
            minimize=False, artifacts=[Artifact(e.path, e.size, e.sha256) for e in entries], passport=None,
            timings=Timings(), at=now,
        )
    mine.append(run_id)
    for sha256 in {e.sha256 for e in entries}:
        with store.open(sha256):  # there, and whole
            pass
    if len(mine) > 2:
        ledger.remove_runs([mine.pop(0)])
    time.sleep(rng.random() * 0.005)
print(number)
"""
FREES = """
import sys
from cloudrun import garbage
from cloudrun.ledger import Ledger
ledger = Ledger(sys.argv[1])
print("begun", flush=True)
while True:
    print(garbage.free(ledger, garbage.find(ledger, alone_s=-1e6), alone_s=-1e6).size, flush=True)
"""


@pytest.fixture
def enough(tmp_path: Path) -> Path:
    """Where it is, those who bring files home come to an end."""
    return tmp_path / "enough"


@pytest.fixture
def bringing(project: Ledger, enough: Path) -> Iterator[list[subprocess.Popen[str]]]:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BRINGS, str(project.project), name, str(enough)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_no_result_is_lost_to_a_process_that_frees_files_whenever_it_is_killed(
    project: Ledger, bringing: list[subprocess.Popen[str]], enough: Path
) -> None:
    rng, freed_bytes, killed, end = random.Random(7), 0, 0, time.monotonic() + 120
    while (killed < 8 or not freed_bytes) and time.monotonic() < end:
        killed += 1
        freeing = subprocess.Popen(
            [sys.executable, "-c", FREES, str(project.project)], stdout=subprocess.PIPE, text=True
        )
        assert freeing.stdout is not None
        assert freeing.stdout.readline() == "begun\n"
        time.sleep(rng.random() * 0.3)
        freeing.send_signal(signal.SIGKILL)
        rest, _ = freeing.communicate()
        freed_bytes += sum(int(line) for line in rest.split() if line.isdigit())
    enough.touch()
    for process in bringing:
        said, problems = process.communicate()
        assert process.returncode == 0, problems
        assert int(said) > 0
    assert freed_bytes > 0, "nothing was ever freed: this would prove nothing"
    for run in project.runs():
        for artifact in run.artifacts:
            with project.artifacts.open(artifact.sha256):
                pass
    freed(project)
    assert set(kept(project)) == {artifact.sha256 for run in project.runs() for artifact in run.artifacts}


def test_a_folder_of_logs_goes_when_they_are_home(project: Ledger, make: SimpleNamespace) -> None:
    make.finished(project, make.run("run-1"), logs={"stdout.log": b"x" * 10})
    make.pulling(project, make.run("run-2"))
    for name in ("run-1.1", "run-2.1", "run-gone.1"):
        (project.home / "runs" / name).mkdir(parents=True)
        (project.home / "runs" / name / "stdout.log").write_text("x" * 10)
    assert list(garbage.find(project)) == [], "just written"
    assert freed(project) == 20
    assert [folder.name for folder in (project.home / "runs").iterdir()] == ["run-2.1"]


@pytest.mark.parametrize(
    "come", [{}, {"stderr.log": b"y"}, {"attempt-2/stdout.log": b"y"}], ids=["none", "one", "another"]
)
def test_the_only_copy_of_a_log_of_a_run_that_is_over_stays(
    project: Ledger, make: SimpleNamespace, come: dict[str, bytes]
) -> None:
    make.finished(project, make.run("run-1"), logs=come)
    folder = project.home / "runs" / "run-1.1"
    folder.mkdir(parents=True)
    for name in ("stdout.log", "stderr.log"):
        (folder / name).write_text("epoch 1")
    assert freed(project) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["stderr.log", "stdout.log"]
    project.remove_runs(["run-1"])
    freed(project)
    assert not folder.exists()


def test_a_log_of_an_interrupted_attempt_is_not_the_last_ones(project: Ledger, make: SimpleNamespace) -> None:
    log = make.stored(project, "attempt-1/stdout.log", b"epoch 1", "log")
    make.pulling(project, make.run("run-1"))
    project.requeue_run("run-1", reason=EndReason.INTERRUPTED, detail="", outputs=[log])
    project.begin_attempt("run-1", "i-1", make.noon)
    end_lost(project, project.run("run-1"), Ending(RunState.LOST, EndReason.CLIENT_LOST, ""), SystemClock())
    for number in (1, 2):
        (project.home / "runs" / f"run-1.{number}").mkdir(parents=True)
        (project.home / "runs" / f"run-1.{number}" / "stdout.log").write_text("epoch 1")
    freed(project)
    assert [folder.name for folder in (project.home / "runs").iterdir()] == ["run-1.2"]
