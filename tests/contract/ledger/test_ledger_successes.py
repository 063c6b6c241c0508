"""What has succeeded and is not in its orders yet is found as if it were, and reading does not put it there."""

from __future__ import annotations

import hashlib
import math
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudrun.core.clock import utc_text
from cloudrun.core.states import GridState, RunState
from cloudrun.ledger import Claim, End, Ledger, Move, successes
from cloudrun.ledger.schema import MIGRATIONS, migrate
from cloudrun.plan.filters import parse_where
from tests.contract.ledger.test_ledger_batches import an_end

CELLS = 40


def fresh(ledger: Ledger) -> int:
    with ledger._database.reading() as connection:
        return int(connection.execute("SELECT count(*) FROM fresh").fetchone()[0])


def a_grid_of_cells(ledger: Ledger, make: SimpleNamespace, grid_id: str = "g-1", cells: int = CELLS) -> list[str]:
    """All of them claimed by i-1."""
    ledger.begin_grid(make.grid(grid_id, cells=cells))
    runs = [make.run(f"{grid_id}-run-{number:03d}", number, cell_key=f"key-{number}") for number in range(cells)]
    ledger.add_cells(grid_id, enumerate(runs))
    ledger.begin_attempts([Claim(run.run_id, "i-1") for run in runs], make.noon)
    ledger.move_runs([Move(run.run_id, RunState.RUNNING) for run in runs])
    return [run.run_id for run in runs]


def ends(run_ids: list[str], *, seed: int = 0) -> list[End]:
    """Few different scores, one in ten no number, one in ten of a run that failed."""
    numbers = random.Random(seed)
    scores = [math.nan if place % 10 == 7 else numbers.randrange(5) / 5 for place in range(len(run_ids))]
    return [
        an_end(run_id, RunState.FAILED if place % 10 == 3 else RunState.SUCCEEDED, {"accuracy": score})
        for place, (run_id, score) in enumerate(zip(run_ids, scores, strict=True))
    ]


def all_that_is_told(ledger: Ledger) -> list[object]:
    """Whatever depends on what has succeeded."""
    told: list[object] = [ledger.succeeded_by_cell([f"key-{number}" for number in range(CELLS)])]
    for grid_id in (None, "g-1", "g-2"):
        told.append(ledger.ordering(grid_id, metric=None, minimize=None, sort="accuracy"))
        for minimize in (True, False):
            order = ledger.ordering(grid_id, metric="accuracy", minimize=minimize, sort=None)
            told.append(ledger.ranks(order, grid_id))
            for limit in (1, 3, 17, CELLS, None):
                best = ledger.ranking("accuracy", minimize=minimize, limit=limit, grid_id=grid_id)
                told.append([run.run_id for run in best])
                where = parse_where("accuracy>0.3 and attempts=1")
                found = ledger.results(grid_id, metric="accuracy", minimize=minimize, limit=limit, where=where)
                told.append([run.run_id for run in found])
    return told


def test_cells_that_are_not_in_order_yet_are_told_as_if_they_were(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    before = a_grid_of_cells(ledger, make, "g-2")
    ledger.finish_runs(ends(before, seed=1))
    ledger.end_grid("g-2", GridState.DONE)
    ledger.finish_runs(ends(a_grid_of_cells(ledger, make)))
    assert fresh(ledger) == 36
    told = all_that_is_told(ledger)
    ledger.end_grid("g-1", GridState.DONE)
    assert fresh(ledger) == 0
    assert all_that_is_told(ledger) == told
    assert len(told[0]) == 36  # type: ignore[arg-type]


def test_reading_writes_nothing(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    ledger.finish_runs(ends(a_grid_of_cells(ledger, make)))
    ledger.begin_grid(make.grid("g-2"))
    path = ledger.home / "ledger.sqlite"
    ledger.close()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    all_that_is_told(ledger)
    ledger.close()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_a_run_of_its_own_is_in_order_at_once_and_many_cells_are_in_time(
    ledger: Ledger, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(successes, "FRESH_MOST", 30)
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run("run-alone"), {"accuracy": 0.5})
    assert fresh(ledger) == 0
    run_ids = a_grid_of_cells(ledger, make)
    waiting = []
    for end in ends(run_ids):
        ledger.finish_runs([end])
        waiting.append(fresh(ledger))
    assert max(waiting) == 29
    assert waiting[-1] == 6
    make.finished(ledger, make.run("run-alone-too"), {"accuracy": 0.5})
    assert fresh(ledger) == 0


def test_a_cell_that_another_grid_takes_over_meanwhile_is_ranked_there_once(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    make.launched(ledger, "i-1")
    run_ids = a_grid_of_cells(ledger, make)
    ledger.begin_grid(make.grid("g-2", cells=CELLS))
    ledger.finish_runs(ends(run_ids))
    ledger.add_cells("g-2", [(number, run_id) for number, run_id in enumerate(run_ids[:20])])
    ledger.end_grid("g-1", GridState.DONE)
    ranked = [run.run_id for run in ledger.ranking("accuracy", grid_id="g-2")]
    assert sorted(ranked) == [run_id for place, run_id in enumerate(run_ids[:20]) if place % 10 != 3]


def test_a_run_that_is_removed_is_in_no_order_any_more(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    done = make.run("run-alone", cell_key="key-0")
    make.finished(ledger, done, {"accuracy": 0.5})
    run_ids = a_grid_of_cells(ledger, make)
    ledger.finish_runs(ends(run_ids))
    ledger.remove_runs(["run-alone"])
    assert ledger.succeeded_by_cell(["key-0"]) == {"key-0": run_ids[0]}
    ledger.end_grid("g-1", GridState.DONE)
    ledger.remove_grid("g-1")
    with ledger._database.reading() as connection:
        for table in ("fresh", "done", "ranked", "runs"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == 0


def test_the_primary_metric_is_that_of_the_newest_run_that_has_it_and_is_there(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    make.launched(ledger, "i-1")
    for minute, (run_id, script, metric, minimize) in enumerate(
        [("run-1", "a.py", "old", True), ("run-2", "a.py", "loss", True), ("run-3", "b.py", "loss", False)], 1
    ):
        make.finished(ledger, make.run(run_id, minute, script=script), {metric: 1.0}, minimize=minimize)
    make.finished(ledger, make.run("run-4", 9, script="b.py", metric="never there"), {"loss": 1.0})
    make.finished(ledger, make.run("run-5", 0, script="b.py"), {"loss": 1.0}, minimize=True)  # older, and ends later
    assert (ledger.primary_metric(), ledger.direction("loss")) == ("loss", False)
    assert (ledger.primary_metric(script="a.py"), ledger.direction("loss", script="a.py")) == ("loss", True)
    ledger.remove_runs(["run-2", "run-3"])
    assert (ledger.primary_metric(), ledger.direction("loss")) == ("old", True)
    assert (ledger.primary_metric(script="b.py"), ledger.direction("loss", script="b.py")) == ("loss", True)
    ledger.remove_runs(["run-1", "run-4", "run-5"])
    assert ledger.primary_metric() is None
    assert ledger.direction("accuracy") is False


def test_a_ledger_of_an_older_cloudrun_still_knows_which_cells_are_done(tmp_path: Path, make: SimpleNamespace) -> None:
    home = tmp_path / ".cloudrun"
    home.mkdir(mode=0o700)
    with closing(sqlite3.connect(home / "ledger.sqlite", isolation_level=None)) as connection:
        migrate(connection, tuple(migration for migration in MIGRATIONS if migration.name < "0009"))
        for run_id, state in (("run-1", "succeeded"), ("run-2", "succeeded"), ("run-3", "failed")):
            connection.execute(
                """INSERT INTO runs (run_id, name, script, state, created_at, arguments, params, metric, minimize,
                code_digest, data_digest, environment_digest, timings, detail, attempts, ended_at, cell_key)
                VALUES (?, 'old', 'old.py', ?, ?, '[]', '{}', 'error', ?, '', '', '', '{}', '', 1, ?, 'key')""",
                (run_id, state, utc_text(make.noon), run_id == "run-1", utc_text(make.noon)),
            )
            connection.execute("INSERT INTO scores VALUES (?, 'error', 0, 0.5, NULL)", [run_id])
    with closing(Ledger(tmp_path)) as ledger:
        assert ledger.succeeded_by_cell(["key", "other"]) == {"key": "run-2"}
        assert (ledger.primary_metric(), ledger.direction("error")) == ("error", False)
