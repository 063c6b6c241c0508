"""The ledger with a million runs: whether what is asked and written all the time depends on how many there are."""

from __future__ import annotations

import itertools
import json
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from cloudrun.core.clock import utc_text
from cloudrun.core.records import (
    GridRecord,
    LaunchRecord,
    LaunchRequest,
    Place,
    RunRecord,
    Timings,
    UnitRecord,
)
from cloudrun.core.states import GridState, LaunchState, RunState, UnitState
from cloudrun.ledger import Claim, End, Ledger, Move
from cloudrun.plan.filters import parse_where
from tests.bench.rounds import Cost, Noise, Spread, timed

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
SCORES = ("accuracy", "log_loss", "seconds")
ACCURACIES = 360  # how many different ones there are: most runs share theirs with thousands
_RUN = {
    "name": "train",
    "script": "jobs/train.py",
    "state": "succeeded",
    "arguments": "[]",
    "end_reason": "completed",
    "exit_code": 0,
    "ended_at": utc_text(BEGAN + timedelta(days=30)),
    "metric": "accuracy",
    "minimize": 0,
    "code_digest": "c" * 64,
    "data_digest": "d" * 64,
    "environment_digest": "e" * 32,
    "instance_id": "i-1",
    "timings": json.dumps(vars(Timings(run_s=1.5, total_s=2.5))),
    "cost_usd": 0.001,
    "detail": "",
    "attempts": 1,
    "submission": json.dumps({"root": "/home/you/project", "settings": {"deadline": "4h", "spot": True}}),
}


def costs(folder: Path, runs: int, rounds: int, noise: Noise) -> list[Cost]:
    """What each of the ledger's frequent calls takes where there are so many runs."""
    folder.mkdir()
    with closing(Ledger(folder)) as ledger:
        _fill(ledger, runs)
        made = []
        for what, target_s, work, usual in _calls(ledger, runs):
            work()  # pages that everybody reads are in the cache, as they are in a client that does this all day
            taken = []
            for _ in range(max(2, rounds * usual // 20)):
                taken.append(timed(work))
                if len(taken) % 10 == 1:
                    noise.look()
            made.append(Cost(f"{what}, {runs:,} runs", Spread.of(taken), len(taken), target_s))
        return made


Call = tuple[str, float | None, Callable[[], object], int]  # what, seconds at most, the work, its usual rounds


def _calls(ledger: Ledger, runs: int) -> Iterator[Call]:
    large, small = _sizes(runs)
    yield "top 20", 0.005, lambda: ledger.ranking("accuracy", limit=20), 50
    yield "top 20, the smallest", 0.005, lambda: ledger.ranking("log_loss", limit=20), 50
    yield f"top 20 of a grid of {large:,}", 0.005, lambda: ledger.ranking(limit=20, grid_id=_id("g", 0)), 50
    yield f"top 20 of a grid of {small:,}", 0.005, lambda: ledger.ranking(limit=20, grid_id=_id("g", 1)), 50
    yield "`results`: which metric, and 20 lines", 0.010, lambda: list(ledger.results(limit=20)), 50
    yield "the newest 20", 0.005, lambda: ledger.runs(limit=20), 50
    yield "the newest 20 of two states", 0.005, lambda: ledger.runs(limit=20, states=_ENDED), 50
    yield "by name, shared by all", 0.005, lambda: ledger.run("train"), 50
    yield "by the beginning of its id", 0.005, lambda: ledger.run(_id("r", runs // 2)[2:]), 50
    keys = [_key(number) for number in random.Random(1).sample(range(runs), 1000)]
    yield "1,000 cells by their keys", 0.020, lambda: ledger.succeeded_by_cell(keys), 20
    yield f"how far a grid of {large:,} is", None, lambda: ledger.counts(_id("g", 0)), 20

    records = [_record(number) for number in range(runs, runs + 60_000)]
    ledger.begin_grid(_grid("g-new", len(records)))
    add = _adding(ledger, iter(records))
    yield "1,000 cells added", 0.050, lambda: add(1000), 20
    yield "1,000 queued cells read", None, lambda: ledger.queued_cells("g-new"), 20
    lives = _lives(ledger, ledger.cells("g-new", limit=2000))
    for what in _STEPS:
        yield f"a cell {what}: a durable commit", 0.010, partial(lives, what), 50
    yield "100 cells from added to finished, together", None, lambda: _together(ledger, add(100)), 20
    alpha = parse_where("alpha<1 and state=succeeded")
    yield (
        f"all {small:,} of a grid by a parameter, filtered",
        None,
        lambda: sum(1 for _ in ledger.results(_id("g", 1), where=alpha, sort="alpha")),
        5,
    )
    yield "top 20 of all by score per dollar", None, lambda: list(ledger.results(sort="score_per_usd", limit=20)), 2


_STEPS = ("claimed", "begun", "finished with 3 scores")
_ENDED = [RunState.SUCCEEDED, RunState.FAILED]


def _adding(ledger: Ledger, records: Iterator[RunRecord]) -> Callable[[int], list[str]]:
    """Adds that many more cells; returns their ids."""

    def add(count: int) -> list[str]:
        batch = list(itertools.islice(records, count))
        ledger.add_cells("g-new", enumerate(batch, ledger.next_cell("g-new")))
        return [record.run_id for record in batch]

    return add


def _lives(ledger: Ledger, cells: Any) -> Callable[[str], None]:
    """One cell after the other, each step at its own call."""
    queues: dict[str, Iterator[str]] = {what: iter([cell.run_id for cell in cells]) for what in _STEPS}

    return lambda what: _step(ledger, what, next(queues[what]))


def _step(ledger: Ledger, what: str, run_id: str, instance_id: str = "i-1") -> None:
    """One of a cell's: claimed by a unit, begun there, ended well with three scores."""
    if what == "claimed":
        ledger.begin_attempt(run_id, instance_id, BEGAN)
    elif what == "begun":
        ledger.move_run(run_id, RunState.RUNNING)
    else:
        ledger.finish_runs([ended_well(run_id)])


def ended_well(run_id: str) -> End:
    """With three scores."""
    return End(
        run_id,
        RunState.SUCCEEDED,
        reason=None,
        exit_code=0,
        detail="",
        scores=dict.fromkeys(SCORES, random.random()),
        metric=SCORES[0],
        minimize=False,
        artifacts=[],
        passport=None,
        timings=Timings(),
        at=BEGAN,
    )


def _together(ledger: Ledger, run_ids: list[str]) -> None:
    with ledger.together():
        ledger.begin_attempts([Claim(run_id, "i-1") for run_id in run_ids], BEGAN)
        ledger.move_runs([Move(run_id, RunState.RUNNING) for run_id in run_ids])
        ledger.finish_runs([ended_well(run_id) for run_id in run_ids])


# -- a million rows --------------------------------------------------------------------------------------------------


def _sizes(runs: int) -> tuple[int, int]:
    """Cells of the first grid, and of each other one."""
    return runs // 10, runs // 100


def _id(kind: str, number: int) -> str:
    return f"{kind}-{number:013d}"


def _key(number: int) -> str:
    return f"{random.Random(number).getrandbits(256):064x}"


def _record(number: int) -> RunRecord:
    return RunRecord(
        run_id=_id("r", number),
        name="train",
        script="jobs/train.py",
        state=RunState.QUEUED,
        created_at=BEGAN + timedelta(seconds=number),
        params=_params(number),
        cell_key=_key(number),
        metric=SCORES[0],
    )


def _params(number: int) -> dict[str, Any]:
    return {"alpha": number % 1000 / 500, "l1_ratio": 0.15, "n_features": 1 << 20, "features": "x1,x2"}


def _grid(grid_id: str, cells: int) -> GridRecord:
    return GridRecord(grid_id, "sweep", "jobs/train.py", GridState.OPEN, BEGAN, grid_id, cells)


def _fill(ledger: Ledger, runs: int) -> None:
    """As after so many runs, nine tenths of them cells, but past the methods, which bring each of them to the disk."""
    begin_units(ledger, ["i-1"])
    large, small = _sizes(runs)
    begins = [0, *range(large, runs * 9 // 10, small)]
    grids = [(_id("g", place), first, small if place else large) for place, first in enumerate(begins)]
    for grid_id, _, cells in grids:
        ledger.begin_grid(_grid(grid_id, cells))
    owner = {first + number: grid_id for grid_id, first, cells in grids for number in range(cells)}
    with _hasty(ledger) as connection:
        random_scores = random.Random(0)
        for begin in range(0, runs, 50_000):
            numbers = range(begin, min(runs, begin + 50_000))
            _insert(connection, "runs", [_run_row(number, owner.get(number)) for number in numbers])
            scores = [
                (_id("r", number), name, position, _score(name, random_scores), None)
                for number in numbers
                for position, name in enumerate(SCORES)
            ]
            connection.executemany(
                "INSERT INTO scores (run_id, name, position, value, not_finite) VALUES (?, ?, ?, ?, ?)", scores
            )
            connection.executemany("INSERT INTO ranked VALUES ('', ?, ?, ?)", [(n, v, r) for r, n, _, v, _ in scores])
            connection.executemany("INSERT INTO done VALUES (?, ?)", sorted((_key(n), _id("r", n)) for n in numbers))
            connection.executemany(
                "INSERT INTO attempts (run_id, number, instance_id, state, started_at, ended_at, detail)"
                " VALUES (?, 1, 'i-1', 'succeeded', '', '', '')",
                [(_id("r", number),) for number in numbers],
            )
        connection.execute(
            """INSERT INTO primary_metrics SELECT script, metric, created_at, run_id, minimize FROM runs
            ORDER BY created_at DESC LIMIT 1"""
        )
        for grid_id, first, cells in grids:
            connection.executemany(
                "INSERT INTO cells VALUES (?, ?, ?, 'succeeded')",
                [(grid_id, number, _id("r", first + number)) for number in range(cells)],
            )
        connection.execute(
            """INSERT INTO ranked SELECT grid_id, name, value, run_id FROM cells JOIN scores USING (run_id)
            ORDER BY 1, 2, 3"""
        )


@contextmanager
def _hasty(ledger: Ledger) -> Iterator[sqlite3.Connection]:
    path = ledger.home / "ledger.sqlite"
    ledger.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for pragma in ("synchronous = OFF", "journal_mode = OFF", "cache_size = -400000"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("BEGIN")
        yield connection
        connection.execute("COMMIT")


def _run_row(number: int, grid_id: str | None) -> dict[str, object]:
    return {
        **_RUN,
        "run_id": _id("r", number),
        "created_at": utc_text(BEGAN + timedelta(seconds=number)),
        "params": json.dumps(_params(number)),
        "grid_id": grid_id,
        "cell_key": _key(number),
    }


def _insert(connection: sqlite3.Connection, table: str, rows: list[dict[str, object]]) -> None:
    marks = ", ".join("?" * len(rows[0]))
    statement = f"INSERT INTO {table} ({', '.join(rows[0])}) VALUES ({marks})"
    connection.executemany(statement, [tuple(row.values()) for row in rows])


def _score(name: str, numbers: random.Random) -> float:
    return numbers.randrange(ACCURACIES) / ACCURACIES if name == "accuracy" else numbers.random()


def begin_units(ledger: Ledger, instance_ids: Sequence[str]) -> None:
    """Units of one launch, ready to have attempts."""
    place = Place("sandbox", "us-east-1")
    request = LaunchRequest("t", 1, "m7i.large", "ami-1", "/dev/sda1", 20, "key", "sg-1", "", {})
    ledger.intend(
        LaunchRecord("l-1", place, LaunchState.INTENDED, request, "ubuntu", "c-1", BEGAN, "terminate", "key", BEGAN)
    )
    ledger.move_launch("l-1", LaunchState.REQUESTED)
    unit = UnitRecord(
        "i-1", "l-1", place, UnitState.READY, "m7i.large", "ubuntu", None, 22, "key", BEGAN, "terminate", "c-1", BEGAN
    )
    ledger.resolve_launch("l-1", [replace(unit, instance_id=name) for name in instance_ids])


def queue_cells(ledger: Ledger, grid_id: str, cells: int) -> list[str]:
    """A grid of so many waiting cells; returns their runs' ids by number."""
    ledger.begin_grid(_grid(grid_id, cells))
    for first in range(0, cells, 1000):
        batch = range(first, min(first + 1000, cells))
        ledger.add_cells(grid_id, [(number, _record(number)) for number in batch])
    return [_id("r", number) for number in range(cells)]
