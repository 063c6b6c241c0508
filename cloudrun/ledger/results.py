"""Which runs were best, and tables of runs: sorted and filtered by the database, read a few at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import successes
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.ledger.conditions import Condition, condition_of, expression_of, param, per_usd_of
from cloudrun.ledger.database import Database
from cloudrun.ledger.missing import no_score, no_script, no_such
from cloudrun.ledger.names import Names, of_script
from cloudrun.ledger.rows import run_records, text
from cloudrun.ledger.run import Ranking, Run
from cloudrun.plan.filters import PER_USD, Column, Comparison, Value, parse_column
from cloudrun.plan.ranking import better_is_smaller, rank_key

BATCH = 200  # runs in memory at a time
NEWEST = 1000  # runs whose names are looked at first
RECENT = 100  # runs whose own scores are looked at, where none has the one that was to rank it


@dataclass(frozen=True)
class Ordering:
    """How results are sorted: by `column`, else by the score `metric` (None: nobody has one) or that per dollar."""

    metric: str | None
    minimize: bool
    per_usd: bool = False
    column: Column | None = None

    @property
    def usd_key(self) -> Condition:
        return per_usd_of(self.metric or "", minimize=self.minimize)


Valued = tuple[float, str]  # a finite score, and whose it is


class Results(Names):
    """Rankings walk an index of finite scores of succeeded runs (`ranked`): the time does not depend on how many runs
    there are, nor on how many have the same score. Those that are not in it yet (`successes`) are a limited number."""

    _database: Database
    _artifacts: ArtifactStore

    def ranking(
        self,
        metric: str | None = None,
        *,
        minimize: bool | None = None,
        limit: int | None = None,
        grid_id: str | None = None,
        script: str | None = None,
    ) -> list[Run]:
        """Succeeded runs (cells of that grid, runs of that script) that have this score, best first, the older first
        among equals.

        NaN and infinite scores come last, whichever way is better. `metric` None is the newest succeeded run's primary
        one. `minimize` None is what the newest run with that primary metric says, else what the name says.

        Raises UsageError, with the nearest name, for a `metric` that none of these runs has, where they have others:
        it is mistyped; for a `script` that no run is of, too, and NotFound for a `grid_id` that is not there. Where
        none has any score yet there is nothing to rank, and that is no error.
        """
        records: list[RunRecord] = []
        with self._database.reading() as connection:
            by = metric or self.primary_metric(grid_id, script=script)
            if by is not None:
                ascending = self.direction(by, script=script) if minimize is None else minimize
                condition = condition_of((), script)
                records = run_records(connection, _ranked(connection, grid_id, by, ascending, condition, limit))
            if not records and limit != 0:
                self._check_names(connection, metric, grid_id, script)
        return Ranking(Run.of(record, self._artifacts) for record in records)

    def has_score(self, metric: str, grid_id: str | None = None, *, script: str | None = None) -> bool:
        """Whether some succeeded run (cell of that grid, run of that script) has that score."""
        condition = condition_of((), script)
        with self._database.reading() as connection:
            if script is not None and grid_id is None and not _may_have(connection, metric, condition):
                return False
            return bool(_ranked(connection, grid_id, metric, False, condition, 1))

    def best(self, grid_id: str, metric: str | None = None, minimize: bool | None = None) -> Run | None:
        """The best cell of a grid so far; None where none has that score yet."""
        if metric is not None and not self.has_score(metric, grid_id):
            return None
        return next(iter(self.ranking(metric, minimize=minimize, limit=1, grid_id=grid_id)), None)

    def results(
        self,
        grid_id: str | None = None,
        *,
        script: str | None = None,
        metric: str | None = None,
        minimize: bool | None = None,
        where: Sequence[Comparison] = (),
        sort: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[Run]:
        """Runs (cells of that grid, runs of that script) for which all of `where` holds, a few in memory at a time.

        `sort` None: as `ranking`, turned round by `reverse`; below them those without that score, the newest first, of
        a grid by number. `sort` with a score's name is that ranking; "score_per_usd" ranks by the metric's score per
        dollar; any other column sorts from small to large. Runs without what is sorted by come last.
        """
        with self._database.reading() as connection:
            connection.create_function("param", 2, param, deterministic=True)
            order = self.ordering(grid_id, script=script, metric=metric, minimize=minimize, sort=sort)
            condition = condition_of(where, script)
            if order.column is not None:
                ids = _sorted(connection, grid_id, expression_of(order.column), reverse, condition, limit)
            elif order.per_usd:
                ids = _sorted(connection, grid_id, order.usd_key, not reverse, condition, limit)
            else:
                ascending = order.minimize != reverse
                ids = _ranking_and_others(connection, grid_id, order.metric, ascending, condition, limit)
        return self._read(ids)

    def ranks(
        self,
        order: Ordering,
        grid_id: str | None = None,
        *,
        script: str | None = None,
        where: Sequence[Comparison] = (),
    ) -> dict[str, int]:
        """The place, from 1, of each run that has what `order` ranks by, however `results` is sorted."""
        with self._database.reading() as connection:
            connection.create_function("param", 2, param, deterministic=True)
            condition = condition_of(where, script)
            if order.per_usd:
                ids = _sorted(connection, grid_id, order.usd_key, True, condition, None, only_with_key=True)
            elif order.metric is None:
                return {}
            elif where or script is None:
                ids = _ranked(connection, grid_id, order.metric, order.minimize, condition, None)
            else:  # an index alone says which runs are of a script: no row of theirs need be read
                of_it, values = of_script(script)
                its = set(_ids(connection, f"SELECT run_id FROM runs WHERE {of_it}", values))  # noqa: S608
                ids = _ranked(connection, grid_id, order.metric, order.minimize, ("", []), None)
                ids = [each for each in ids if each in its]
        return {run_id: place for place, run_id in enumerate(ids, 1)}

    def count(self, grid_id: str | None = None, *, script: str | None = None, where: Sequence[Comparison] = ()) -> int:
        """How many runs `results` would list without a limit."""
        with self._database.reading() as connection:
            connection.create_function("param", 2, param, deterministic=True)
            more, values = condition_of(where, script)
            source, of_grid = _source(grid_id)
            row = connection.execute(f"SELECT count(*) {source} {more}", [*of_grid, *values]).fetchone()
            return int(row[0])

    def ordering(
        self,
        grid_id: str | None = None,
        *,
        script: str | None = None,
        metric: str | None,
        minimize: bool | None,
        sort: str | None,
    ) -> Ordering:
        """What `results` makes of these. Raises UsageError for a column that no run can have."""
        with self._database.reading():
            column = None if sort is None or sort == PER_USD else parse_column(sort)
            if column is not None and self._is_score(grid_id, column):
                metric, column = column.name, None
            metric = metric or self.primary_metric(grid_id, script=script)
            if minimize is None:
                minimize = metric is not None and self.direction(metric, script=script)
        return Ordering(metric, minimize, sort == PER_USD, column)

    def primary_metric(self, grid_id: str | None = None, *, script: str | None = None) -> str | None:
        """The primary score of the newest succeeded run (of that script, of that grid's last cells) that has it; where
        the newest have none that is called so, the first that one of them has."""
        with self._database.reading() as connection:
            if grid_id is None:
                newest = successes.newest_metric(connection, script)
                return self._first_score(None, script) if newest is None else newest[0]
            cells = connection.execute(
                """SELECT run_id, metric FROM cells INDEXED BY cells_by_state CROSS JOIN runs USING (run_id)
                WHERE cells.grid_id = ? AND cells.state = 'succeeded' ORDER BY number DESC LIMIT 100""",
                [grid_id],
            )
            for run_id, metric in cells:
                has = "SELECT 1 FROM scores WHERE run_id = ? AND name = ?"
                if connection.execute(has, (run_id, metric)).fetchone():
                    return str(metric)
        return self._first_score(grid_id, script)

    def _first_score(self, grid_id: str | None, script: str | None) -> str | None:
        """Of the newest runs the first score that one gave: not the one that was asked for, then."""
        more, values = condition_of((), script)
        source, of_grid = _source(grid_id)
        chosen = f"SELECT runs.run_id {source} {more} AND runs.state = ? ORDER BY runs.created_at DESC LIMIT {RECENT}"
        with self._database.reading() as connection:
            row = connection.execute(
                f"""SELECT name FROM ({chosen}) CROSS JOIN scores USING (run_id)
                WHERE position = 0 ORDER BY run_id DESC LIMIT 1""",  # noqa: S608
                [*of_grid, *values, str(RunState.SUCCEEDED)],
            ).fetchone()
        return None if row is None else str(row["name"])

    def direction(self, metric: str, *, script: str | None = None) -> bool:
        """Whether smaller is better: as the newest run (of that script) says that has it as its primary metric, else by
        its name."""
        with self._database.reading() as connection:
            newest = successes.newest_metric(connection, script, metric)
        return better_is_smaller(metric) if newest is None else newest[1]

    def _check_names(
        self, connection: sqlite3.Connection, metric: str | None, grid_id: str | None, script: str | None
    ) -> None:
        """Raises UsageError or NotFound where something that was asked for is not there."""
        if grid_id and not connection.execute("SELECT 1 FROM grids WHERE grid_id = ?", [grid_id]).fetchone():
            raise no_such(connection, "grid", grid_id)
        scripts = self.scripts() if script is not None else []
        if script is not None and scripts and script not in scripts:
            raise no_script(script, scripts)
        if metric is None:
            return
        for most in (NEWEST, None):  # all of a large ledger only where its newest runs do not tell
            known = self.names(grid_id, script=script, limit=most)
            if metric in known.scores:
                return
            if known.runs < NEWEST:
                break
        if known.scores:
            raise no_score(metric, known.scores)

    def _is_score(self, grid_id: str | None, column: Column) -> bool:
        if column.kind != "any":
            return column.kind == "score"
        with self._database.reading() as connection:
            values = (grid_id or "", text(column.name))
            found = connection.execute("SELECT 1 FROM ranked WHERE scope = ? AND name = ? LIMIT 1", values).fetchone()
            return found is not None or bool(successes.fresh_values(connection, grid_id, column.name))

    def _read(self, ids: Sequence[str]) -> Iterator[Run]:
        remaining = iter(ids)
        while batch := list(islice(remaining, BATCH)):
            records: list[RunRecord]
            with self._database.reading() as connection:
                records = run_records(connection, batch)
            yield from (Run.of(record, self._artifacts) for record in records)


# -- ids in order ----------------------------------------------------------------------------------------------------


def _ids(connection: sqlite3.Connection, query: str, values: Sequence[object]) -> list[str]:
    return [row[0] for row in connection.execute(query, values)]


def _ranking_and_others(
    connection: sqlite3.Connection,
    grid_id: str | None,
    metric: str | None,
    ascending: bool,
    condition: Condition,
    limit: int | None,
) -> list[str]:
    ranked = [] if metric is None else _ranked(connection, grid_id, metric, ascending, condition, limit)
    room = None if limit is None else limit - len(ranked)
    return ranked if room == 0 else ranked + _others(connection, grid_id, metric, condition, room)


def _ranked(
    connection: sqlite3.Connection,
    grid_id: str | None,
    metric: str,
    ascending: bool,
    condition: Condition,
    limit: int | None,
) -> list[str]:
    more, values = condition
    filtered = f"CROSS JOIN runs USING (run_id) WHERE 1 {more} AND" if more else "WHERE"
    matching = f"FROM ranked {filtered} ranked.scope = ? AND ranked.name = ?"
    chosen = [*values, grid_id or "", text(metric)]
    if ascending:
        query = f"SELECT value, run_id {matching} ORDER BY value, run_id LIMIT ?"
        found = connection.execute(query, [*chosen, _most(limit)]).fetchall()
    else:
        found = _downwards(connection, matching, chosen, limit)
    if fresh := successes.fresh_values(connection, grid_id, metric, more, values):
        found = sorted([*found, *fresh], key=lambda pair: rank_key(*pair, minimize=ascending))[:limit]
    ids = [run_id for _, run_id in found]
    if limit is not None and len(ids) >= limit:
        return ids
    cell = "AND EXISTS (SELECT 1 FROM cells WHERE cells.run_id = runs.run_id AND cells.grid_id = ?)"
    not_finite = f"""SELECT scores.run_id FROM scores CROSS JOIN runs USING (run_id)
        WHERE scores.name = ? AND not_finite IS NOT NULL AND runs.state = ? {cell if grid_id else ""} {more}
        ORDER BY scores.run_id LIMIT ?"""  # noqa: S608
    chosen = [text(metric), str(RunState.SUCCEEDED), *([grid_id] if grid_id else []), *values]
    return ids + _ids(connection, not_finite, [*chosen, -1 if limit is None else limit - len(ids)])


def _may_have(connection: sqlite3.Connection, metric: str, condition: Condition) -> bool:
    """Whether any run of a script may have that score: false where none has. Where all that have it are of others,
    `_ranked` would read the rows of those; this asks indexes alone, and at first those of the script's newest runs."""
    more, values = condition
    its = f"SELECT run_id FROM runs WHERE 1 {more}"  # noqa: S608
    places = (
        f"({its} ORDER BY created_at DESC LIMIT {NEWEST}) CROSS JOIN scores USING (run_id) WHERE 1",
        f"ranked WHERE run_id IN ({its}) AND scope = ''",
        f"fresh CROSS JOIN scores USING (run_id) WHERE run_id IN ({its})",
        f"scores WHERE run_id IN ({its}) AND not_finite IS NOT NULL",
    )
    chosen = [*values, text(metric)]
    queries = (f"SELECT 1 FROM {place} AND name = ? LIMIT 1" for place in places)  # noqa: S608
    return any(connection.execute(query, chosen).fetchone() for query in queries)


def _downwards(
    connection: sqlite3.Connection, matching: str, chosen: Sequence[Value], limit: int | None
) -> list[Valued]:
    """The largest first, the older among equals. The index, read backwards, has the newer among equals first; so those
    that share the last place are asked for by themselves, and however many they are, none of them is sorted."""
    last = None
    if limit is not None:
        last = connection.execute(
            f"SELECT value {matching} ORDER BY value DESC LIMIT 1 OFFSET ?", [*chosen, max(limit - 1, 0)]
        ).fetchone()
    if last is None:  # no limit, or fewer than that
        return connection.execute(f"SELECT value, run_id {matching} ORDER BY value DESC, run_id", chosen).fetchall()
    above = f"SELECT value, run_id {matching} AND value > ? ORDER BY value DESC, run_id"
    found = connection.execute(above, [*chosen, last[0]]).fetchall()
    equal = f"SELECT value, run_id {matching} AND value = ? ORDER BY run_id LIMIT ?"
    return found + connection.execute(equal, [*chosen, last[0], (limit or 0) - len(found)]).fetchall()


def _others(
    connection: sqlite3.Connection, grid_id: str | None, metric: str | None, condition: Condition, limit: int | None
) -> list[str]:
    """Those without a rank."""
    more, values = condition
    chosen: list[Value] = []
    if metric is not None:
        more += """ AND NOT (runs.state = 'succeeded'
            AND EXISTS (SELECT 1 FROM scores WHERE scores.run_id = runs.run_id AND scores.name = ?))"""
        chosen = [text(metric)]
    source, of_grid = _source(grid_id)
    order = "runs.created_at DESC, runs.run_id DESC" if grid_id is None else "cells.number"
    query = f"SELECT runs.run_id {source} {more} ORDER BY {order} LIMIT ?"
    return _ids(connection, query, [*of_grid, *values, *chosen, _most(limit)])


def _sorted(
    connection: sqlite3.Connection,
    grid_id: str | None,
    key: Condition,
    descending: bool,
    condition: Condition,
    limit: int | None,
    *,
    only_with_key: bool = False,
) -> list[str]:
    more, values = condition
    source, of_grid = _source(grid_id)
    has_key = "WHERE key IS NOT NULL" if only_with_key else ""
    query = f"""SELECT run_id FROM (SELECT runs.run_id, {key[0]} AS key {source} {more}) {has_key}
        ORDER BY key IS NULL, key {"DESC" if descending else "ASC"}, run_id LIMIT ?"""  # noqa: S608
    return _ids(connection, query, [*key[1], *of_grid, *values, _most(limit)])


def _source(grid_id: str | None) -> tuple[str, list[Value]]:
    if grid_id is None:
        return "FROM runs WHERE 1", []
    return "FROM cells CROSS JOIN runs USING (run_id) WHERE cells.grid_id = ?", [grid_id]


def _most(limit: int | None) -> int:
    return -1 if limit is None else limit
