"""What has succeeded: by its scores (`ranked`), by its cell's key (`done`), and which metric was the newest.

Scores and keys are orders that runs do not come in: each one that ends has its places on a dozen pages of the file, far
from the last one's, and a page is written twice. So cells, which come in their thousands, wait in `fresh` until there
are many of them; whoever reads looks there too, and reading stays reading. Each function is a part of its caller's
transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable

from cloudrun.ledger.names import of_script
from cloudrun.ledger.rows import as_json, text

FRESH_MOST = 4000  # looked through in some 10 ms, and so many share their pages in an order of a hundred thousand


_COLUMNS = "script, metric, created_at, run_id, minimize"
_HAS_METRIC = """state = 'succeeded' AND metric IS NOT NULL
    AND EXISTS (SELECT 1 FROM scores WHERE scores.run_id = runs.run_id AND scores.name = runs.metric)"""


def note(connection: sqlite3.Connection, run_ids: Collection[str]) -> None:
    """These have just succeeded."""
    if not run_ids:
        return
    chosen = as_json(list(run_ids))
    connection.execute(
        f"""INSERT INTO primary_metrics SELECT {_COLUMNS} FROM json_each(?) CROSS JOIN runs ON runs.run_id = value
        WHERE {_HAS_METRIC} ORDER BY created_at, run_id ON CONFLICT DO UPDATE
        SET created_at = excluded.created_at, run_id = excluded.run_id, minimize = excluded.minimize
        WHERE (excluded.created_at, excluded.run_id) > (primary_metrics.created_at, primary_metrics.run_id)""",  # noqa: S608
        [chosen],
    )
    connection.execute("INSERT INTO fresh (run_id) SELECT value FROM json_each(?)", [chosen])
    row = connection.execute(
        """SELECT (SELECT max(rowid) FROM fresh) AS waiting,
        EXISTS (SELECT 1 FROM json_each(?) CROSS JOIN cells ON cells.run_id = value) AS of_a_grid""",
        [chosen],
    ).fetchone()
    if row["waiting"] >= FRESH_MOST or not row["of_a_grid"]:
        settle(connection)


def settle(connection: sqlite3.Connection) -> None:
    """Let nothing wait. Sorted first, so that each page is come to once; CROSS JOIN is in this order: from the few."""
    if connection.execute("SELECT 1 FROM fresh LIMIT 1").fetchone() is None:
        return
    connection.execute(
        """INSERT OR IGNORE INTO ranked SELECT '', name, scores.value, run_id
        FROM fresh CROSS JOIN scores USING (run_id) WHERE scores.value IS NOT NULL ORDER BY 2, 3, 4"""
    )
    connection.execute(
        """INSERT OR IGNORE INTO ranked SELECT grid_id, name, scores.value, run_id
        FROM fresh CROSS JOIN cells USING (run_id) CROSS JOIN scores USING (run_id)
        WHERE scores.value IS NOT NULL ORDER BY 1, 2, 3, 4"""
    )
    connection.execute(
        """INSERT OR IGNORE INTO done SELECT cell_key, run_id FROM fresh CROSS JOIN runs USING (run_id)
        WHERE cell_key <> '' ORDER BY 1, 2"""
    )
    connection.execute("DELETE FROM fresh")


def forget(connection: sqlite3.Connection, run_id: str) -> None:
    """Where nothing waits: take the run, which is still there, out of both."""
    connection.execute("DELETE FROM ranked WHERE run_id = ?", [run_id])
    of_it = "SELECT cell_key FROM runs WHERE run_id = ?"
    connection.execute(f"DELETE FROM done WHERE cell_key = ({of_it}) AND run_id = ?", (run_id, run_id))  # noqa: S608


def forgotten(connection: sqlite3.Connection) -> None:
    """Some runs are gone: the newest of a metric is one of those that are there."""
    gone = connection.execute(
        """SELECT script, metric FROM primary_metrics
        WHERE NOT EXISTS (SELECT 1 FROM runs WHERE runs.run_id = primary_metrics.run_id)"""
    ).fetchall()
    for script, metric in gone:
        connection.execute("DELETE FROM primary_metrics WHERE script = ? AND metric = ?", (script, metric))
        connection.execute(
            f"""INSERT INTO primary_metrics SELECT {_COLUMNS} FROM runs INDEXED BY runs_by_script
            WHERE script = ? AND metric = ? AND {_HAS_METRIC} ORDER BY created_at DESC, run_id DESC LIMIT 1""",  # noqa: S608
            (script, metric),
        )


def fresh_values(
    connection: sqlite3.Connection, grid_id: str | None, metric: str, more: str = "", values: Iterable[object] = ()
) -> list[tuple[float, str]]:
    """Finite score and run of those that wait, in no order; `more` and its `values` are conditions on `runs`."""
    cell = "AND EXISTS (SELECT 1 FROM cells WHERE cells.run_id = fresh.run_id AND cells.grid_id = ?)"
    rows = connection.execute(
        f"""SELECT scores.value, run_id FROM fresh CROSS JOIN scores USING (run_id) CROSS JOIN runs USING (run_id)
        WHERE scores.name = ? AND scores.value IS NOT NULL {cell if grid_id else ""} {more}""",  # noqa: S608
        [text(metric), *([grid_id] if grid_id else []), *values],
    )
    return [(row[0], row[1]) for row in rows]


def by_cell(connection: sqlite3.Connection, keys: Iterable[str]) -> dict[str, str]:
    """The newest run that has succeeded with each of these keys, where one has."""
    chosen = as_json(list(keys))
    found: dict[str, str] = {}
    for query in (
        "SELECT cell_key, max(run_id) FROM done WHERE cell_key IN (SELECT value FROM json_each(?)) GROUP BY cell_key",
        """SELECT cell_key, max(run_id) FROM fresh CROSS JOIN runs USING (run_id)
        WHERE cell_key <> '' AND cell_key IN (SELECT value FROM json_each(?)) GROUP BY cell_key""",
    ):
        for key, run_id in connection.execute(query, [chosen]):
            found[key] = max(run_id, found.get(key, ""))
    return found


def newest_metric(
    connection: sqlite3.Connection, script: str | None = None, metric: str | None = None
) -> tuple[str, bool] | None:
    """The primary metric of the newest run (of that script, with that metric) that has it, and whether it is to be
    small; None where there is no such run."""
    condition, values = ("1", list[str]()) if script is None else of_script(script)
    if metric is not None:
        condition, values = f"{condition} AND metric = ?", [*values, text(metric)]
    row = connection.execute(
        f"""SELECT metric, minimize FROM primary_metrics AS runs WHERE {condition}
        ORDER BY created_at DESC, run_id DESC LIMIT 1""",  # noqa: S608
        values,
    ).fetchone()
    return None if row is None else (str(row["metric"]), bool(row["minimize"]))
