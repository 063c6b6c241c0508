"""The ledger under kill -9, beside other processes and threads, after a fork, moved, copied, newer, damaged or full."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudrun.core.errors import CloudrunError, LedgerError
from cloudrun.core.states import RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.ledger.schema import MIGRATIONS, Migration, migrate

WRITE_RUNS = """
import sys
from datetime import UTC, datetime
from cloudrun.core.records import Artifact, RunRecord, Timings
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger

project, prefix, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
now = datetime(2026, 3, 1, tzinfo=UTC)
ledger = Ledger(project)
for number in range(count):
    run_id = f"run-{prefix}-{number}"
    ledger.add_run(RunRecord(run_id, "job", "job.py", RunState.QUEUED, now))
    ledger.begin_attempt(run_id, "i-1", now)
    ledger.move_run(run_id, RunState.RUNNING)
    ledger.move_run(run_id, RunState.PULLING)
    scores = {f"score-{place}": float(place) for place in range(20)}
    ledger.finish_run(
        run_id, RunState.SUCCEEDED, reason=None, exit_code=0, detail="", scores=scores, metric="score-0",
        minimize=False, artifacts=[], passport=None, timings=Timings(), at=now,
    )
    print(run_id, flush=True)
"""


def writer(ledger: Ledger, prefix: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITE_RUNS, str(ledger.project), prefix, str(count)], stdout=subprocess.PIPE, text=True
    )


def check_consistent(ledger: Ledger) -> None:
    """What must hold between tables, whatever happened."""
    with ledger._database.reading() as connection:
        assert [row[0] for row in connection.execute("PRAGMA integrity_check")] == ["ok"]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    for run in ledger.runs():
        attempts = ledger.attempts(run.run_id)
        assert [attempt.number for attempt in attempts] == list(range(1, run.attempts + 1))
        over = run.state in (RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.LOST)
        assert (run.ended_at is not None) == over
        assert len(run.scores) == (20 if run.state is RunState.SUCCEEDED else 0)
        unfinished = [attempt for attempt in attempts if attempt.ended_at is None]
        assert len(unfinished) == (0 if over or run.state is RunState.QUEUED else 1)


# -- processes, threads, forks


@pytest.mark.parametrize("after_runs", [0, 1, 3])
def test_kill_9_leaves_whole_transactions_only(ledger: Ledger, make: SimpleNamespace, after_runs: int) -> None:
    make.launched(ledger, "i-1")
    with writer(ledger, "killed", 10_000) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(after_runs)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.read().split()
    check_consistent(ledger)
    for run_id in told:
        assert ledger.run(run_id).state is RunState.SUCCEEDED, "what it said was done is done"
    ledger.add_run(make.run("run-after"))


def test_processes_write_at_once_and_nothing_is_lost(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    processes = [writer(ledger, str(number), 15) for number in range(3)]
    for process in processes:
        process.communicate(timeout=120)
    assert [process.returncode for process in processes] == [0, 0, 0]
    check_consistent(ledger)
    assert len(ledger.ranking("score-3")) == 45


def test_processes_that_make_the_ledger_at_once_get_the_same_one(tmp_path: Path) -> None:
    tell = "import sys; from cloudrun.ledger import Ledger; print(Ledger(sys.argv[1]).ledger_id)"
    processes = [
        subprocess.Popen([sys.executable, "-c", tell, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    told = {process.communicate(timeout=120)[0] for process in processes}
    assert told == {Ledger(tmp_path).ledger_id + "\n"}


def test_threads_share_one_ledger_and_only_one_claims_a_run(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    for number in range(10):
        ledger.add_run(make.run(f"run-{number}"))

    def claim(number: int) -> int:
        try:
            ledger.begin_attempt(f"run-{number % 10}", "i-1", make.noon)
        except LedgerError:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(claim, range(80))) == 10
    check_consistent(ledger)


def add_runs(ledger: Ledger, runs: list[object]) -> None:
    for run in runs:
        ledger.add_run(run)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_forked_child_and_its_parent_go_on_writing(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-before"))
    fork = multiprocessing.get_context("fork")
    children = [
        fork.Process(target=add_runs, args=(ledger, [make.run(f"run-{child}-{number}") for number in range(20)]))
        for child in range(2)
    ]
    for child in children:
        child.start()
    add_runs(ledger, [make.run(f"run-parent-{number}") for number in range(20)])
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    assert len(ledger.runs()) == 61
    check_consistent(ledger)


def test_a_fork_waits_for_other_threads_transactions(ledger: Ledger, make: SimpleNamespace) -> None:
    """A child that ends in the ordinary way must not undo what its parent was writing."""
    leave_at_once = f"""
import os, sys, threading
from cloudrun.ledger import Ledger
ledger = Ledger({str(ledger.project)!r})
inside, forked = threading.Event(), threading.Event()

def write():
    with ledger._database.writing() as connection:
        connection.execute("INSERT INTO clients VALUES ('slow', '', '', 1, '', '')")
        inside.set()
        forked.wait(1)  # the fork has to wait for this thread, and not the other way round

thread = threading.Thread(target=write)
thread.start()
inside.wait()
child = os.fork()
if not child:
    ledger.ledger_id
    sys.exit(7)
forked.set()
thread.join()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", leave_at_once],  # a fork beside threads, on purpose
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("7\n", "")
    with ledger._database.reading() as connection:
        assert connection.execute("SELECT count(*) FROM clients").fetchone()[0] == 1


def test_an_interrupt_in_a_transaction_undoes_it_and_the_ledger_goes_on(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-1"))
    with pytest.raises(KeyboardInterrupt), ledger._database.writing() as connection:  # noqa: PT012
        connection.execute("DELETE FROM runs")
        raise KeyboardInterrupt
    ledger.add_run(make.run("run-2"))
    assert len(ledger.runs()) == 2


def test_a_forgotten_ledger_closes_its_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.runs()
    ledger.close()
    ledger.close()
    assert ledger.runs() == []
    home = ledger.home
    assert held_in(home)
    del ledger
    gc.collect()
    assert not held_in(home)


def held_in(folder: Path) -> list[Path]:
    """The files of a folder that this process has open."""
    held = set()
    for descriptor in Path("/proc/self/fd" if sys.platform == "linux" else "/dev/fd").iterdir():
        with contextlib.suppress(OSError):  # another thread's, which is closed by now
            found = os.fstat(int(descriptor.name))
            held.add((found.st_dev, found.st_ino))
    return [path for path in folder.rglob("*") if (path.stat().st_dev, path.stat().st_ino) in held]


# -- schemas and damage


def test_a_newer_ledger_says_upgrade(ledger: Ledger) -> None:
    with ledger._database.writing() as connection:
        connection.execute("INSERT INTO migrations VALUES ('0099 from the future', '')")
    ledger.close()
    with pytest.raises(LedgerError, match=r"newer cloudrun.*0099 from the future") as caught:
        ledger.runs()
    assert "upgrade" in caught.value.next_step


def test_a_migration_happens_once_and_wholly_or_not_at_all(tmp_path: Path) -> None:
    good = Migration("9002 good", ("CREATE TABLE more (x)",))
    bad = Migration("9003 bad", ("CREATE TABLE half (x)", "CREATE TABLE more (x)"))
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            migrate(connection, (*MIGRATIONS, good, bad))
        migrate(connection, (*MIGRATIONS, good))
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        applied = [row[0] for row in connection.execute("SELECT name FROM migrations ORDER BY name")]
    assert "more" in tables
    assert "half" not in tables
    assert applied == [*(migration.name for migration in MIGRATIONS), "9002 good"]


def test_what_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / ".cloudrun").mkdir()
    (tmp_path / ".cloudrun" / "ledger.sqlite").write_text("this is a text file, and not a short one\n" * 100)
    with pytest.raises(LedgerError, match="not a database") as caught:
        Ledger(tmp_path).runs()
    assert "move" in caught.value.next_step


def test_a_file_in_the_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / ".cloudrun").touch()
    with pytest.raises(LedgerError, match="cannot be made"):
        Ledger(tmp_path).runs()


def test_a_full_disk_is_said_and_undoes_the_transaction(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-0"))
    with ledger._database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(LedgerError, match="full") as caught:
        ledger.add_run(make.run("run-1", params={"much": "x" * 100_000}))
    assert "free some space" in caught.value.next_step
    ledger.add_run(make.run("run-2"))
    assert len(ledger.runs()) == 2


def test_a_ledger_deleted_while_open_loses_nothing_silently(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-0"))
    shutil.rmtree(ledger.home)
    with pytest.raises(LedgerError) as caught:
        ledger.add_run(make.run("run-1"))
    assert caught.value.next_step


def test_another_process_that_hangs_is_waited_for_and_then_said(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-0"))
    with ledger._database.reading() as connection:
        connection.execute("PRAGMA busy_timeout = 1")  # milliseconds; a test need not wait as long as a user
    with closing(sqlite3.connect(ledger.home / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked") as caught:
            ledger.add_run(make.run("run-1"))
    assert "another process" in caught.value.next_step
    ledger.add_run(make.run("run-1"))


def test_every_error_of_sqlite_says_what_to_do(ledger: Ledger) -> None:
    for statement in ("SELECT * FROM nothing", "INSERT INTO scores VALUES ('run', 'x', 0, NULL, NULL)"):
        with pytest.raises(CloudrunError) as caught, ledger._database.writing() as connection:
            connection.execute(statement)
        assert isinstance(caught.value.__cause__, sqlite3.Error)
        assert caught.value.next_step


def test_the_database_itself_refuses_a_second_open_attempt(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    make.pulling(ledger, make.run())
    with pytest.raises(LedgerError, match="UNIQUE"), ledger._database.writing() as connection:
        connection.execute(
            """INSERT INTO attempts (run_id, number, instance_id, state, started_at, detail)
            SELECT run_id, 2, instance_id, state, started_at, '' FROM attempts"""
        )


def test_the_request_in_the_ledger_is_what_is_asked_again(ledger: Ledger, make: SimpleNamespace) -> None:
    """Another client resolves a launch with the very parameters of the first one."""
    launch = make.launch()
    launch = replace(launch, request=replace(launch.request, user_data="\x00\u2028'\"\\ ü 🚀 \t\n"))
    ledger.intend(launch)
    ledger.close()
    assert Ledger(ledger.project).launch(launch.launch_id).request == launch.request
    assert UnitState.TERMINATED not in {unit.state for unit in ledger.units()}
