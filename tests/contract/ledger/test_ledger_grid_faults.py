"""A grid's lease and cells under rival processes, kill -9, a full disk, a copy, and a ledger of an older cloudrun."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudrun.core.clock import utc_text
from cloudrun.core.errors import LedgerError
from cloudrun.core.states import GridState, RunState
from cloudrun.ledger import Ledger
from cloudrun.ledger.schema import MIGRATIONS, migrate
from tests.contract.ledger.test_ledger_faults import check_consistent

FIGHT = """
import sys
from cloudrun.ledger import Ledger

project, me = sys.argv[1:]
ledger = Ledger(project)
won = 0
while True:
    grid = ledger.grid("g-1")
    if grid.cells <= ledger.next_cell("g-1"):
        break
    if grid.client_id == "" and ledger.take_grid("g-1", me, of=""):
        with ledger.together():
            ledger.guard_grid("g-1", me)
            number = ledger.next_cell("g-1")
            if number < grid.cells:
                ledger.add_cells("g-1", [(number, f"run-{number}")])
                won += 1
        assert ledger.take_grid("g-1", "", of=me), "nobody takes what is held"
print(won)
"""

ADD_CELLS = """
import sys
from datetime import UTC, datetime
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger

ledger, now = Ledger(sys.argv[1]), datetime(2026, 3, 1, tzinfo=UTC)
print("ready", flush=True)
for first in range(0, 1_000_000, 500):
    records = [
        (number, RunRecord(f"run-{number}", "cell", "job.py", RunState.QUEUED, now, params={"number": number}))
        for number in range(first, first + 500)
    ]
    ledger.add_cells("g-1", records)
    print(first + 500, flush=True)
"""


def cell_of_each_run(ledger: Ledger) -> list[tuple[str, int, str, str]]:
    with ledger._database.reading() as connection:
        return [
            tuple(row)
            for row in connection.execute(
                "SELECT runs.run_id, number, runs.state, cells.state FROM runs LEFT JOIN cells USING (run_id)"
            )
        ]


def test_two_processes_that_fight_for_a_grid_hold_it_in_turn_and_add_no_cell_twice(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    for number in range(40):
        ledger.add_run(make.run(f"run-{number}"))
    ledger.begin_grid(make.grid(cells=40, client_id=""))
    rivals = [
        subprocess.Popen([sys.executable, "-c", FIGHT, str(ledger.project), name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    told = [rival.communicate(timeout=120)[0] for rival in rivals]
    assert [rival.returncode for rival in rivals] == [0, 0]
    assert sum(map(int, told)) == 40
    assert [cell.number for cell in ledger.cells("g-1")] == list(range(40))
    assert ledger.grid("g-1").client_id == ""


@pytest.mark.parametrize("after_batches", [0, 1, 4])
def test_kill_9_while_cells_are_added_leaves_whole_batches_and_the_next_goes_on(
    ledger: Ledger, make: SimpleNamespace, after_batches: int
) -> None:
    ledger.begin_grid(make.grid(cells=1_000_000))
    with subprocess.Popen(
        [sys.executable, "-c", ADD_CELLS, str(ledger.project)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(1 + after_batches)]
        process.send_signal(signal.SIGKILL)
        told += process.stdout.readlines()
    said = int(told[-1]) if len(told) > 1 else 0
    begun = ledger.next_cell("g-1")
    assert begun % 500 == 0
    assert begun >= said, "what it said was added is there"
    assert [run.run_id for run in ledger.runs(newest_first=False, limit=1)] == (["run-0"] if begun else [])
    found = cell_of_each_run(ledger)
    assert sorted(number for _, number, _, _ in found) == list(range(begun)), "no run without its cell"
    check_consistent(ledger)
    ledger.add_cells("g-1", [(begun, make.run("run-after"))])
    assert ledger.counts("g-1")[RunState.QUEUED] == begun + 1


def test_a_full_disk_adds_no_cell_and_says_so(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.begin_grid(make.grid(cells=1000))
    ledger.add_cells("g-1", [(0, make.run("run-0"))])
    with ledger._database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    many = [(number, make.run(f"run-{number}", params={"text": "x" * 500})) for number in range(1, 500)]
    with pytest.raises(LedgerError, match="full") as caught:
        ledger.add_cells("g-1", many)
    assert "free some space" in caught.value.next_step
    with pytest.raises(LedgerError, match="full"), ledger.together():  # noqa: PT012
        ledger.add_cells("g-1", [(1, make.run("run-1"))])
        ledger.add_cells("g-1", many[1:])
    assert [cell.number for cell in ledger.cells("g-1")] == [0]
    assert len(ledger.runs()) == 1
    ledger.add_cells("g-1", [(1, make.run("run-1"))])
    check_consistent(ledger)


def test_a_full_disk_that_is_overlooked_in_a_block_does_not_pass_for_a_commit(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    ledger.add_run(make.run("run-0"))
    with ledger._database.reading() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(LedgerError), ledger.together():  # noqa: PT012
        ledger.add_run(make.run("run-1"))
        with pytest.raises(LedgerError, match="full"):
            ledger.add_run(make.run("run-2", params={"much": "x" * 100_000}))
    assert [run.run_id for run in ledger.runs()] == ["run-0"]


def test_the_database_itself_keeps_the_state_of_cells_with_their_runs(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.begin_grid(make.grid())
    ledger.add_cells("g-1", [(0, make.run("run-0")), (1, make.run("run-1"))])
    with ledger._database.writing() as connection:
        connection.execute("UPDATE runs SET state = 'lost', ended_at = '' WHERE run_id = 'run-1'")
    assert [cell.state for cell in ledger.cells("g-1")] == [RunState.QUEUED, RunState.LOST]


def test_a_copy_leaves_its_grids_to_the_original(ledger: Ledger, make: SimpleNamespace, tmp_path: Path) -> None:
    ledger.begin_grid(make.grid())
    ledger.add_cells("g-1", [(0, make.run("run-0"))])
    ledger.close()
    shutil.copytree(ledger.project, tmp_path / "copy")
    copy = Ledger(tmp_path / "copy")
    grid = copy.grid("g-1")
    assert (grid.state, grid.client_id) == (GridState.STOPPED, "")
    assert str(ledger.home) in grid.detail
    assert copy.counts("g-1")[RunState.LOST] == 1
    assert ledger.grid("g-1") == make.grid()
    copy.reopen_grid("g-1")
    copy.add_cells("g-1", [(0, make.run("run-1"))])
    copy.close()


def test_a_ledger_of_an_older_cloudrun_keeps_its_runs_and_their_ranks(tmp_path: Path, make: SimpleNamespace) -> None:
    home = tmp_path / ".cloudrun"
    home.mkdir(mode=0o700)
    with closing(sqlite3.connect(home / "ledger.sqlite", isolation_level=None)) as connection:
        migrate(connection, tuple(migration for migration in MIGRATIONS if migration.name < "0004"))
        for number, (state, score, not_finite) in enumerate(
            [("succeeded", 0.5, None), ("succeeded", 0.9, None), ("failed", 0.99, None), ("succeeded", None, "nan")]
        ):
            connection.execute(
                """INSERT INTO runs (run_id, name, script, state, created_at, arguments, params, metric, minimize,
                code_digest, data_digest, environment_digest, timings, detail, attempts, ended_at)
                VALUES (?, 'old', 'old.py', ?, ?, '[]', '{"alpha": 1}', 'accuracy', 0, '', '', '', '{}', '', 0, ?)""",
                (f"run-{number}", state, utc_text(make.noon), utc_text(make.noon)),
            )
            connection.execute(
                "INSERT INTO scores VALUES (?, 'accuracy', 0, ?, ?)", (f"run-{number}", score, not_finite)
            )
    with closing(Ledger(tmp_path)) as ledger:
        assert [run.run_id for run in ledger.ranking()] == ["run-1", "run-0", "run-3"]
        old = ledger.run("run-1")
        assert (old.grid_id, old.cell_key, old.params) == (None, "", {"alpha": 1})
        ledger.begin_grid(make.grid())
        ledger.add_cells("g-1", [(0, "run-0"), (1, "run-2")])
        assert [run.run_id for run in ledger.ranking(grid_id="g-1")] == ["run-0"]
        check_foreign_keys(ledger)


def test_attempts_of_a_ledger_that_did_not_know_what_travelled_beside_the_code_say_nothing_of_it(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    home = tmp_path / ".cloudrun"
    home.mkdir(mode=0o700)
    with closing(sqlite3.connect(home / "ledger.sqlite", isolation_level=None)) as connection:
        migrate(connection, tuple(migration for migration in MIGRATIONS if migration.name < "0005"))
        connection.execute(
            """INSERT INTO runs (run_id, name, script, state, created_at, arguments, params, metric, minimize,
            code_digest, data_digest, environment_digest, timings, detail, attempts, ended_at)
            VALUES ('run-0', 'old', 'old.py', 'succeeded', ?, '[]', '{}', NULL, 0, '', '', '', '{}', '', 1, ?)""",
            (utc_text(make.noon), utc_text(make.noon)),
        )
        connection.execute(
            "INSERT INTO attempts (run_id, number, instance_id, state, started_at, detail)"
            " VALUES ('run-0', 1, 'i-1', 'succeeded', ?, '')",
            [utc_text(make.noon)],
        )
    with closing(Ledger(tmp_path)) as ledger:
        ledger.begin_grid(make.grid())
        ledger.add_cells("g-1", [(0, "run-0")])
        assert ledger.beside_cells("g-1") == []
        assert [each.state for each in ledger.attempts("run-0")] == [RunState.SUCCEEDED]


def check_foreign_keys(ledger: Ledger) -> None:
    with ledger._database.reading() as connection:
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert [row[0] for row in connection.execute("PRAGMA integrity_check")] == ["ok"]
