"""Steps in the lives of runs, many in one statement: a run and its attempt move together, as `core.states` says.

Each function is a part of its caller's transaction, and does what one call for each of its steps would do in order: all
of them, or it raises what the first refused one does and the caller's transaction is to be undone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from cloudrun.core.clock import utc_text
from cloudrun.core.errors import LedgerError, NotFound
from cloudrun.core.records import Artifact, AttemptRecord, Passport, Timings, Usage
from cloudrun.core.states import RUN, EndReason, RunState, UnitState, is_terminal
from cloudrun.ledger import successes
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
        """INSERT INTO attempts (run_id, number, instance_id, state, started_at, detail, store, beside)
        VALUES (?, ?, ?, ?, ?, '', ?, ?)""",
        [
            (each.run_id, each.number, each.instance_id, str(each.state), now, each.store, asked.beside)
            for each, asked in zip(begun, claims, strict=True)
        ],
    )
    connection.execute(
        f"""UPDATE runs SET state = ?, attempts = attempts + 1, instance_id =
        (SELECT instance_id FROM attempts WHERE attempts.run_id = runs.run_id AND attempts.ended_at IS NULL)
        WHERE run_id IN {CHOSEN}""",  # noqa: S608
        (str(RunState.SHIPPING), as_json([each.run_id for each in begun])),
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
    for _, alike in groupby(moves, key=_to):  # no run is twice among these: it would not move
        some = list(alike)
        state, why, run_ids = some[0].state, _why(some[0]), as_json([each.run_id for each in some])
        ends_attempt = is_terminal(state) or state is RunState.QUEUED
        connection.execute(
            f"""UPDATE attempts SET state = ?, ended_at = ?, end_reason = ?, exit_code = ?, detail = ?
            WHERE ended_at IS NULL AND run_id IN {CHOSEN}""",  # noqa: S608
            (_of_attempt(state), now if ends_attempt else None, *why, run_ids),
        )
        leaves = ", instance_id = NULL" if state is RunState.QUEUED else ""
        connection.execute(
            f"""UPDATE runs SET state = ?, ended_at = ?, end_reason = ?, exit_code = ?, detail = ? {leaves}
            WHERE run_id IN {CHOSEN}""",  # noqa: S608
            (str(state), now if is_terminal(state) else None, *why, run_ids),
        )


def _to(step: Move) -> tuple[object, ...]:
    return step.state, step.reason, step.exit_code, step.detail


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
    whys = [_why(each) for each in ends]
    connection.executemany(
        """UPDATE attempts SET state = ?, ended_at = ?, end_reason = ?, exit_code = ?, detail = ?
        WHERE run_id = ? AND ended_at IS NULL""",
        [
            (_of_attempt(each.state), ended_at, *why, each.run_id)
            for each, ended_at, why in zip(ends, times, whys, strict=True)
        ],
    )
    # Without the state: where no trigger is run, SQLite writes a row as it is and keeps no journal of the statement.
    connection.executemany(
        """UPDATE runs SET ended_at = ?, end_reason = ?, exit_code = ?, detail = ?,
        metric = ?, minimize = ?, passport = ?, timings = ?, usage = ?, cost_usd = ? WHERE run_id = ?""",
        [
            (
                ended_at,
                *why,
                None if each.metric is None else text(each.metric),
                int(each.minimize),
                None if each.passport is None else record_json(each.passport),
                record_json(each.timings),
                None if each.usage is None else record_json(each.usage),
                each.cost_usd,
                each.run_id,
            )
            for each, ended_at, why in zip(ends, times, whys, strict=True)
        ],
    )
    for state in dict.fromkeys(each.state for each in ends):
        connection.execute(
            f"UPDATE runs SET state = ? WHERE run_id IN {CHOSEN}",  # noqa: S608
            (str(state), as_json([each.run_id for each in ends if each.state is state])),
        )
    connection.executemany(
        "INSERT INTO scores (run_id, name, position, value, not_finite, whole) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (each.run_id, text(name), position, *score_columns(score))
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
    successes.note(connection, [each.run_id for each in ends if each.state is RunState.SUCCEEDED])


def _of_attempt(state: RunState) -> str:
    """What its attempt is when a run moves to `state`: one that waits again has lost it."""
    return str(RunState.LOST if state is RunState.QUEUED else state)


def _why(step: Move | End) -> tuple[str | None, int | None, str]:
    return None if step.reason is None else str(step.reason), step.exit_code, text(step.detail)


def _unit_states(connection: sqlite3.Connection, instance_ids: Collection[str]) -> Iterator[tuple[str, UnitState]]:
    for row in connection.execute(
        f"SELECT instance_id, state FROM units WHERE instance_id IN {CHOSEN}",  # noqa: S608
        [as_json(list(instance_ids))],
    ):
        yield row["instance_id"], UnitState(row["state"])
