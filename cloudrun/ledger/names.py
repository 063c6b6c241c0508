"""Which scripts there are, and what their runs have: scores and parameters by name."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cloudrun.ledger.database import Database
from cloudrun.ledger.rows import text

FUNCTIONS = (
    ".cloudrun/calls/"  # what pools of functions are sent as, each as a script of its own: to people they are one
)


def of_script(script: str) -> tuple[str, list[str]]:
    """SQL over the table `runs`, and what its question marks are."""
    if script == FUNCTIONS:
        return "runs.script >= ? AND runs.script < ?", [FUNCTIONS, FUNCTIONS[:-1] + chr(ord("/") + 1)]
    return "runs.script = ?", [text(script)]


@dataclass(frozen=True)
class Known:
    """Names that some run has, those of the newest runs first."""

    runs: int  # how many were looked at
    scores: tuple[str, ...]
    params: tuple[str, ...]


class Names:
    """What a table of runs can be asked for."""

    _database: Database

    def scripts(self) -> list[str]:
        """Every script that a run is of, the one with the newest run first; all functions are one, `FUNCTIONS`. A step
        of the index for each."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """WITH RECURSIVE each(script) AS (
                    SELECT min(script) FROM runs
                    UNION ALL
                    SELECT (SELECT min(script) FROM runs WHERE script > each.script) FROM each
                    WHERE each.script IS NOT NULL
                )
                SELECT script, (SELECT max(created_at) FROM runs WHERE runs.script = each.script) AS newest
                FROM each WHERE script IS NOT NULL ORDER BY newest DESC, script"""
            )
            found = [str(row["script"]) for row in rows]
        return list(dict.fromkeys(FUNCTIONS if each.startswith(FUNCTIONS) else each for each in found))

    def names(self, grid_id: str | None = None, *, script: str | None = None, limit: int | None = None) -> Known:
        """What runs (cells of that grid, runs of that script) have, of the newest `limit` of them."""
        source, values = "FROM runs", list[str | int]()
        if grid_id is not None:
            source, values = "FROM cells CROSS JOIN runs USING (run_id) WHERE cells.grid_id = ?", [grid_id]
        elif script is not None:
            condition, names = of_script(script)
            source, values = f"FROM runs WHERE {condition}", [*names]
        chosen = f"{source} ORDER BY runs.created_at DESC, runs.run_id DESC LIMIT ?"
        values.append(-1 if limit is None else limit)
        with self._database.reading() as connection:
            runs, params = 0, dict[str, None]()
            for row in connection.execute(
                f"SELECT runs.params {chosen}", values
            ):  # of all runs it may be: none is kept
                runs += 1
                params.update(dict.fromkeys(json.loads(row[0])))
            scores = connection.execute(
                f"""SELECT DISTINCT scores.name FROM (SELECT runs.run_id {chosen}) AS chosen
                CROSS JOIN scores USING (run_id) ORDER BY scores.run_id DESC, position""",  # noqa: S608
                values,
            )
            found = tuple(dict.fromkeys(row[0] for row in scores))
        return Known(runs, found, tuple(params))
