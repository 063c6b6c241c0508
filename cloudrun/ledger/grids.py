"""Grids and their cells: who goes on with one, which run is which cell, and how far it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from cloudrun.core.clock import utc_text
from cloudrun.core.errors import LedgerError, NotFound
from cloudrun.core.records import CellRecord, GridRecord, RunRecord
from cloudrun.core.states import GRID, GridState, RunState
from cloudrun.ledger import successes
from cloudrun.ledger.database import Database
from cloudrun.ledger.history import ITS_OWN
from cloudrun.ledger.missing import GRID_IDS, no_such
from cloudrun.ledger.rows import (
    as_json,
    cell_record,
    check_move,
    find_id,
    grid_columns,
    grid_record,
    insert,
    marks,
    run_records,
    runs_columns,
    text,
)

_REPLACED = (RunState.FAILED, RunState.CANCELLED, RunState.LOST)  # such a cell may be tried again, as another run


class Grids:
    """A grid is in one client's hands at a time, and each of its cells is one run, its own or an earlier grid's."""

    _database: Database

    # -- grids

    def begin_grid(self, grid: GridRecord) -> None:
        """A new grid, open, none of its cells there yet. Raises LedgerError where that id is there already."""
        if grid.state is not GridState.OPEN:
            raise LedgerError(f"a grid begins as open, not {grid.state}")
        with self._database.writing() as connection:
            successes.settle(connection)  # its cells are about to be looked for among all that have succeeded
            insert(connection, "grids", grid_columns(grid))

    def grid(self, reference: str) -> GridRecord:
        """One grid by its id, else the newest of that name, else by the beginning of its id ("g-" may be left out).

        Raises UsageError where several ids begin so, NotFound where there is none.
        """
        with self._database.reading() as connection:
            grid_id = find_id(connection, "grids", "grid_id", GRID_IDS, reference)
            if grid_id is None:
                raise no_such(connection, "grid", reference)
            return _grid(connection, grid_id)

    def grids_with(self, run_ids: Iterable[str]) -> list[str]:
        """Ids of the grids that have any of these runs as a cell, the newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT DISTINCT grid_id FROM cells WHERE run_id IN (SELECT value FROM json_each(?))
                ORDER BY grid_id DESC""",
                [as_json(list(run_ids))],
            )
            return [row[0] for row in rows]

    def grids_called(self, name: str) -> list[str]:
        """Ids of the grids of that name, the newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT grid_id FROM grids WHERE name = ? ORDER BY created_at DESC, grid_id DESC", [text(name)]
            )
            return [row[0] for row in rows]

    def grids(self, *, limit: int | None = None, states: Sequence[GridState] = tuple(GridState)) -> list[GridRecord]:
        """Grids in these states, the newest first."""
        with self._database.reading() as connection:
            rows = connection.execute(
                f"""SELECT * FROM grids WHERE state IN ({marks(states)})
                ORDER BY created_at DESC, grid_id DESC LIMIT ?""",  # noqa: S608  only marks
                (*map(str, states), -1 if limit is None else limit),
            )
            return [grid_record(row) for row in rows]

    def find_grid(self, identity: str) -> GridRecord | None:
        """The newest grid that the same command has made, whatever became of it."""
        with self._database.reading() as connection:
            row = connection.execute(
                "SELECT * FROM grids WHERE identity = ? ORDER BY created_at DESC, grid_id DESC LIMIT 1", [identity]
            ).fetchone()
            return None if row is None else grid_record(row)

    def take_grid(self, grid_id: str, client_id: str, *, of: str) -> bool:
        """Put a grid into a client's hands ("" for nobody's), if it still is in those of client `of`; false where
        another was quicker."""
        with self._database.writing() as connection:
            taken = connection.execute(
                "UPDATE grids SET client_id = ? WHERE grid_id = ? AND client_id = ?", (client_id, grid_id, of)
            )
            return taken.rowcount == 1

    def guard_grid(self, grid_id: str, client_id: str) -> None:
        """Raises LedgerError where another client has taken the grid. First thing in a `together`, it holds for all
        that is written there."""
        with self._database.reading() as connection:
            if _grid(connection, grid_id).client_id != client_id:
                raise LedgerError(
                    f"another process goes on with grid {grid_id}", next_step="cloudrun ps shows how far it is"
                )

    def update_grid(
        self, grid_id: str, *, budget_usd: float | None, settings: Mapping[str, Any], wishes: Mapping[str, Any]
    ) -> None:
        """What the command that goes on with it says now; `wishes` are kept in its `spec`. Raises NotFound."""
        with self._database.writing() as connection:
            spec = {**_grid(connection, grid_id).spec, "wishes": dict(wishes)}
            connection.execute(
                "UPDATE grids SET budget_usd = ?, settings = ?, spec = ? WHERE grid_id = ?",
                (budget_usd, as_json(dict(settings)), as_json(spec), grid_id),
            )

    def reopen_grid(self, grid_id: str) -> None:
        """Go on with a grid that had stopped. Raises NotFound, LedgerError where it is open, done or cancelled."""
        with self._database.writing() as connection:
            check_move(GRID, f"grid {grid_id}", _grid(connection, grid_id).state, GridState.OPEN)
            connection.execute(
                "UPDATE grids SET state = ?, ended_at = NULL, detail = '' WHERE grid_id = ?",
                (str(GridState.OPEN), grid_id),
            )

    def end_grid(self, grid_id: str, state: GridState, detail: str = "") -> None:
        """Raises NotFound, LedgerError for a transition that `states.GRID` does not have."""
        if state is GridState.OPEN:
            raise LedgerError("a grid does not end as open")
        with self._database.writing() as connection:
            check_move(GRID, f"grid {grid_id}", _grid(connection, grid_id).state, state)
            connection.execute(
                "UPDATE grids SET state = ?, ended_at = ?, detail = ? WHERE grid_id = ?",
                (str(state), utc_text(datetime.now(UTC)), text(detail), grid_id),
            )
            successes.settle(connection)

    # -- cells

    def add_cells(self, grid_id: str, cells: Iterable[tuple[int, RunRecord | str]]) -> None:
        """All these cells by number, or none: each a new run, or the id of one that is in the ledger already.

        A number that is there is refused, unless its run is over and has not succeeded: then the new one takes its
        place. The same run again is fine. Raises NotFound, LedgerError.
        """
        new: dict[int, RunRecord] = {}
        known: dict[int, str] = {}
        for number, run in cells:
            if number in new or number in known:
                raise LedgerError(f"cell {number} of grid {grid_id} comes twice")
            if isinstance(run, str):
                known[number] = run
            elif run.state is not RunState.QUEUED:
                raise LedgerError(f"a run begins as queued, not {run.state}")
            else:
                new[number] = run
        runs = {**known, **{number: run.run_id for number, run in new.items()}}
        with self._database.writing() as connection:
            grid = _grid(connection, grid_id)
            if grid.state is not GridState.OPEN:
                raise LedgerError(f"grid {grid_id} is {grid.state}: no cell can be added")
            _check_numbers(connection, grid, runs)
            if known:  # one that waits to be ranked would be so twice
                successes.settle(connection)
            insert(connection, "runs", *({**columns, "grid_id": grid_id} for columns in runs_columns(new.values())))
            added = connection.executemany(
                """INSERT INTO cells SELECT ?, ?, run_id, state FROM runs WHERE run_id = ?
                ON CONFLICT DO UPDATE SET run_id = excluded.run_id, state = excluded.state""",
                [(grid_id, number, run_id) for number, run_id in runs.items()],
            )
            if added.rowcount != len(runs) and runs:
                raise NotFound(f"a run that was to be a cell of grid {grid_id} is not in the ledger")
            connection.execute(
                # CROSS JOIN is in this order: the planner would rather go through all runs that have succeeded
                """INSERT OR IGNORE INTO ranked SELECT ?, scores.name, scores.value, runs.run_id
                FROM json_each(?) AS known CROSS JOIN runs ON runs.run_id = known.value
                CROSS JOIN scores ON scores.run_id = runs.run_id
                WHERE runs.state = ? AND scores.value IS NOT NULL""",
                (grid_id, as_json(list(known.values())), str(RunState.SUCCEEDED)),
            )

    def next_cell(self, grid_id: str) -> int:
        """The number after the highest that is there: whoever adds cells in order goes on there."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT max(number) FROM cells WHERE grid_id = ?", [grid_id]).fetchone()
            return 0 if row[0] is None else int(row[0]) + 1

    def cells(
        self, grid_id: str, *, after: int = -1, limit: int = 1000, states: Sequence[RunState] | None = None
    ) -> list[CellRecord]:
        """At most `limit` cells by number, from the one after `after` on: call again with the last one's number."""
        where = "" if states is None else f"AND state IN ({marks(states)})"
        with self._database.reading() as connection:
            rows = connection.execute(
                f"""SELECT number, run_id, state FROM cells WHERE grid_id = ? AND number > ? {where}
                ORDER BY number LIMIT ?""",  # noqa: S608  only marks
                (grid_id, after, *map(str, states or ()), limit),
            )
            return [cell_record(row) for row in rows]

    def queued_cells(
        self, grid_id: str, limit: int = 1000, *, after: int = -1, numbers: Sequence[int] | None = None
    ) -> list[tuple[int, RunRecord]]:
        """As `cells`, of those whose turn has not come: number and run; with `numbers`, of these alone."""
        with self._database.reading() as connection:
            if numbers is None:
                cells = self.cells(grid_id, after=after, limit=limit, states=[RunState.QUEUED])
            else:
                rows = connection.execute(
                    """SELECT number, run_id, state FROM cells WHERE grid_id = ? AND state = ?
                    AND number IN (SELECT value FROM json_each(?))""",
                    (grid_id, str(RunState.QUEUED), as_json(list(numbers))),
                )
                cells = [cell_record(row) for row in rows]
            queued = {cell.run_id: cell.number for cell in cells}
            return [(queued[run.run_id], run) for run in run_records(connection, queued)]

    def counts(self, grid_id: str) -> dict[RunState, int]:
        """How many cells are in each state, also where none is; those that are not added yet are in none."""
        with self._database.reading() as connection:
            rows = connection.execute("SELECT state, count(*) FROM cells WHERE grid_id = ? GROUP BY state", [grid_id])
            return {**dict.fromkeys(RunState, 0), **{RunState(row[0]): row[1] for row in rows}}

    def timed(self, script: str, limit: int = 2000) -> list[tuple[dict[str, Any], float]]:
        """Parameters and seconds (of shipping, running and pulling) of the newest runs of a script that succeeded."""
        with self._database.reading() as connection:
            rows = connection.execute(
                """SELECT params, timings FROM (SELECT script, params, timings FROM runs
                WHERE state = ? ORDER BY created_at DESC LIMIT ?) WHERE script = ? LIMIT ?""",
                (str(RunState.SUCCEEDED), 10 * limit, script, limit),  # what is older than others' runs is too old
            ).fetchall()
        found = [(json.loads(params), json.loads(timings)) for params, timings in rows]
        return [(params, sum(took.get(name, 0.0) for name in ITS_OWN)) for params, took in found]

    def succeeded_by_cell(self, keys: Iterable[str]) -> dict[str, str]:
        """For each cell key with which some run has succeeded, of whatever grid: the newest such run's id."""
        with self._database.reading() as connection:
            return successes.by_cell(connection, keys)


def _grid(connection: sqlite3.Connection, grid_id: str) -> GridRecord:
    row = connection.execute("SELECT * FROM grids WHERE grid_id = ?", [grid_id]).fetchone()
    if row is None:
        raise NotFound(f"no grid {grid_id} in the ledger", next_step="cloudrun results")
    return grid_record(row)


def _check_numbers(connection: sqlite3.Connection, grid: GridRecord, runs: Mapping[int, str]) -> None:
    """Raises LedgerError where one is none of the grid's, or is taken."""
    for number in runs:
        if not 0 <= number < grid.cells:
            raise LedgerError(f"grid {grid.grid_id} has {grid.cells} cells, and none with the number {number}")
    there = connection.execute(
        "SELECT number, run_id, state FROM cells WHERE grid_id = ? AND number IN (SELECT value FROM json_each(?))",
        (grid.grid_id, as_json(list(runs))),
    )
    for cell in map(cell_record, there):
        if cell.run_id != runs[cell.number] and cell.state not in _REPLACED:
            raise LedgerError(f"cell {cell.number} of grid {grid.grid_id} is {cell.state} already, as {cell.run_id}")
