"""Steps in the lives of runs, many in one statement: a run and its attempt move together, as `core.states` says.

Each function is a part of its caller's transaction, and does what one call for each of its steps would do in order: all
of them, or it raises what the first refused one does and the caller's transaction is to be undone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cloudrun.core.clock import utc_text
from cloudrun.core.errors import LedgerError, NotFound
from cloudrun.core.records import Artifact, AttemptRecord, Passport, Timings, Usage
from cloudrun.core.states import RUN, EndReason, RunState, UnitState, is_terminal
from cloudrun.ledger.rows import as_json, check_move, record_json, score_columns, text

CHOSEN = "(SELECT value FROM json_each(?))"  # ids as one JSON list: any number of them, and one prepared statement


@dataclass(frozen=True, slots=True)
class Claim:
    """A queued run for a live unit. `store` is where in S3 its outputs go if nobody fetches them ("" for nowhere),
    `beside` what `keep_beside` has said of the files that travel with its code."""

    run_id: str
    instance_id: str
    store: str = ""
    beside: str = ""


@dataclass(frozen=True, slots=True)
class Move:
    """The next state. Back to QUEUED ends the attempt as lost, so that a next may begin; a terminal one ends both."""

    run_id: str
    state: RunState
    reason: EndReason | None = None
    exit_code: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The end of a run and all it made."""

    run_id: str
    state: RunState
    reason: EndReason | None
    exit_code: int | None
    detail: str
    scores: Mapping[str, float]
    metric: str | None
    minimize: bool
    artifacts: Sequence[Artifact]
    passport: Passport | None
    timings: Timings
    at: datetime
    usage: Usage | None = None
    cost_usd: float | None = None


def states(connection: sqlite3.Connection, run_ids: Iterable[str]) -> dict[str, RunState]:
    """Raises NotFound where one of the runs is not there."""
    return {run_id: state for run_id, (state, _) in _known(connection, run_ids).items()}


def _known(connection: sqlite3.Connection, run_ids: Iterable[str]) -> dict[str, tuple[RunState, int]]:
    """State, and how many attempts there were."""
    wanted = list(run_ids)
    found = {
        row["run_id"]: (RunState(row["state"]), int(row["attempts"]))
        for row in connection.execute(
            f"SELECT run_id, state, attempts FROM runs WHERE run_id IN {CHOSEN}",  # noqa: S608
            [as_json(wanted)],
        )
    }
    for run_id in wanted:
        if run_id not in found:
            raise NotFound(f"no run {run_id} in the ledger", next_step="`cloudrun results` lists what there is")
    return found


def claim(connection: sqlite3.Connection, claims: Sequence[Claim], at: datetime) -> list[AttemptRecord]:
    """Begin an attempt of each. Raises LedgerError where a run is not queued (any more) or a unit is ending."""
    known = _known(connection, (each.run_id for each in claims))
    units = dict(_unit_states(connection, {each.instance_id for each in claims}))
    begun: list[AttemptRecord] = []
    now = utc_text(at)
    for each in claims:
        state, attempts = known[each.run_id]
        check_move(RUN, f"run {each.run_id}", state, RunState.SHIPPING)
        known[each.run_id] = RunState.SHIPPING, attempts
        unit = units.get(each.instance_id)
        if unit is None or unit in (UnitState.TERMINATING, UnitState.TERMINATED):
            raise LedgerError(f"unit {each.instance_id} is {unit or 'unknown'}: nothing can run on it")
        begun.append(
            AttemptRecord(each.run_id, attempts + 1, each.instance_id, RunState.SHIPPING, at, store=each.store)
        )
    connection.executemany(
        "UPDATE runs SET state = ?, instance_id = ?, attempts = ? WHERE run_id = ?",
        [(str(RunState.SHIPPING), each.instance_id, each.number, each.run_id) for each in begun],
    )
    connection.executemany(
        """INSERT INTO attempts (run_id, number, instance_id, state, started_at, detail, store, beside)
        VALUES (?, ?, ?, ?, ?, '', ?, ?)""",
        [
            (each.run_id, each.number, each.instance_id, str(each.state), now, each.store, asked.beside)
            for each, asked in zip(begun, claims, strict=True)
        ],
    )
    return begun


def move(connection: sqlite3.Connection, moves: Sequence[Move], at: datetime) -> None:
    """Raises LedgerError for a transition that `states.RUN` does not have, and for SUCCEEDED, which is `finish`'s."""
    before = states(connection, {each.run_id for each in moves})
    for each in moves:
        if each.state is RunState.SUCCEEDED:
            raise LedgerError("a run succeeds with its artifacts, by finish_run")
        check_move(RUN, f"run {each.run_id}", before[each.run_id], each.state)
        before[each.run_id] = each.state
    now = utc_text(at)
    _end_attempts(connection, moves, [now] * len(moves))
    connection.executemany(
        """UPDATE runs SET state = ?, ended_at = ?, end_reason = ?, exit_code = ?, detail = ?,
        instance_id = CASE WHEN ? THEN NULL ELSE instance_id END WHERE run_id = ?""",
        [
            (
                str(each.state),
                now if is_terminal(each.state) else None,
                *_why(each),
                each.state is RunState.QUEUED,
                each.run_id,
            )
            for each in moves
        ],
    )


def finish(connection: sqlite3.Connection, ends: Sequence[End]) -> None:
    """Raises LedgerError where a state is not a terminal one, or the lifecycle does not allow it."""
    before = states(connection, (each.run_id for each in ends))
    for each in ends:
        if not is_terminal(each.state):
            raise LedgerError(f"run {each.run_id} cannot finish as {each.state}")
        was = before[each.run_id]
        if each.state is RunState.SUCCEEDED and was in (RunState.RUNNING, RunState.PULL_PENDING):
            was = RunState.PULLING  # what came along with the job's end needed no pulling of its own
        check_move(RUN, f"run {each.run_id}", was, each.state)
        before[each.run_id] = each.state
    times = [utc_text(each.at) for each in ends]
    _end_attempts(connection, ends, times)
    connection.executemany(
        """UPDATE runs SET state = ?, ended_at = ?, end_reason = ?, exit_code = ?, detail = ?,
        metric = ?, minimize = ?, passport = ?, timings = ?, usage = ?, cost_usd = ? WHERE run_id = ?""",
        [
            (
                str(each.state),
                at,
                *_why(each),
                None if each.metric is None else text(each.metric),
                int(each.minimize),
                None if each.passport is None else record_json(each.passport),
                record_json(each.timings),
                None if each.usage is None else record_json(each.usage),
                each.cost_usd,
                each.run_id,
            )
            for each, at in zip(ends, times, strict=True)
        ],
    )
    connection.executemany(
        "INSERT INTO scores (run_id, name, position, value, not_finite) VALUES (?, ?, ?, ?, ?)",
        [
            (each.run_id, text(name), position, *score_columns(float(score)))
            for each in ends
            for position, (name, score) in enumerate(each.scores.items())
        ],
    )
    connection.executemany(
        "INSERT INTO artifacts (run_id, kind, path, position, size, sha256) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (each.run_id, artifact.kind, text(artifact.path), position, artifact.size, artifact.sha256)
            for each in ends
            for position, artifact in enumerate(each.artifacts)
        ],
    )
    _rank(connection, [each.run_id for each in ends if each.state is RunState.SUCCEEDED])


def _rank(connection: sqlite3.Connection, run_ids: Collection[str]) -> None:
    """Put the scores of runs that have succeeded among all others', and among those of the grids they are cells of.

    CROSS JOIN is in this order: from the few runs to their scores."""
    if not run_ids:
        return
    chosen = as_json(list(run_ids))
    connection.execute(
        """INSERT OR IGNORE INTO ranked SELECT '', name, scores.value, run_id
        FROM json_each(?) AS chosen CROSS JOIN scores ON run_id = chosen.value WHERE scores.value IS NOT NULL""",
        [chosen],
    )
    connection.execute(
        """INSERT OR IGNORE INTO ranked SELECT grid_id, name, scores.value, scores.run_id
        FROM json_each(?) AS chosen CROSS JOIN cells ON cells.run_id = chosen.value
        CROSS JOIN scores ON scores.run_id = chosen.value WHERE scores.value IS NOT NULL""",
        [chosen],
    )


def _end_attempts(connection: sqlite3.Connection, steps: Sequence[Move | End], times: Sequence[str]) -> None:
    """Move the open attempt of each run along, if it has one."""
    connection.executemany(
        """UPDATE attempts SET state = ?, ended_at = ?, end_reason = ?, exit_code = ?, detail = ?
        WHERE run_id = ? AND ended_at IS NULL""",
        [
            (
                str(RunState.LOST if each.state is RunState.QUEUED else each.state),
                at if is_terminal(each.state) or each.state is RunState.QUEUED else None,
                *_why(each),
                each.run_id,
            )
            for each, at in zip(steps, times, strict=True)
        ],
    )


def _why(step: Move | End) -> tuple[str | None, int | None, str]:
    return None if step.reason is None else str(step.reason), step.exit_code, text(step.detail)


def _unit_states(connection: sqlite3.Connection, instance_ids: Collection[str]) -> Iterator[tuple[str, UnitState]]:
    for row in connection.execute(
        f"SELECT instance_id, state FROM units WHERE instance_id IN {CHOSEN}",  # noqa: S608
        [as_json(list(instance_ids))],
    ):
        yield row["instance_id"], UnitState(row["state"])
