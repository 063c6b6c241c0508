"""The ledger of a project: one SQLite file and the artifacts beside it, under `.cloudrun/`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.ledger.beside import Beside
from cloudrun.ledger.database import Database
from cloudrun.ledger.fleet import Fleet
from cloudrun.ledger.frames import frame_of
from cloudrun.ledger.grids import Grids
from cloudrun.ledger.history import History
from cloudrun.ledger.home import (
    DATABASE,
    FOLDER,
    KEYS,
    check_writable,
    create_database,
    create_home,
    create_keys_folder,
    find_project,
)
from cloudrun.ledger.identity import settle
from cloudrun.ledger.provenance import Provenance
from cloudrun.ledger.removing import Removing
from cloudrun.ledger.results import Results
from cloudrun.ledger.schema import migrate

if TYPE_CHECKING:
    import pandas as pd


class Ledger(Fleet, History, Grids, Beside, Results, Provenance, Removing):
    """What was launched, what ran and what came of it: `Ledger().ranking("accuracy")`.

    `project` None finds the project of the working directory. Nothing is written before the first use. One Ledger may
    be used from several threads and after a fork; several processes may use the same one.

    What always holds: a method is one transaction, on the disk when it returns, or nothing; states move only as
    `core.states` says; a run is in the ledger once, and each try of it once; `succeeded` means that every artifact is
    in the store under its verified digest. Every error is a LedgerError or one of its kind, or a UsageError.
    """

    def __init__(self, project: str | Path | None = None) -> None:
        self._project = find_project(project)
        self._artifacts = ArtifactStore(self.home / "artifacts")
        self._database = Database(self.home / DATABASE, self._before_opening, self._after_opening)

    def __repr__(self) -> str:
        return f"Ledger({str(self.project)!r})"

    @property
    def project(self) -> Path:
        """The project's root."""
        return self._project

    @property
    def home(self) -> Path:
        """The project's `.cloudrun/`."""
        return self._project / FOLDER

    @property
    def keys_dir(self) -> Path:
        """Where private keys live, mode 0700."""
        return create_keys_folder(self.home)

    def key_path(self, launch_id: str) -> Path:
        """The private key that a launch's units let in, whether it is there or not."""
        return self.home / KEYS / launch_id

    @property
    def artifacts(self) -> ArtifactStore:
        create_home(self.home)
        return self._artifacts

    def to_pandas(self, grid: str | None = None, *, script: str | None = None) -> pd.DataFrame:
        """All runs (cells of that grid, runs of that script), a row for each, best first as in `results`.

        The index is `run_id`. Columns: name, script, state, end_reason, exit_code, metric, created_at and ended_at
        (UTC), grid_id, attempts; `params.NAME` and `scores.NAME` for each that any run has; instance_id, instance_type,
        region; times in seconds (`run_s`, ...), `cost_usd`. What a run does not have is missing (NaN, NaT or None).

        Raises UsageError where pandas is not installed, NotFound where there is no such grid.
        """
        grid_id = None if grid is None else self.grid(grid).grid_id
        return frame_of(self.results(grid_id, script=script))

    def check_writable(self) -> None:
        """Raises LedgerError where nothing could be written down."""
        check_writable(self.home)
        _ = self.ledger_id

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the block calls is one transaction: all of it or nothing, on the disk when the block ends.

        A method that refuses, and whose error is caught in the block, has written nothing; the others count. Nobody
        else reads or writes meanwhile: keep it short.
        """
        with self._database.writing():
            yield

    def close(self) -> None:
        """Let go of the file. The next use opens it again."""
        self._database.close()

    def _before_opening(self) -> None:
        create_database(self.home)

    def _after_opening(self, connection: sqlite3.Connection) -> None:
        migrate(connection)
        settle(connection, self.home)
