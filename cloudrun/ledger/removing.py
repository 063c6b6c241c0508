"""Forgetting runs that are over, and finding what nothing in the ledger refers to any more."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.states import GridState, RunState, is_terminal
from cloudrun.ledger import successes
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.ledger.database import Database
from cloudrun.ledger.rows import as_json

FREED_TOGETHER = 500  # files that are looked at while nobody brings any home
_UNUSED_CODE = """SELECT code_digest, size FROM code_files
    WHERE NOT EXISTS (SELECT 1 FROM runs WHERE runs.code_digest = code_files.code_digest)"""
_ROWS = ("scores", "artifacts", "attempts", "cells")  # of a run, beside its own


class Removing:
    """Rows go at once; files stay until somebody frees what nothing refers to."""

    _database: Database
    _artifacts: ArtifactStore

    def remove_runs(self, run_ids: Iterable[str]) -> None:
        """Forget all of these runs or none. Raises NotFound; UsageError where one is not over, or is a cell of a grid
        that is not: somebody goes on with it, and counts on its cells."""
        with self._database.writing() as connection:
            successes.settle(connection)
            for run_id in run_ids:
                _check_over(connection, run_id)
                successes.forget(connection, run_id)
                for table in _ROWS:
                    connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])  # noqa: S608
                connection.execute("DELETE FROM runs WHERE run_id = ?", [run_id])
            successes.forgotten(connection)

    def check_over(self, run_ids: Iterable[str]) -> None:
        """Raises what `remove_runs` would."""
        with self._database.reading() as connection:
            for run_id in run_ids:
                _check_over(connection, run_id)

    def remove_grid(self, grid_id: str) -> tuple[list[str], list[str]]:
        """Forget a grid, and of its runs those that it has made itself and that no other grid has, failed ones that
        others have taken the place of among them. Returns the ids of the runs that are gone, and of those that stay.
        Raises as `remove_runs`."""
        with self._database.writing() as connection:
            row = connection.execute("SELECT state FROM grids WHERE grid_id = ?", [grid_id]).fetchone()
            if row is None:
                raise NotFound(f"no grid {grid_id} in the ledger", next_step="cloudrun results")
            if GridState(row["state"]) is GridState.OPEN:
                raise UsageError(f"{grid_id} is not over", next_step=f"cloudrun cancel {grid_id}, then remove it")
            rows = connection.execute(
                "SELECT run_id FROM cells WHERE grid_id = ? UNION SELECT run_id FROM runs WHERE grid_id = ?",
                [grid_id, grid_id],
            )
            its = [row["run_id"] for row in rows]
            mine = connection.execute("SELECT run_id FROM runs WHERE grid_id = ?", [grid_id]).fetchall()
            connection.execute("DELETE FROM cells WHERE grid_id = ?", [grid_id])
            connection.execute("DELETE FROM ranked WHERE scope = ?", [grid_id])
            elsewhere = "SELECT 1 FROM cells WHERE run_id = ? LIMIT 1"
            made = [row["run_id"] for row in mine]  # what has failed, and was tried again as another run, is no cell
            gone = [run_id for run_id in made if not connection.execute(elsewhere, [run_id]).fetchone()]
            self.remove_runs(gone)
            connection.execute("UPDATE runs SET grid_id = NULL WHERE grid_id = ?", [grid_id])
            connection.execute("DELETE FROM grids WHERE grid_id = ?", [grid_id])
            removed = set(gone)
            return gone, [run_id for run_id in its if run_id not in removed]

    def unreferenced(self, digests: Sequence[str]) -> set[str]:
        """Which of them no run, no attempt and no code refers to."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT value FROM json_each(?)
                WHERE NOT EXISTS (SELECT 1 FROM artifacts WHERE sha256 = value)
                AND NOT EXISTS (SELECT 1 FROM code_files WHERE sha256 = value)""",
                [as_json(list(digests))],
            )
            unused = {row[0] for row in rows}
            for row in connection.execute("SELECT outputs FROM attempts WHERE outputs <> '[]'") if unused else ():
                unused.difference_update(each["sha256"] for each in json.loads(row["outputs"]))
        return unused

    def free_artifacts(self, digests: Sequence[str], *, before: float) -> int:
        """Delete those of these files that nothing refers to and that were last touched `before` (seconds since 1970).
        Returns the bytes that were freed. Raises LedgerError where files are being brought home just now.

        Each is looked at again while nobody brings anything home: whoever does holds `ArtifactStore.in_use` from the
        moment he finds that a file is here until the ledger refers to it.
        """
        freed = 0
        for begin in range(0, len(digests), FREED_TOGETHER):
            some = digests[begin : begin + FREED_TOGETHER]
            freed += self._artifacts.free(some, self.unreferenced, before=before)
        return freed

    def unused_code(self) -> dict[str, tuple[int, float]]:
        """Versions of code that no run is of any more, by digest: bytes of their files, and when somebody has last kept
        them (seconds since 1970)."""
        with self._database.reading() as connection:
            sizes = Counter[str]()
            for row in connection.execute(_UNUSED_CODE).fetchall():
                sizes[row["code_digest"]] += row["size"]
            return {digest: (size, self._kept_at(connection, digest)) for digest, size in sizes.items()}

    def free_code(self, code_digest: str, *, before: float) -> int:
        """Forget such a version, and delete those of its files that nothing else refers to. Returns the bytes that were
        freed. Raises LedgerError where files are being brought home just now."""
        with self._artifacts.alone(), self._database.writing() as connection:
            unused = {row["code_digest"] for row in connection.execute(_UNUSED_CODE)}
            if code_digest not in unused or self._kept_at(connection, code_digest) >= before:
                return 0
            files = [
                row["sha256"]
                for row in connection.execute("SELECT sha256 FROM code_files WHERE code_digest = ?", [code_digest])
            ]
            connection.execute("DELETE FROM code_files WHERE code_digest = ?", [code_digest])
        return self.free_artifacts(files, before=before)

    def _kept_at(self, connection: sqlite3.Connection, code_digest: str) -> float:
        """Whoever keeps code, or finds that it is kept, touches its files."""
        touched = []
        for row in connection.execute("SELECT sha256 FROM code_files WHERE code_digest = ?", [code_digest]):
            with suppress(NotFound):
                touched.append(self._artifacts.path(row["sha256"]).stat().st_mtime)
        return max(touched, default=0.0)


def _check_over(connection: sqlite3.Connection, run_id: str) -> None:
    row = connection.execute("SELECT state FROM runs WHERE run_id = ?", [run_id]).fetchone()
    if row is None:
        raise NotFound(f"no run {run_id} in the ledger", next_step="`cloudrun results` lists what there is")
    state = RunState(row["state"])
    if not is_terminal(state):
        way = "pull" if state is RunState.PULL_PENDING else "cancel"
        raise UsageError(f"{run_id} is {state}, and not over", next_step=f"cloudrun {way} {run_id}, then remove it")
    grid = connection.execute(
        "SELECT grid_id FROM cells JOIN grids USING (grid_id) WHERE run_id = ? AND grids.state = ? LIMIT 1",
        (run_id, str(GridState.OPEN)),
    ).fetchone()
    if grid is not None:
        raise UsageError(
            f"{run_id} is a cell of {grid[0]}, which is not over",
            next_step=f"cloudrun attach {grid[0]} or cloudrun cancel {grid[0]}, then remove it",
        )
