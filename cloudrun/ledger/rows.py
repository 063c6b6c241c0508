"""Records as rows of the tables and back. What is only ever read as a whole is JSON."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from cloudrun.core.clock import utc_text, utc_time
from cloudrun.core.errors import LedgerError, UsageError
from cloudrun.core.records import (
    Artifact,
    AttemptRecord,
    CellRecord,
    ClientRecord,
    GridRecord,
    LaunchRecord,
    LaunchRequest,
    Passport,
    Place,
    RunRecord,
    Timings,
    UnitRecord,
    Usage,
)
from cloudrun.core.states import EndReason, GridState, LaunchState, RunState, S, UnitState, allowed

# -- values ----------------------------------------------------------------------------------------------------------


_encode = json.JSONEncoder(separators=(",", ":")).encode


def text(value: str) -> str:
    """`value` as SQLite can hold it: bytes that were no UTF-8 (file names, output) as `\\udc80`."""
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode("utf-8")


def optional_time(value: str | None) -> datetime | None:
    return None if value is None else utc_time(value)


def optional_reason(value: str | None) -> EndReason | None:
    return None if value is None else EndReason(value)


def as_json(value: object) -> str:
    """Raises UsageError for what JSON cannot hold."""
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"the ledger keeps parameters as JSON, and this is none: {error}",
            next_step="use numbers, strings, booleans, lists and dictionaries",
        ) from error


def record_json(record: LaunchRequest | Passport | Timings | Usage | Artifact) -> str:
    return as_json({name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(record).items()})


def score_columns(score: float) -> tuple[float | None, str | None, int]:
    """`(value, not_finite, whole)`: SQLite has no NaN, and an infinity must not win; 426 is not shown as 426.0."""
    value = float(score)
    return (value, None, int(isinstance(score, int))) if math.isfinite(value) else (None, repr(value), 0)


# -- records of rows -------------------------------------------------------------------------------------------------


def _place(row: sqlite3.Row) -> Place:
    return Place(row["provider"], row["region"], row["generation"])


def launch_record(row: sqlite3.Row) -> LaunchRecord:
    return LaunchRecord(
        launch_id=row["launch_id"],
        place=_place(row),
        state=LaunchState(row["state"]),
        request=LaunchRequest(**json.loads(row["request"])),
        user=row["user"],
        client_id=row["client_id"],
        deadline=utc_time(row["deadline"]),
        on_exit=row["on_exit"],
        host_key=row["host_key"],
        created_at=utc_time(row["created_at"]),
        architecture=row["architecture"],
        detail=row["detail"],
        ssh_jump=row["ssh_jump"],
    )


def unit_record(row: sqlite3.Row) -> UnitRecord:
    """`row` is a unit joined with the place of its launch and the way to it."""
    return UnitRecord(
        instance_id=row["instance_id"],
        launch_id=row["launch_id"],
        place=_place(row),
        state=UnitState(row["state"]),
        instance_type=row["instance_type"],
        user=row["user"],
        address=row["address"],
        ssh_port=row["ssh_port"],
        host_key=row["host_key"],
        deadline=utc_time(row["deadline"]),
        on_exit=row["on_exit"],
        client_id=row["client_id"],
        created_at=utc_time(row["created_at"]),
        ended_at=optional_time(row["ended_at"]),
        end_reason=optional_reason(row["end_reason"]),
        ssh_jump=row["ssh_jump"],
        stopped_at=optional_time(row["stopped_at"]),
        stopped_s=row["stopped_s"],
    )


def client_record(row: sqlite3.Row) -> ClientRecord:
    return ClientRecord(
        client_id=row["client_id"],
        host=row["host"],
        boot_id=row["boot_id"],
        pid=row["pid"],
        pid_started=row["pid_started"],
        heartbeat_at=utc_time(row["heartbeat_at"]),
    )


def attempt_record(row: sqlite3.Row) -> AttemptRecord:
    return AttemptRecord(
        run_id=row["run_id"],
        number=row["number"],
        instance_id=row["instance_id"],
        state=RunState(row["state"]),
        started_at=utc_time(row["started_at"]),
        ended_at=optional_time(row["ended_at"]),
        end_reason=optional_reason(row["end_reason"]),
        exit_code=row["exit_code"],
        detail=row["detail"],
        outputs=tuple(Artifact(**each) for each in json.loads(row["outputs"])),
        store=row["store"],
    )


def run_records(connection: sqlite3.Connection, run_ids: Iterable[str]) -> list[RunRecord]:
    """Those runs in that order, whole, in three queries however many there are; one that is gone is left out."""
    wanted = list(run_ids)
    chosen = as_json(wanted)  # one value instead of a limited number of marks
    scores: dict[str, dict[str, float]] = {}
    for row in connection.execute(
        "SELECT * FROM scores WHERE run_id IN (SELECT value FROM json_each(?)) ORDER BY run_id, position", [chosen]
    ):
        value = row["value"] if row["not_finite"] is None else float(row["not_finite"])
        value = int(value) if row["whole"] else value
        scores.setdefault(row["run_id"], {})[row["name"]] = value
    artifacts: dict[str, list[Artifact]] = {}
    for row in connection.execute(
        "SELECT * FROM artifacts WHERE run_id IN (SELECT value FROM json_each(?)) ORDER BY run_id, position", [chosen]
    ):
        artifact = Artifact(row["path"], row["size"], row["sha256"], row["kind"])
        artifacts.setdefault(row["run_id"], []).append(artifact)
    found = {
        row["run_id"]: _run_record(row, scores.get(row["run_id"], {}), tuple(artifacts.get(row["run_id"], ())))
        for row in connection.execute(
            """SELECT runs.*, units.instance_type, launches.provider, launches.region, launches.generation
            FROM runs LEFT JOIN units USING (instance_id) LEFT JOIN launches USING (launch_id)
            WHERE run_id IN (SELECT value FROM json_each(?))""",
            [chosen],
        )
    }
    return [found[run_id] for run_id in wanted if run_id in found]


# Cells of a grid share these, and there are thousands of them.


@lru_cache(maxsize=64)
def _arguments(encoded: str) -> tuple[str, ...]:
    return tuple(json.loads(encoded))


@lru_cache(maxsize=64)
def _timings(encoded: str) -> Timings:
    return Timings(**json.loads(encoded))


def _run_record(row: sqlite3.Row, scores: dict[str, float], artifacts: tuple[Artifact, ...]) -> RunRecord:
    params: dict[str, Any] = json.loads(row["params"])
    return RunRecord(
        run_id=row["run_id"],
        name=row["name"],
        script=row["script"],
        cwd=row["cwd"],
        state=RunState(row["state"]),
        created_at=utc_time(row["created_at"]),
        arguments=_arguments(row["arguments"]),
        params=params,
        submission=json.loads(row["submission"]),
        end_reason=optional_reason(row["end_reason"]),
        exit_code=row["exit_code"],
        ended_at=optional_time(row["ended_at"]),
        metric=row["metric"],
        minimize=bool(row["minimize"]),
        scores=scores,
        artifacts=artifacts,
        passport=None if row["passport"] is None else Passport(**json.loads(row["passport"])),
        code_digest=row["code_digest"],
        data_digest=row["data_digest"],
        environment_digest=row["environment_digest"],
        instance_id=row["instance_id"],
        instance_type=row["instance_type"],
        place=None if row["provider"] is None else _place(row),
        timings=_timings(row["timings"]),
        usage=None if row["usage"] is None else Usage(**json.loads(row["usage"])),
        cost_usd=row["cost_usd"],
        detail=row["detail"],
        attempts=row["attempts"],
        grid_id=row["grid_id"],
        cell_key=row["cell_key"],
    )


def grid_record(row: sqlite3.Row) -> GridRecord:
    return GridRecord(
        grid_id=row["grid_id"],
        name=row["name"],
        script=row["script"],
        state=GridState(row["state"]),
        created_at=utc_time(row["created_at"]),
        identity=row["identity"],
        cells=row["cells"],
        spec=json.loads(row["spec"]),
        settings=json.loads(row["settings"]),
        budget_usd=row["budget_usd"],
        client_id=row["client_id"],
        ended_at=optional_time(row["ended_at"]),
        detail=row["detail"],
    )


def cell_record(row: sqlite3.Row) -> CellRecord:
    return CellRecord(row["number"], row["run_id"], RunState(row["state"]))


# -- statements ------------------------------------------------------------------------------------------------------


def check_move(table: Mapping[S, frozenset[S]], what: str, before: S, after: S) -> None:
    """Raises LedgerError for a transition that is not in the table."""
    if not allowed(table, before, after):
        raise LedgerError(f"{what} is {before} and cannot become {after}")


def marks(values: Collection[object]) -> str:
    """As many question marks."""
    return ", ".join("?" * len(values))


def insert(connection: sqlite3.Connection, table: str, *rows: Mapping[str, object]) -> None:
    """Rows with the same columns. Table and column names are this package's own, never input."""
    if rows:
        names = ", ".join(rows[0])
        statement = f"INSERT INTO {table} ({names}) VALUES ({marks(rows[0])})"  # noqa: S608
        connection.executemany(statement, [tuple(row.values()) for row in rows])


def find_id(connection: sqlite3.Connection, table: str, key: str, kinds: Sequence[str], reference: str) -> str | None:
    """The row that a user means: by its id, else the newest of that name, else by the beginning of its id, in which
    the kind ("r-") may be left out. None where there is none; raises UsageError where several ids begin so.
    """
    reference = text(reference)
    for query in (
        f"SELECT {key} FROM {table} WHERE {key} = ?",  # noqa: S608
        f"SELECT {key} FROM {table} WHERE name = ? ORDER BY created_at DESC, {key} DESC LIMIT 1",  # noqa: S608
    ):
        if row := connection.execute(query, [reference]).fetchone():
            return str(row[0])
    begins: list[str] = []
    for prefix in ("", *kinds) if reference else ():
        begin = prefix + reference  # a range and no pattern: it walks the index of ids
        rows = connection.execute(
            f"SELECT {key} FROM {table} WHERE {key} >= ? AND {key} < ? ORDER BY {key} DESC LIMIT 6",  # noqa: S608
            (begin, begin + chr(0x10FFFF)),
        )
        begins += [row[0] for row in rows]
    if len(begins) > 1:
        some = ", ".join(begins[:5]) + (", ..." if len(begins) > 5 else "")
        raise UsageError(f"several {table} begin with {reference!r}: {some}", next_step="type more of the id")
    return begins[0] if begins else None


# -- rows of records -------------------------------------------------------------------------------------------------


def launch_columns(launch: LaunchRecord, ledger_id: str) -> dict[str, object]:
    return {
        "launch_id": launch.launch_id,
        "ledger_id": ledger_id,
        "provider": launch.place.provider,
        "region": launch.place.region,
        "generation": launch.place.generation,
        "state": str(launch.state),
        "request": record_json(launch.request),
        "user": launch.user,
        "client_id": launch.client_id,
        "deadline": utc_text(launch.deadline),
        "on_exit": launch.on_exit,
        "host_key": launch.host_key,
        "created_at": utc_text(launch.created_at),
        "architecture": launch.architecture,
        "detail": text(launch.detail),
        "ssh_jump": launch.ssh_jump,
    }


def unit_columns(unit: UnitRecord) -> dict[str, object]:
    return {
        "instance_id": unit.instance_id,
        "launch_id": unit.launch_id,
        "state": str(unit.state),
        "instance_type": unit.instance_type,
        "user": unit.user,
        "address": unit.address,
        "ssh_port": unit.ssh_port,
        "host_key": unit.host_key,
        "deadline": utc_text(unit.deadline),
        "on_exit": unit.on_exit,
        "client_id": unit.client_id,
        "created_at": utc_text(unit.created_at),
        "ended_at": None if unit.ended_at is None else utc_text(unit.ended_at),
        "end_reason": None if unit.end_reason is None else str(unit.end_reason),
    }


def run_columns(run: RunRecord) -> dict[str, object]:
    """A queued run: what is known before anything has happened to it."""
    return next(runs_columns([run]))


def runs_columns(runs: Iterable[RunRecord]) -> Iterator[dict[str, object]]:
    """The same of many, which mostly are alike but for their parameters: what they share is made JSON of once."""
    encoded: dict[int, tuple[object, str]] = {}  # by identity, and beside each the object, which so stays what it is

    def shared(value: object, encode: Callable[[Any], str]) -> str:
        if id(value) not in encoded:
            encoded[id(value)] = value, encode(value)
        return encoded[id(value)][1]

    for run in runs:
        yield {
            "run_id": run.run_id,
            "name": text(run.name),
            "script": text(run.script),
            "cwd": text(run.cwd),
            "state": str(RunState.QUEUED),
            "created_at": utc_text(run.created_at),
            "arguments": shared(run.arguments, lambda it: as_json(list(it))),
            "params": as_json(dict(run.params)),
            "submission": shared(run.submission, lambda it: as_json(dict(it))),
            "metric": None if run.metric is None else text(run.metric),
            "minimize": int(run.minimize),
            "code_digest": run.code_digest,
            "data_digest": run.data_digest,
            "environment_digest": run.environment_digest,
            "timings": shared(run.timings, record_json),
            "detail": text(run.detail),
            "attempts": 0,
            "grid_id": run.grid_id,
            "cell_key": run.cell_key,
        }


def grid_columns(grid: GridRecord) -> dict[str, object]:
    """An open grid."""
    return {
        "grid_id": grid.grid_id,
        "name": text(grid.name),
        "script": text(grid.script),
        "state": str(GridState.OPEN),
        "created_at": utc_text(grid.created_at),
        "identity": grid.identity,
        "cells": grid.cells,
        "spec": as_json(dict(grid.spec)),
        "settings": as_json(dict(grid.settings)),
        "budget_usd": grid.budget_usd,
        "client_id": grid.client_id,
        "detail": text(grid.detail),
    }
