"""What several threads write at the same time is one commit: on the disk for all of them, or each hears why not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from cloudrun.core.errors import LedgerError, UsageError
from cloudrun.core.records import RunRecord
from cloudrun.ledger import Ledger, database

WAIT_S = 120.0


def commits(ledger: Ledger) -> int:
    """The file change counter of SQLite's header, which every transaction that has written something increments."""
    with (ledger.home / "ledger.sqlite").open("rb") as file:
        return int.from_bytes(file.read(28)[24:])


def meanwhile(ledger: Ledger, first: Callable[[], object], *others: Callable[[], object]) -> list[Future[object]]:
    """Does `first` in a transaction of this thread's, while others wait to write; returns theirs when all are over."""
    with ThreadPoolExecutor(len(others)) as pool:
        try:
            with ledger.together():
                first()
                futures = [pool.submit(each) for each in others]
                give_up = time.monotonic() + WAIT_S
                while len(ledger._database._waiting) < len(others):
                    assert time.monotonic() < give_up, "they do not come"
                    time.sleep(0.001)
        except LedgerError as error:
            futures.append(Future())
            futures[-1].set_exception(error)
        else:
            futures.append(Future())
            futures[-1].set_result(None)
    return futures


def ids(ledger: Ledger) -> set[str]:
    return {run.run_id for run in ledger.runs()}


def test_what_waits_to_be_written_goes_into_the_same_commit(
    ledger: Ledger, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "GROUP_WAIT_S", WAIT_S)
    ledger.add_run(make.run("run-before"))
    before = commits(ledger)
    adding = [lambda number=number: ledger.add_run(make.run(f"run-{number}")) for number in range(6)]
    for future in meanwhile(ledger, *adding):
        future.result()
    assert commits(ledger) == before + 1
    assert ids(ledger) == {"run-before", *(f"run-{number}" for number in range(6))}


def test_one_that_is_refused_takes_back_its_own_part_only(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-there"))

    def refused() -> None:
        with ledger.together():
            ledger.add_run(make.run("run-half"))
            ledger.add_run(make.run("run-there"))

    added, not_added, first = meanwhile(
        ledger, lambda: ledger.add_run(make.run("run-1")), lambda: ledger.add_run(make.run("run-2")), refused
    )
    first.result()
    added.result()
    with pytest.raises(LedgerError, match="UNIQUE"):
        not_added.result()
    assert ids(ledger) == {"run-there", "run-1", "run-2"}


def test_a_commit_that_fails_is_told_to_all_whose_it_was(ledger: Ledger, make: SimpleNamespace) -> None:
    def broken() -> None:
        with ledger._database.writing() as connection:
            connection.execute("PRAGMA defer_foreign_keys = ON")
            connection.execute("UPDATE runs SET instance_id = 'i-of-nobody'")

    ledger.add_run(make.run("run-there"))
    futures = meanwhile(
        ledger, lambda: ledger.add_run(make.run("run-1")), lambda: ledger.add_run(make.run("run-2")), broken
    )
    errors = [future.exception() for future in futures]
    assert all(isinstance(error, LedgerError) and "FOREIGN KEY" in str(error) for error in errors)
    assert len({id(error) for error in errors}) == 3, "each has its own: they go up in different threads"
    assert ids(ledger) == {"run-there"}
    ledger.add_run(make.run("run-after"))


def test_on_a_full_disk_nobody_believes_in_what_is_not_there(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.add_run(make.run("run-0"))
    with ledger._database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 2}")
    large = make.run("run-large", params={"much": "x" * 100_000})
    small, too_much, first = meanwhile(
        ledger,
        lambda: ledger.add_run(make.run("run-1")),
        lambda: ledger.add_run(make.run("run-2")),
        lambda: ledger.add_run(large),
    )
    there = ids(ledger)
    assert isinstance(too_much.exception(), LedgerError)
    assert "run-large" not in there
    assert ("run-1" in there) == (first.exception() is None)
    assert ("run-2" in there) == (small.exception() is None)
    ledger.add_run(make.run("run-3"))


def test_a_failed_block_leaves_the_next_one_a_clean_start(ledger: Ledger, make: SimpleNamespace) -> None:
    def interrupted() -> None:
        with ledger.together():
            ledger.add_run(make.run("run-half"))
            raise KeyboardInterrupt

    stopped, _ = meanwhile(ledger, lambda: ledger.add_run(make.run("run-1")), interrupted)
    assert isinstance(stopped.exception(), KeyboardInterrupt)
    with pytest.raises(UsageError):
        ledger.add_run(make.run("run-2", params={"not": object()}))
    ledger.add_run(make.run("run-3"))
    assert ids(ledger) == {"run-1", "run-3"}


# What is done with the turn in one's hand. Python lets no signal in between a lock's release and what comes before it.
INSIDE = ("_joined", "_is_open", "_member", "commit")


class Interrupt:
    """Raised once, in whichever thread comes to the `number`th line of the ledger's database after it was `armed`."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.armed = False
        self._counting = threading.Lock()

    def around(self, act: Callable[[], object]) -> None:
        """`act`, in a thread that may be interrupted."""
        before = sys.gettrace()
        sys.settrace(self._of_frame)
        try:
            act()
        finally:
            sys.settrace(before)

    def _of_frame(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        return self._at_line if code.co_filename == database.__file__ and code.co_name in INSIDE else None

    def _at_line(self, frame: FrameType, event: str, argument: object) -> Any:
        if self.armed and event == "line":
            with self._counting:
                self.left -= 1
                is_now = self.left == 0
            if is_now:
                raise KeyboardInterrupt
        return self._at_line


def test_wherever_one_is_interrupted_the_others_hear_what_is_true(ledger: Ledger, make: SimpleNamespace) -> None:
    """At each line in turn that those come to who write together."""
    interrupted = 0
    for number in range(1, 71):
        runs = [make.run(f"run-{number}-{which}") for which in range(3)]
        interrupt = Interrupt(number)
        futures: list[Future[None]] = []

        def lead(runs: list[RunRecord] = runs, interrupt: Interrupt = interrupt, futures: list[Any] = futures) -> None:
            with ledger.together():
                ledger.add_run(runs[0])
                futures += [pool.submit(interrupt.around, partial(ledger.add_run, run)) for run in runs[1:]]
                while len(ledger._database._waiting) < 2:
                    time.sleep(0.0005)
                interrupt.armed = True

        with ThreadPoolExecutor(3) as pool:
            leading = pool.submit(interrupt.around, lead)
            errors = [leading.exception(WAIT_S)]
            errors += [each.exception(WAIT_S) for each in futures]
        there = ids(ledger)
        for run, error in zip(runs, errors, strict=True):
            if isinstance(error, KeyboardInterrupt):
                interrupted += 1  # and does not know
            else:
                assert (run.run_id in there) == (error is None), (number, errors)
                assert error is None or isinstance(error, LedgerError), (number, errors)
    assert interrupted > 40
    ledger.add_run(make.run("run-after"))
    assert "run-after" in ids(ledger)


def test_one_that_was_interrupted_while_it_waited_to_write_keeps_nobody_from_it(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    gone = threading.Thread()  # an id that is no thread's any more
    gone.start()
    gone.join()
    ledger.add_run(make.run("run-1"))
    ledger._database._waiting.add(gone.ident or 0)  # as if it had died between its wish and its turn
    done = threading.Thread(target=ledger.add_run, args=(make.run("run-2"),), daemon=True)
    done.start()
    done.join(WAIT_S)
    assert not done.is_alive()
    assert ids(Ledger(ledger.project)) == {"run-1", "run-2"}, "seen by another connection: on the disk"


def test_whoever_reads_sees_what_is_on_the_disk(ledger: Ledger, make: SimpleNamespace) -> None:
    """Threads that write and threads that read, all at once: what is read is what another connection reads, too."""
    other = Ledger(ledger.project)
    stop = threading.Event()
    told: list[str] = []

    def write(thread: int) -> None:
        for number in range(25):
            ledger.add_run(make.run(f"run-{thread}-{number}"))
            told.append(f"run-{thread}-{number}")

    def read() -> None:
        while not stop.is_set():
            known = set(told)
            seen = ids(ledger)
            assert known <= seen <= ids(other)

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for writer in [pool.submit(write, thread) for thread in range(4)]:
                writer.result(WAIT_S)
        finally:
            stop.set()
        for reader in readers:
            reader.result(WAIT_S)
    other.close()
    assert len(told) == 100


def test_two_ledgers_in_one_block_do_not_let_others_in(ledger: Ledger, make: SimpleNamespace, tmp_path_factory) -> None:  # type: ignore[no-untyped-def]
    second = Ledger(tmp_path_factory.mktemp("second"))

    def into_both() -> None:
        ledger.add_run(make.run("run-1"))
        second.add_run(make.run("run-1"))

    with ThreadPoolExecutor(1) as pool:
        with ledger.together():
            later = pool.submit(second.add_run, make.run("run-2"))
            give_up = time.monotonic() + WAIT_S
            while not second._database._waiting:
                assert time.monotonic() < give_up
                time.sleep(0.001)
            into_both()
            assert not later.done(), "the turn is this thread's as long as its block"
        later.result(WAIT_S)
    assert (ids(ledger), ids(second)) == ({"run-1"}, {"run-1", "run-2"})
    second.close()


def test_another_ledger_of_the_same_file_does_not_wait_for_a_group_that_waits_for_it(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    second = Ledger(ledger.project)
    ledger.add_run(make.run("run-0"))
    ids(second)
    ledger._database._waiting.add(-1)  # it lets somebody in who does not come: its group stays open for a while
    with ThreadPoolExecutor(1) as pool:
        with ledger.together():
            ledger.add_run(make.run("run-1"))
            later = pool.submit(second.add_run, make.run("run-2"))
            give_up = time.monotonic() + WAIT_S
            while not second._database._waiting:
                assert time.monotonic() < give_up
                time.sleep(0.001)
        later.result(WAIT_S)
    assert ids(ledger) == {"run-0", "run-1", "run-2"}
    second.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_threads_write_while_others_fork(ledger: Ledger) -> None:
    script = f"""
import os, sys, threading
from datetime import UTC, datetime
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
ledger = Ledger({str(ledger.project)!r})

def write(thread):
    for number in range(30):
        run = RunRecord(f"run-{{thread}}-{{number}}", "a", "a.py", RunState.QUEUED, datetime(2026, 1, 1, tzinfo=UTC))
        ledger.add_run(run)

threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
children = []
for _ in range(5):
    child = os.fork()
    if not child:
        ledger.ledger_id
        sys.exit(0)
    children.append(child)
for thread in threads:
    thread.join()
print({{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children}}, len(ledger.runs()))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script],  # a fork beside threads, on purpose
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert (done.stdout, done.stderr) == ("{0} 90\n", "")
    with ledger._database.reading() as connection:
        assert [row[0] for row in connection.execute("PRAGMA integrity_check")] == ["ok"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("block", ["ledger.together()", "ledger._database.writing()", "ledger._database.reading()"])
@pytest.mark.parametrize("leaves", ["pass", "raise ValueError"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_child_that_is_forked_in_a_block_leaves_it_to_its_parent(ledger: Ledger, block: str, leaves: str) -> None:
    """With its parent's connection it would end the parent's transaction, in the parent's file."""
    script = f"""
import os, sys
from contextlib import suppress
from datetime import UTC, datetime
from cloudrun.core.errors import LedgerError
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
ledger = Ledger({str(ledger.project)!r})

def add(name):
    ledger.add_run(RunRecord(name, "a", "a.py", RunState.QUEUED, datetime(2026, 1, 1, tzinfo=UTC)))

add("before")
child = None
reader, writer = os.pipe()
with suppress(ValueError), ledger.together():
    if "reading" not in {block!r}:
        add("half")
    with {block}:
        child = os.fork()
        if not child:
            {leaves}
        else:
            os.read(reader, 1)  # until it has left
if not child:
    try:
        add("of the child")
    except LedgerError as error:
        print(error.next_step, flush=True)
    os.write(writer, b".")
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sorted(run.run_id for run in ledger.runs()))
add("after")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_S)
    there = ["before"] + ["half"] * ("reading" not in block)
    assert (done.stdout, done.stderr) == (f"fork before the block, or after it\n0 {there}\n", "")
