"""The tables, as a list of named migrations. Each is applied with its record in one transaction; there is no way back.

Times are text in `utc_text`'s form, so that text order is time order. What is only ever read as a whole is JSON.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime

from cloudrun.core.clock import utc_text
from cloudrun.core.errors import LedgerError
from cloudrun.ledger.database import atomic


@dataclass(frozen=True)
class Migration:
    name: str
    statements: tuple[str, ...]


MIGRATIONS = (
    Migration(
        "0001 launches, units, clients, runs",
        (
            """CREATE TABLE identity (
                only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
                ledger_id TEXT NOT NULL,
                path TEXT NOT NULL,       -- where .cloudrun/ was when last opened,
                directory TEXT NOT NULL,  -- its device and inode,
                machine TEXT NOT NULL     -- and on which computer
            )""",
            """CREATE TABLE launches (
                launch_id TEXT PRIMARY KEY,
                ledger_id TEXT NOT NULL,  -- not this ledger's where it is a copy: then it is not ours to end
                provider TEXT NOT NULL, region TEXT NOT NULL, generation TEXT NOT NULL,
                state TEXT NOT NULL,
                request TEXT NOT NULL,    -- JSON, word for word what RunInstances is told
                user TEXT NOT NULL,
                client_id TEXT NOT NULL,
                deadline TEXT NOT NULL,
                on_exit TEXT NOT NULL,
                host_key TEXT NOT NULL,
                created_at TEXT NOT NULL,
                detail TEXT NOT NULL
            )""",
            "CREATE INDEX launches_by_state ON launches (state)",
            """CREATE TABLE units (
                instance_id TEXT PRIMARY KEY,
                launch_id TEXT NOT NULL REFERENCES launches,
                state TEXT NOT NULL,
                instance_type TEXT NOT NULL,
                user TEXT NOT NULL,
                address TEXT,
                ssh_port INTEGER NOT NULL,
                host_key TEXT NOT NULL,
                deadline TEXT NOT NULL,
                on_exit TEXT NOT NULL,
                client_id TEXT NOT NULL,
                created_at TEXT NOT NULL,
                ended_at TEXT,
                end_reason TEXT
            )""",
            "CREATE INDEX units_by_launch ON units (launch_id)",
            "CREATE INDEX units_by_state ON units (state)",
            """CREATE TABLE clients (
                client_id TEXT PRIMARY KEY,
                host TEXT NOT NULL,
                boot_id TEXT NOT NULL,
                pid INTEGER NOT NULL,
                pid_started TEXT NOT NULL,
                heartbeat_at TEXT NOT NULL
            )""",
            """CREATE TABLE runs (
                run_id TEXT PRIMARY KEY,
                name TEXT NOT NULL,
                script TEXT NOT NULL,
                state TEXT NOT NULL,
                created_at TEXT NOT NULL,
                arguments TEXT NOT NULL,  -- JSON list
                params TEXT NOT NULL,     -- JSON object
                end_reason TEXT,
                exit_code INTEGER,
                ended_at TEXT,
                metric TEXT,
                minimize INTEGER NOT NULL,
                passport TEXT,            -- JSON
                code_digest TEXT NOT NULL, data_digest TEXT NOT NULL, environment_digest TEXT NOT NULL,
                instance_id TEXT REFERENCES units,  -- of the latest attempt; none while it is queued
                timings TEXT NOT NULL,    -- JSON, seconds
                cost_usd REAL,
                detail TEXT NOT NULL,
                attempts INTEGER NOT NULL
            )""",
            "CREATE INDEX runs_by_time ON runs (created_at, run_id)",
            "CREATE INDEX runs_by_name ON runs (name, created_at)",
            "CREATE INDEX runs_by_state ON runs (state)",
            """CREATE TABLE attempts (
                run_id TEXT NOT NULL REFERENCES runs,
                number INTEGER NOT NULL,
                instance_id TEXT NOT NULL REFERENCES units,
                state TEXT NOT NULL,
                started_at TEXT NOT NULL,
                ended_at TEXT,
                end_reason TEXT,
                exit_code INTEGER,
                detail TEXT NOT NULL,
                PRIMARY KEY (run_id, number)
            )""",
            "CREATE UNIQUE INDEX one_open_attempt_each ON attempts (run_id) WHERE ended_at IS NULL",
            # SQLite has no NaN, and infinities must not win a ranking: only finite scores have a `value`
            """CREATE TABLE scores (
                run_id TEXT NOT NULL REFERENCES runs,
                name TEXT NOT NULL,
                position INTEGER NOT NULL,
                value REAL,
                not_finite TEXT CHECK (not_finite IN ('nan', 'inf', '-inf')),
                PRIMARY KEY (run_id, name),
                CHECK ((value IS NULL) <> (not_finite IS NULL))
            )""",
            "CREATE INDEX scores_in_order ON scores (name, value)",
            """CREATE TABLE artifacts (
                run_id TEXT NOT NULL REFERENCES runs,
                kind TEXT NOT NULL,
                path TEXT NOT NULL,
                position INTEGER NOT NULL,
                size INTEGER NOT NULL,
                sha256 TEXT NOT NULL,
                PRIMARY KEY (run_id, kind, path)
            )""",
            "CREATE INDEX artifacts_by_content ON artifacts (sha256)",
        ),
    ),
    Migration(
        "0002 usage of runs, outputs of interrupted attempts, buckets",
        (
            "ALTER TABLE runs ADD COLUMN usage TEXT",  # JSON
            "ALTER TABLE runs ADD COLUMN cwd TEXT NOT NULL DEFAULT '.'",
            "ALTER TABLE launches ADD COLUMN architecture TEXT NOT NULL DEFAULT ''",
            "ALTER TABLE attempts ADD COLUMN outputs TEXT NOT NULL DEFAULT '[]'",  # JSON
            "ALTER TABLE attempts ADD COLUMN store TEXT NOT NULL DEFAULT ''",
        ),
    ),
    Migration(
        "0003 how runs were submitted",
        ("ALTER TABLE runs ADD COLUMN submission TEXT NOT NULL DEFAULT '{}'",),  # JSON
    ),
    Migration(
        "0004 grids",
        (
            """CREATE TABLE grids (
                grid_id TEXT PRIMARY KEY,
                name TEXT NOT NULL,
                script TEXT NOT NULL,
                state TEXT NOT NULL,
                created_at TEXT NOT NULL,
                ended_at TEXT,
                identity TEXT NOT NULL,
                cells INTEGER NOT NULL,
                spec TEXT NOT NULL,       -- JSON
                settings TEXT NOT NULL,   -- JSON
                budget_usd REAL,
                client_id TEXT NOT NULL,
                detail TEXT NOT NULL
            )""",
            "CREATE INDEX grids_by_identity ON grids (identity, created_at, grid_id)",
            "ALTER TABLE runs ADD COLUMN grid_id TEXT REFERENCES grids",
            "ALTER TABLE runs ADD COLUMN cell_key TEXT NOT NULL DEFAULT ''",
            # Which run is which cell. One run may be a cell of several grids; its state is kept with each, so that a
            # grid is counted, and its queue found, without looking at any run.
            """CREATE TABLE cells (
                grid_id TEXT NOT NULL REFERENCES grids,
                number INTEGER NOT NULL,
                run_id TEXT NOT NULL REFERENCES runs,
                state TEXT NOT NULL,
                PRIMARY KEY (grid_id, number)
            ) WITHOUT ROWID""",
            "CREATE INDEX cells_by_run ON cells (run_id)",
            "CREATE INDEX cells_by_state ON cells (grid_id, state, number)",
            """CREATE TRIGGER cells_follow_their_runs AFTER UPDATE OF state ON runs BEGIN
                UPDATE cells SET state = NEW.state WHERE run_id = NEW.run_id;
            END""",
            # The finite scores of succeeded runs in order: of all ('') and of each grid. Ids begin with their time, so
            # that among equals the older comes first.
            """CREATE TABLE ranked (
                scope TEXT NOT NULL,
                name TEXT NOT NULL,
                value REAL NOT NULL,
                run_id TEXT NOT NULL REFERENCES runs,
                PRIMARY KEY (scope, name, value, run_id)
            ) WITHOUT ROWID""",
            """INSERT INTO ranked SELECT '', scores.name, value, run_id FROM scores JOIN runs USING (run_id)
            WHERE state = 'succeeded' AND value IS NOT NULL""",
            "DROP INDEX scores_in_order",
            "CREATE INDEX scores_not_finite ON scores (name, run_id) WHERE not_finite IS NOT NULL",
            # What is asked for at every command must not depend on how many runs there are, nor on how many of them
            # share a name, a state or an instant.
            "DROP INDEX runs_by_name",
            "CREATE INDEX runs_by_name ON runs (name, created_at, run_id)",
            "DROP INDEX runs_by_state",
            "CREATE INDEX runs_by_state ON runs (state, created_at, run_id)",
            "CREATE INDEX runs_under_way ON runs (instance_id) WHERE ended_at IS NULL AND instance_id IS NOT NULL",
            """CREATE INDEX runs_with_metric ON runs (created_at, run_id, metric)
            WHERE state = 'succeeded' AND metric IS NOT NULL""",
            """CREATE INDEX runs_by_metric ON runs (metric, created_at, run_id, minimize)
            WHERE state = 'succeeded' AND metric IS NOT NULL""",
            "CREATE INDEX runs_by_cell ON runs (cell_key, state, run_id) WHERE cell_key <> ''",
            "CREATE INDEX runs_by_grid ON runs (grid_id) WHERE grid_id IS NOT NULL",
        ),
    ),
    Migration(
        "0005 what travelled beside the code",
        (
            # The state of the files that are shipped and are no part of what a run is: JSON, digests by path
            "CREATE TABLE beside (name TEXT PRIMARY KEY, files TEXT NOT NULL) WITHOUT ROWID",
            "ALTER TABLE attempts ADD COLUMN beside TEXT NOT NULL DEFAULT ''",  # '' where nobody wrote it down
        ),
    ),
    Migration(
        "0006 cells are found by their keys once they have succeeded",
        (
            # Keys are digests: among a million of them a thousand new ones are on as many pages, each to be read and
            # written twice. What has succeeded is all that is asked for, and comes a few at a time.
            "DROP INDEX runs_by_cell",
            "CREATE INDEX runs_by_cell ON runs (cell_key, run_id) WHERE state = 'succeeded' AND cell_key <> ''",
        ),
    ),
    Migration(
        "0007 jump hosts",
        ("ALTER TABLE launches ADD COLUMN ssh_jump TEXT NOT NULL DEFAULT ''",),
    ),
    Migration(
        "0008 what runs were made of, how long units were stopped, runs by script",
        (
            """CREATE TABLE code_files (
                code_digest TEXT NOT NULL,
                path TEXT NOT NULL,
                size INTEGER NOT NULL,
                sha256 TEXT NOT NULL,
                PRIMARY KEY (code_digest, path)
            ) WITHOUT ROWID""",
            "CREATE INDEX code_by_content ON code_files (sha256)",
            "CREATE INDEX runs_by_code ON runs (code_digest)",
            "CREATE TABLE environments (fingerprint TEXT PRIMARY KEY, environment TEXT NOT NULL) WITHOUT ROWID",  # JSON
            "ALTER TABLE units ADD COLUMN stopped_at TEXT",  # since when it is
            "ALTER TABLE units ADD COLUMN stopped_s REAL NOT NULL DEFAULT 0",  # and how long it was before
            "CREATE INDEX runs_by_script ON runs (script, created_at, run_id)",
            """CREATE INDEX runs_with_metric_by_script ON runs (script, created_at, run_id, metric)
            WHERE state = 'succeeded' AND metric IS NOT NULL""",
            "CREATE INDEX attempts_by_unit ON attempts (instance_id, started_at)",
        ),
    ),
    Migration(
        "0009 less is written for each step of a cell",
        (
            # What has succeeded, and is in neither `ranked` nor `done` yet; emptied as a whole
            "CREATE TABLE fresh (run_id TEXT NOT NULL REFERENCES runs)",
            # Cells that have succeeded by their keys, which an index over runs had to have at once. No REFERENCES: a
            # run that is removed would be looked for in all of it.
            """CREATE TABLE done (
                cell_key TEXT NOT NULL,
                run_id TEXT NOT NULL,
                PRIMARY KEY (cell_key, run_id)
            ) WITHOUT ROWID""",
            """INSERT INTO done SELECT cell_key, run_id FROM runs INDEXED BY runs_by_cell
            WHERE state = 'succeeded' AND cell_key <> '' ORDER BY cell_key, run_id""",
            "DROP INDEX runs_by_cell",
            # The newest run of each script that has succeeded and has its primary metric. It took three indexes of all
            # runs to find that one; no REFERENCES, as above.
            """CREATE TABLE primary_metrics (
                script TEXT NOT NULL,
                metric TEXT NOT NULL,
                created_at TEXT NOT NULL,
                run_id TEXT NOT NULL,
                minimize INTEGER NOT NULL,
                PRIMARY KEY (script, metric)
            ) WITHOUT ROWID""",
            "CREATE INDEX primary_metrics_by_time ON primary_metrics (created_at, run_id)",
            """INSERT INTO primary_metrics SELECT script, metric, created_at, run_id, minimize FROM runs
            WHERE state = 'succeeded' AND metric IS NOT NULL
            AND EXISTS (SELECT 1 FROM scores WHERE scores.run_id = runs.run_id AND scores.name = runs.metric)
            ORDER BY created_at, run_id ON CONFLICT DO UPDATE
            SET created_at = excluded.created_at, run_id = excluded.run_id, minimize = excluded.minimize""",
            "DROP INDEX runs_with_metric",
            "DROP INDEX runs_by_metric",
            "DROP INDEX runs_with_metric_by_script",
            # Without the time each attempt of many units is on fewer pages; those of one are sorted when asked for.
            "DROP INDEX attempts_by_unit",
            "CREATE INDEX attempts_by_unit ON attempts (instance_id)",
        ),
    ),
    Migration(
        "0010 scores that were written as whole numbers",
        ("ALTER TABLE scores ADD COLUMN whole INTEGER NOT NULL DEFAULT 0",),
    ),
)


def migrate(connection: sqlite3.Connection, migrations: tuple[Migration, ...] = MIGRATIONS) -> None:
    """Bring the tables up to the last migration. Raises LedgerError where a newer cloudrun has been here."""
    if _pending(connection, migrations):
        connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied_at TEXT NOT NULL)")
    for migration in _pending(connection, migrations):
        _apply(connection, migration)


def _pending(connection: sqlite3.Connection, migrations: tuple[Migration, ...]) -> list[Migration]:
    has_table = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migrations'"
    ).fetchone()
    applied = {row[0] for row in connection.execute("SELECT name FROM migrations")} if has_table else set()
    if unknown := applied - {migration.name for migration in migrations}:
        raise LedgerError(
            f"the ledger was written by a newer cloudrun: this one does not know {', '.join(sorted(unknown))!r}",
            next_step="upgrade cloudrun in this environment",
        )
    return [migration for migration in migrations if migration.name not in applied]


def _apply(connection: sqlite3.Connection, migration: Migration) -> None:
    record = (migration.name, utc_text(datetime.now(UTC)))
    with atomic(connection):
        if not connection.execute("INSERT OR IGNORE INTO migrations VALUES (?, ?)", record).rowcount:
            return  # another process was faster
        for statement in migration.statements:
            connection.execute(statement)
