"""Runs and their attempts, and what came of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from cloudrun.core.errors import LedgerError
from cloudrun.core.records import Artifact, AttemptRecord, Passport, RunRecord, Timings, Usage
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.ledger import steps
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.ledger.database import Database
from cloudrun.ledger.missing import RUN_IDS, no_such
from cloudrun.ledger.rows import (
    as_json,
    attempt_record,
    find_id,
    insert,
    marks,
    record_json,
    run_columns,
    run_records,
)
from cloudrun.ledger.run import Run
from cloudrun.ledger.steps import Claim, End, Move

ITS_OWN = ("ship_s", "run_s", "pull_s")  # what a run takes on a machine that is there
UNFINISHED = tuple(state for state in RunState if not is_terminal(state))


class History:
    """The part of the ledger that must never lose a result. A run and its attempt move together, in one transaction.

    A run that is over is never changed again, but for its timings; it has an end, and artifacts only if they are here.
    """

    _database: Database
    _artifacts: ArtifactStore

    # -- the life of a run

    def add_run(self, run: RunRecord) -> None:
        """A new run, queued. Raises LedgerError where that id is there already."""
        if run.state is not RunState.QUEUED:
            raise LedgerError(f"a run begins as queued, not {run.state}")
        with self._database.writing() as connection:
            insert(connection, "runs", run_columns(run))

    def begin_attempt(
        self, run_id: str, instance_id: str, at: datetime, *, store: str = "", beside: str = ""
    ) -> AttemptRecord:
        """`begin_attempts` of one run."""
        return self.begin_attempts([Claim(run_id, instance_id, store, beside)], at)[0]

    def begin_attempts(self, claims: Sequence[Claim], at: datetime) -> list[AttemptRecord]:
        """Claim queued runs for live units: one transaction, all of them or none, that succeeds for one claimant only.

        Raises LedgerError where a run is not queued (any more) or a unit is ending.
        """
        with self._database.writing() as connection:
            return steps.claim(connection, claims, at)

    def begin_run(
        self, run: RunRecord, instance_id: str, at: datetime, *, store: str = "", beside: str = ""
    ) -> AttemptRecord:
        """`add_run` and its first `begin_attempt`, at the price of one commit."""
        with self._database.writing():
            self.add_run(run)
            return self.begin_attempt(run.run_id, instance_id, at, store=store, beside=beside)

    def move_run(
        self,
        run_id: str,
        state: RunState,
        *,
        reason: EndReason | None = None,
        exit_code: int | None = None,
        detail: str = "",
    ) -> None:
        """`move_runs` of one run."""
        self.move_runs([Move(run_id, state, reason, exit_code, detail)])

    def move_runs(self, moves: Sequence[Move]) -> None:
        """The next state of each, in one transaction: all of them or none.

        Raises LedgerError for a transition that `states.RUN` does not have, and for SUCCEEDED: that is `finish_run`'s.
        """
        with self._database.writing() as connection:
            steps.move(connection, moves, datetime.now(UTC))

    def requeue_run(
        self, run_id: str, *, reason: EndReason, detail: str, outputs: Sequence[Artifact] = ()
    ) -> AttemptRecord:
        """End a run's attempt and let a next one begin, which finds `outputs`. Returns the attempt that ended.

        Raises LedgerError where the run is over, or an output is not in the store.
        """
        for artifact in outputs:
            self._check_stored(run_id, artifact)
        with self._database.writing() as connection:
            connection.execute(
                "UPDATE attempts SET outputs = ? WHERE run_id = ? AND ended_at IS NULL",
                (f"[{','.join(map(record_json, outputs))}]", run_id),
            )
            steps.move(connection, [Move(run_id, RunState.QUEUED, reason, None, detail)], datetime.now(UTC))
            return _attempts(connection, run_id)[-1]

    def finish_run(
        self,
        run_id: str,
        state: RunState,
        *,
        reason: EndReason | None,
        exit_code: int | None,
        detail: str,
        scores: Mapping[str, float],
        metric: str | None,
        minimize: bool,
        artifacts: Sequence[Artifact],
        passport: Passport | None,
        timings: Timings,
        at: datetime,
        usage: Usage | None = None,
        cost_usd: float | None = None,
    ) -> RunRecord:
        """`finish_runs` of one run, which is returned as it is then."""
        end = End(
            run_id, state, reason, exit_code, detail, scores, metric, minimize, artifacts, passport, timings, at, usage,
            cost_usd,
        )  # fmt: skip
        self.finish_runs([end])
        with self._database.reading() as connection:
            return run_records(connection, [run_id])[0]

    def finish_runs(self, ends: Sequence[End]) -> None:
        """The ends of runs and all they made, in one transaction; where nothing had to be pulled, that is in it too.

        Raises LedgerError where a state is not a terminal one, the lifecycle does not allow it, or an artifact is not
        in the store: `succeeded` means that every digest was verified. Then none of it is written.
        """
        for end in ends:
            for artifact in end.artifacts:
                self._check_stored(end.run_id, artifact)
        with self._database.writing() as connection:
            steps.finish(connection, ends)

    def set_timings(self, run_id: str, timings: Timings) -> None:
        """What is known later than the end of the run: how long its unit took to go. Raises NotFound."""
        with self._database.writing() as connection:
            steps.states(connection, [run_id])
            connection.execute("UPDATE runs SET timings = ? WHERE run_id = ?", (record_json(timings), run_id))

    def set_cost(self, run_id: str, cost_usd: float) -> None:
        """What the run's share of its units came to, once that is known (better). Raises NotFound."""
        with self._database.writing() as connection:
            steps.states(connection, [run_id])
            connection.execute("UPDATE runs SET cost_usd = ? WHERE run_id = ?", (cost_usd, run_id))

    def _check_stored(self, run_id: str, artifact: Artifact) -> None:
        if (
            not self._artifacts.has(artifact.sha256)
            or self._artifacts.path(artifact.sha256).stat().st_size != artifact.size
        ):
            raise LedgerError(f"run {run_id} cannot finish: {artifact.path!r} is not in the artifact store")

    # -- looking

    def run(self, reference: str) -> RunRecord:
        """One run by its id, else the newest of that name, else by the beginning of its id ("r-" may be left out).

        Raises UsageError where several ids begin so, NotFound (with near names) where there is none.
        """
        with self._database.reading() as connection:
            run_id = find_id(connection, "runs", "run_id", RUN_IDS, reference)
            if run_id is None:
                raise no_such(connection, "run", reference)
            return run_records(connection, [run_id])[0]

    def knows_environment(self, fingerprint: str) -> bool:
        """Whether a run that has succeeded had this very environment."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT 1 FROM runs WHERE environment_digest = ? AND state = ? LIMIT 1",
                (fingerprint, str(RunState.SUCCEEDED)),
            ).fetchone()
        return row is not None

    def makers(self, digests: Iterable[str]) -> dict[str, str]:
        """Of those digests the ones of outputs, each with the first run that made it."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT sha256, min(run_id) AS run_id FROM artifacts
                WHERE sha256 IN (SELECT value FROM json_each(?)) AND kind = 'output' GROUP BY sha256""",
                [as_json(list(digests))],
            )
            return {row["sha256"]: row["run_id"] for row in rows}

    def get(self, reference: str) -> Run:
        """As `run`, with ways to its model, files and logs."""
        return Run.of(self.run(reference), self._artifacts)

    def runs(
        self, *, limit: int | None = None, states: Sequence[RunState] | None = None, newest_first: bool = True
    ) -> list[RunRecord]:
        """Runs by when they were made; `states` None is all of them."""
        order = "DESC" if newest_first else "ASC"
        most = -1 if limit is None else limit
        chosen, values = "SELECT run_id, created_at FROM runs", list[str | int]()
        if states is not None:  # each state's own newest ones: the index has those in order, and no others are sorted
            each = f"SELECT * FROM ({chosen} WHERE state = ? ORDER BY created_at {order}, run_id {order} LIMIT ?)"  # noqa: S608
            chosen = " UNION ALL ".join([each] * len(set(states))) or f"{chosen} WHERE 0"
            values = [value for state in set(states) for value in (str(state), most)]
        with self._database.reading() as connection:
            rows = connection.execute(
                f"SELECT run_id FROM ({chosen}) ORDER BY created_at {order}, run_id {order} LIMIT ?",  # noqa: S608
                [*values, most],
            ).fetchall()
            return run_records(connection, [row["run_id"] for row in rows])

    def unfinished_runs(self, instance_id: str | None = None, *, placed: bool = False) -> list[RunRecord]:
        """Runs that are not over, oldest first; with `instance_id`, those that are on that unit now, and with `placed`
        those that are on any: a queue may be long."""
        if instance_id is None and not placed:
            return self.runs(states=UNFINISHED, newest_first=False)
        where = "instance_id IS NOT NULL" if instance_id is None else "instance_id = ?"
        with self._database.reading() as connection:
            rows = connection.execute(
                f"""SELECT run_id FROM runs INDEXED BY runs_under_way WHERE {where} AND ended_at IS NULL
                ORDER BY created_at, run_id""",  # noqa: S608
                [] if instance_id is None else [instance_id],
            ).fetchall()
            return run_records(connection, [row["run_id"] for row in rows])

    def unfinished_alone(self) -> list[RunRecord]:
        """As `unfinished_runs`, without what grids have made."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"""SELECT run_id FROM runs WHERE grid_id IS NULL AND state IN ({marks(UNFINISHED)})
                ORDER BY created_at, run_id""",  # noqa: S608  only marks
                list(map(str, UNFINISHED)),
            ).fetchall()
            return run_records(connection, [row["run_id"] for row in rows])

    def attempts(self, run_id: str) -> list[AttemptRecord]:
        """All tries of a run, first to last."""
        with self._database.reading() as connection:
            return _attempts(connection, run_id)

    def attempts_of(self, run_ids: Iterable[str]) -> list[AttemptRecord]:
        """All tries of those runs, in one query; by run, then first to last."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT * FROM attempts WHERE run_id IN (SELECT value FROM json_each(?))
                ORDER BY run_id, number""",
                [as_json(list(run_ids))],
            )
            return [attempt_record(row) for row in rows]

    def took(self, run_ids: Iterable[str]) -> dict[str, float]:
        """How many seconds the shipping, running and pulling of those runs took, of each that was over in one try."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT run_id, timings FROM runs
                WHERE run_id IN (SELECT value FROM json_each(?)) AND ended_at IS NOT NULL AND attempts = 1""",
                [as_json(list(run_ids))],
            )
            timings = [(row["run_id"], json.loads(row["timings"])) for row in rows]
        return {run_id: sum(took.get(name, 0.0) for name in ITS_OWN) for run_id, took in timings}

    def attempts_on(self, instance_ids: Iterable[str]) -> list[AttemptRecord]:
        """Everything that was tried on those units, whatever it was of; as it began."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT * FROM attempts WHERE instance_id IN (SELECT value FROM json_each(?))
                ORDER BY started_at, run_id""",
                [as_json(list(instance_ids))],
            )
            return [attempt_record(row) for row in rows]


def _attempts(connection: sqlite3.Connection, run_id: str) -> list[AttemptRecord]:
    rows = connection.execute("SELECT * FROM attempts WHERE run_id = ? ORDER BY number", [run_id])
    return [attempt_record(row) for row in rows]
