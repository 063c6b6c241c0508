"""Steps of many runs at once do what they do one after the other, and nothing where one of them is refused."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudrun.core.errors import LedgerError, NotFound
from cloudrun.core.records import Timings
from cloudrun.core.states import EndReason, RunState, UnitState, is_terminal
from cloudrun.ledger import Claim, End, Ledger, Move
from tests.contract.ledger.conftest import NOON, a_grid, a_run, launched

CELLS = 4
RUNS = st.integers(0, CELLS).map(lambda number: f"run-{number}")  # the last is not there
ANY_CLAIM = st.builds(Claim, RUNS, st.sampled_from(["i-1", "i-2", "i-ended", "i-unknown"]), st.just("s3://b/"))
REASONS = st.none() | st.sampled_from([EndReason.EXITED, EndReason.UNIT_LOST])
ANY_MOVE = st.builds(Move, RUNS, st.sampled_from(RunState), REASONS, st.none() | st.integers(0, 9), st.just("why"))
SCORES = st.dictionaries(st.sampled_from(["a", "b"]), st.floats(), max_size=2)


def an_end(run_id: str, state: RunState, scores: dict[str, float]) -> End:
    metric = next(iter(scores), None)
    return End(run_id, state, EndReason.COMPLETED, 0, "", scores, metric, False, (), None, Timings(run_s=1.0), NOON)


ANY_END = st.builds(an_end, RUNS, st.just(RunState.SUCCEEDED) | st.sampled_from(RunState), SCORES)
Batch = Sequence[Claim] | Sequence[Move] | Sequence[End]
BATCHES = st.lists(
    st.one_of(*(st.lists(each, min_size=1, max_size=4) for each in (ANY_CLAIM, ANY_MOVE, ANY_END))), max_size=8
)
# Chance alone seldom gets a run to its end.
WAYS = st.sampled_from(
    [
        [Claim("run-0", "i-1"), Claim("run-1", "i-2")],
        [Move("run-0", RunState.RUNNING), Move("run-1", RunState.RUNNING)],
        [Move("run-0", RunState.RUNNING), Move("run-0", RunState.PULLING)],
        [Move("run-1", RunState.QUEUED, EndReason.UNIT_LOST)],
        [an_end("run-0", RunState.SUCCEEDED, {"a": 1.0}), an_end("run-1", RunState.FAILED, {"a": float("nan")})],
    ]
)


@contextmanager
def a_ledger() -> Iterator[Ledger]:
    with tempfile.TemporaryDirectory() as folder, closing(Ledger(Path(folder))) as ledger:
        with ledger.together():
            launched(ledger, "i-1", "i-2", "i-ended")
            ledger.move_unit("i-ended", UnitState.TERMINATING)
            ledger.begin_grid(a_grid())
            ledger.add_cells("g-1", [(number, a_run(f"run-{number}", number)) for number in range(CELLS)])
        yield ledger


def at_once(ledger: Ledger, batch: Batch) -> None:
    kind = type(batch[0])
    act: dict[type, Callable[[], object]] = {
        Claim: lambda: ledger.begin_attempts(batch, NOON),  # type: ignore[arg-type]
        Move: lambda: ledger.move_runs(batch),  # type: ignore[arg-type]
        End: lambda: ledger.finish_runs(batch),  # type: ignore[arg-type]
    }
    act[kind]()


def refused(ledger: Ledger, batch: Batch, act: Callable[[Ledger, Batch], None]) -> str:
    try:
        with ledger.together():
            act(ledger, batch)
    except LedgerError as error:
        return str(error).replace(str(ledger.project), "")
    return ""


def one_by_one(ledger: Ledger, batch: Batch) -> None:
    for each in batch:
        at_once(ledger, [each])  # type: ignore[list-item]


def tables(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    """All there is, without the moments at which it was written."""
    with ledger._database.reading() as connection:
        found = {}
        for table in ("runs", "attempts", "scores", "ranked", "cells", "artifacts", "fresh", "done"):
            rows = connection.execute(f"SELECT * FROM {table}").fetchall()
            timed = [dict(row) for row in rows]
            for row in timed:
                row["ended_at"] = row.get("ended_at") is None
            found[table] = sorted((tuple(row.values()) for row in timed), key=repr)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    return found


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(WAYS | BATCHES.flatmap(lambda some: st.sampled_from(some) if some else WAYS), max_size=10))
def test_a_batch_is_what_its_steps_are_one_by_one(batches: list[Batch]) -> None:
    with a_ledger() as batched, a_ledger() as single:
        for batch in batches:
            whys = refused(batched, batch, at_once), refused(single, batch, one_by_one)
            assert bool(whys[0]) == bool(whys[1]), whys
            if len(batch) == 1:
                assert whys[0] == whys[1]
        assert tables(batched) == tables(single)
        for run in batched.runs():
            attempts = batched.attempts(run.run_id)
            assert [attempt.number for attempt in attempts] == list(range(1, run.attempts + 1))
            assert sum(attempt.ended_at is None for attempt in attempts) <= 1
            assert (run.ended_at is not None) == is_terminal(run.state)


def test_a_run_comes_twice_in_a_batch_of_claims_and_none_is_made(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    ledger.add_run(make.run("run-1"))
    ledger.add_run(make.run("run-2"))
    with pytest.raises(LedgerError, match="run run-1 is shipping and cannot become shipping"):
        ledger.begin_attempts([Claim(run_id, "i-1") for run_id in ("run-1", "run-2", "run-1")], make.noon)
    assert {run.state for run in ledger.runs()} == {RunState.QUEUED}
    assert ledger.attempts("run-2") == []


def test_claims_are_told_as_they_are_in_the_ledger(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1", "i-2")
    for number in (1, 2):
        ledger.add_run(make.run(f"run-{number}"))
    ledger.begin_attempt("run-2", "i-1", make.noon)
    ledger.move_run("run-2", RunState.QUEUED, reason=EndReason.UNIT_LOST)
    told = ledger.begin_attempts([Claim("run-2", "i-2", "s3://b/2"), Claim("run-1", "i-2")], make.noon)
    assert [(each.run_id, each.number) for each in told] == [("run-2", 2), ("run-1", 1)]
    assert told == [ledger.attempts("run-2")[-1], ledger.attempts("run-1")[-1]]


def test_no_steps_are_no_step(ledger: Ledger, make: SimpleNamespace) -> None:
    assert ledger.begin_attempts([], make.noon) == []
    ledger.move_runs([])
    ledger.finish_runs([])
    with pytest.raises(NotFound):
        ledger.move_runs([Move("run-9", RunState.LOST)])
