"""Ids and names for a shell to complete: read in milliseconds, without waiting for anybody and without a change."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cloudrun.ledger.home import DATABASE, FOLDER

MOST = 200  # of a kind, the newest: more is nothing to choose from
_BUSY_S = 0.1
_QUERIES = {
    "run": "SELECT run_id, name FROM runs ORDER BY created_at DESC, run_id DESC LIMIT ?",
    "grid": "SELECT grid_id, name FROM grids ORDER BY created_at DESC, grid_id DESC LIMIT ?",
    "unit": """SELECT instance_id, instance_type FROM units WHERE ended_at IS NULL
        ORDER BY created_at DESC, instance_id LIMIT ?""",
}
KINDS = tuple(_QUERIES)


def names(project: Path, kind: str) -> list[tuple[str, str]]:
    """(id, what to say of it), newest first. Empty where there is no ledger, or none that can be read at once."""
    database = project / FOLDER / DATABASE
    if not database.is_file():
        return []
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as connection:
            return [(str(row[0]), str(row[1])) for row in connection.execute(_QUERIES[kind], [MOST])]
    except sqlite3.Error:
        return []
