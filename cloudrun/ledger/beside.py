"""What travelled beside the code: the files of a project that are no part of a run's identity, as they were then."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from cloudrun.core.states import RunState
from cloudrun.ledger.database import Database


class Beside:
    _database: Database

    def keep_beside(self, files: Mapping[str, str]) -> str:
        """Remember digests of files by path. Returns the name of this state of them, for `begin_attempt`."""
        document = json.dumps(dict(sorted(files.items())), separators=(",", ":"))
        name = hashlib.sha256(document.encode()).hexdigest()[:16]
        with self._database.reading() as connection:
            if connection.execute("SELECT 1 FROM beside WHERE name = ?", [name]).fetchone():
                return name
        with self._database.writing() as connection:
            connection.execute("INSERT OR IGNORE INTO beside VALUES (?, ?)", (name, document))
        return name

    def beside(self, name: str) -> dict[str, str]:
        """Digests by path, as `keep_beside` was given them; none for a name that is not known."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT files FROM beside WHERE name = ?", [name]).fetchone()
            return json.loads(row[0]) if row is not None else {}

    def came_with(self, run_id: str) -> set[str]:
        """Digests of all such files that any of a run's attempts was given."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT files FROM attempts JOIN beside ON beside.name = attempts.beside WHERE run_id = ?", [run_id]
            )
            return {digest for row in rows for digest in json.loads(row["files"]).values()}

    def beside_cells(self, grid_id: str) -> list[tuple[dict[str, str], int]]:
        """Each state of such files that cells of the grid succeeded with, and how many did."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT files, count(*) FROM cells JOIN attempts USING (run_id)
                JOIN beside ON beside.name = attempts.beside
                WHERE cells.grid_id = ? AND cells.state = ? AND attempts.state = ? GROUP BY beside.name""",
                (grid_id, str(RunState.SUCCEEDED), str(RunState.SUCCEEDED)),
            )
            return [(json.loads(files), count) for files, count in rows]
