"""`cloudrun results`: runs as a table, best first, sorted and filtered by whatever they have. It needs no network.

However many runs there are, a few are in memory at a time; unless the columns are named, they are read twice.
"""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from itertools import islice
from typing import Annotated, Any

from cyclopts import Parameter

from cloudrun.cli.parser import Json
from cloudrun.cli.printing import print_json_list, print_table, printable, score_text, when_text
from cloudrun.core.clock import utc_time
from cloudrun.core.errors import UsageError
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger, Run
from cloudrun.ledger.results import Ordering
from cloudrun.plan.filters import FIELDS, PER_USD, TIMINGS, Column, column_value, parse_column, parse_where
from cloudrun.plan.ranking import per_usd

LINES = 20  # of a table, unless more are asked for


def results(
    *,
    grid: Annotated[
        str | None,
        Parameter(help="Only the cells of that grid: its id, the beginning of it, or its name. Example: --grid sweep"),
    ] = None,
    metric: Annotated[
        str | None, Parameter(help="The score to rank by; by default the newest run's first. Example: --metric f1")
    ] = None,
    minimize: Annotated[
        bool | None,
        Parameter(negative="--maximize", help="Smallest first; by default as each run says. Example: --minimize"),
    ] = None,
    sort: Annotated[
        str | None,
        Parameter(
            help="Sort by a score, a parameter, a time (run_s) or a field (cost_usd); score_per_usd ranks by the score"
            " for each dollar, where what a run cost is known (times the dollars where smaller is better)."
            " Example: --sort alpha"
        ),
    ] = None,
    reverse: Annotated[bool, Parameter(help="The other way round. Example: --sort run_s --reverse")] = False,
    where: Annotated[
        str | None,
        Parameter(
            help="Only runs for which these comparisons hold, joined by `and`: scores, parameters (a plain name is a"
            " score, else a parameter; scores.NAME and params.NAME say which), times, state and other fields; null is"
            " what a run does not have. Example: --where 'alpha<1 and state=succeeded'"
        ),
    ] = None,
    columns: Annotated[
        str | None,
        Parameter(help="What to show, with commas between. Example: --columns rank,run_id,alpha,accuracy,run_s"),
    ] = None,
    limit: Annotated[
        int | None,
        Parameter(help="How many runs to list; 0 for all; by default 20, with --csv all. Example: --limit 100"),
    ] = None,
    as_csv: Annotated[
        bool, Parameter(name="--csv", help="Comma-separated values with all digits. Example: --csv > runs.csv")
    ] = False,
    as_json: Json = False,
) -> None:
    """Rank the runs of this project, best first; runs without that score come after them, newest first.

    Type, for example:
        cloudrun results
        cloudrun results --metric log_loss --minimize --limit 5
        cloudrun results --grid sweep --where 'alpha<1' --sort score_per_usd
        cloudrun results --json | jq '.runs[0].scores'
    """
    if limit is not None and limit < 0:
        raise UsageError(f"--limit {limit} is less than zero", next_step="cloudrun results --limit 20")
    if as_csv and as_json:
        raise UsageError("--csv and --json are two forms of the same", next_step="keep one of them")
    comparisons = () if where is None else parse_where(where)
    named = None if columns is None else [parse_column(each) for each in _names(columns)]
    with closing(Ledger()) as ledger:
        grid_id = None if grid is None else ledger.grid(grid).grid_id
        most = limit if limit is not None else 0 if as_csv else LINES
        look = partial(
            ledger.results,
            grid_id,
            metric=metric,
            minimize=minimize,
            where=comparisons,
            sort=sort,
            reverse=reverse,
            limit=most or None,
        )
        order = ledger.ordering(grid_id, metric=metric, minimize=minimize, sort=sort)
        if as_json:
            print_json_list("runs", (run.to_dict() for run in look()))
            return
        seen = _Seen()
        if named is None:
            seen.look(look())
            if not seen.count and not as_csv:
                print(_nothing(ledger, grid, where), file=sys.stderr)
                return
            seen.check(order.column)
        table = _Table(order, named or (_all_columns(order, seen) if as_csv else _usual_columns(order, seen)))
        if as_csv:
            _print_csv(table, look())
        else:
            table.print(look(), seen)
            if most and any(True for _ in islice(look(limit=most + 1), most, None)):
                all_cells = f" of {ledger.grid(grid_id).cells}" if grid_id is not None and where is None else ""
                print(f"  {most}{all_cells} shown: --limit 0 lists all of them", file=sys.stderr)


def _names(columns: str) -> list[str]:
    names = [name.strip() for name in columns.split(",")]
    if not all(names):
        raise UsageError(f"--columns {columns!r} has a name missing", next_step="write --columns run_id,alpha,accuracy")
    return names


def _nothing(ledger: Ledger, grid: str | None, where: str | None) -> str:
    if where is not None and ledger.runs(limit=1):
        return f"no run is like that: {where}\n  next: cloudrun results"
    if grid is not None:
        return f"grid {grid} has no cells yet\n  next: cloudrun results"
    return f"no runs yet in {ledger.project}\n  next: cloudrun submit train.py"


@dataclass
class _Seen:
    """What the runs have, in the order it was met."""

    count: int = 0
    params: dict[str, Any] = field(default_factory=dict)  # the first value of each
    differ: set[str] = field(default_factory=set)  # parameters that not all runs have alike
    scores: dict[str, None] = field(default_factory=dict)

    def look(self, runs: Iterable[Run]) -> None:
        for run in runs:
            for name, value in run.params.items():
                if name not in self.params and self.count:
                    self.differ.add(name)
                if self.params.setdefault(name, value) != value:
                    self.differ.add(name)
            self.differ.update(self.params.keys() - run.params.keys())
            self.scores.update(dict.fromkeys(run.scores))
            self.count += 1

    def check(self, column: Column | None) -> None:
        """Raises UsageError where it is a name that none of them has."""
        known = [*self.scores, *self.params]
        if column is None or column.kind not in ("any", "param", "score") or column.name in known or not self.count:
            return
        near = get_close_matches(column.name, [*known, *FIELDS, *TIMINGS], n=1)
        hint = f"cloudrun results --sort {near[0]}" if near else "sort by one of: " + ", ".join(map(printable, known))
        raise UsageError(f"none of these runs has {column.name!r}", next_step=hint)


_RANK, _RUN, _NAME, _STATE = (Column("any", "rank"), *(Column("field", name) for name in ("run_id", "name", "state")))
_WHEN = Column("field", "created_at")
_HEADERS = {"run_id": "run", "created_at": "when"}


def _usual_columns(order: Ordering, seen: _Seen) -> list[Column]:
    columns = [_RANK] if order.column is None else []
    columns += [_RUN, _NAME, _STATE, Column("score", order.metric or "score")]
    if order.per_usd:
        columns += [Column("any", PER_USD), Column("field", "cost_usd")]
    if order.column is not None and order.column.kind in ("field", "timing") and order.column not in (*columns, _WHEN):
        columns.append(order.column)
    return [*columns, *(Column("param", name) for name in seen.params), _WHEN]


def _all_columns(order: Ordering, seen: _Seen) -> list[Column]:
    columns = [*([_RANK] if order.column is None else []), _RUN, _NAME, _STATE]
    columns += [Column("score", name) for name in seen.scores]
    columns += [Column("param", name) for name in seen.params]
    return [*columns, *(Column("any", name) for name in [PER_USD] * order.per_usd), *map(parse_column, _DETAILS)]


_DETAILS = ("run_s", "total_s", "cost_usd", "created_at")


class _Table:
    """Rows of what the columns say. A rank is a place among those that have what is ranked by."""

    def __init__(self, order: Ordering, columns: Sequence[Column]) -> None:
        self._order = order
        self.columns = columns

    def headers(self) -> list[str]:
        """The names, of a score and a parameter that are called the same with their kind."""
        short = [column.name for column in self.columns]
        return [
            f"{column.kind}s.{column.name}"
            if column.kind in ("param", "score") and short.count(column.name) > 1
            else column.name
            for column in self.columns
        ]

    def rows(self, runs: Iterable[Run]) -> Iterator[list[Any]]:
        for place, run in enumerate(runs, 1):
            rank = place if self._order.column is None and self._is_ranked(run) else None
            yield [rank if column == _RANK else self._value(run, column) for column in self.columns]

    def print(self, runs: Iterable[Run], seen: _Seen) -> None:
        """On a terminal that is too narrow, what says least goes first: parameters that all runs have alike, ..."""
        headers = [_HEADERS.get(name, name) for name in self.headers()]
        texts: set[str] = set()  # columns with something that is no number
        lines = []
        for row in self.rows(runs):
            texts.update(header for header, value in zip(headers, row, strict=True) if not _is_number(value))
            lines.append([self._text(column, value) for column, value in zip(self.columns, row, strict=True)])
        alike = [
            header
            for column, header in zip(self.columns, headers, strict=True)
            if column.kind == "param" and column.name not in seen.differ
        ]
        right = [header for header in headers if header not in texts]
        print_table(headers, lines, right=right, dispensable=("when", *alike, "name", "state"))

    def _value(self, run: Run, column: Column) -> Any:
        return self._per_usd(run) if column == Column("any", PER_USD) else column_value(run, column)

    def _is_ranked(self, run: Run) -> bool:
        if self._order.per_usd:
            return self._per_usd(run) is not None
        return run.state is RunState.SUCCEEDED and self._order.metric in run.scores

    def _per_usd(self, run: Run) -> float | None:
        score = run.scores.get(self._order.metric or "")
        if run.state is not RunState.SUCCEEDED or score is None or not math.isfinite(score) or not run.cost_usd:
            return None
        return per_usd(score, run.cost_usd, minimize=self._order.minimize)

    @staticmethod
    def _text(column: Column, value: Any) -> str:
        if value is None:
            return "-"
        if column == _WHEN:
            return when_text(utc_time(value))
        if isinstance(value, float) and column.kind != "param":
            return score_text(value)
        return value if isinstance(value, str) else json.dumps(value)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _print_csv(table: _Table, runs: Iterable[Run]) -> None:
    """Numbers with all their digits; what is missing is empty; lists and tables are JSON."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(table.headers())
    for row in table.rows(runs):
        writer.writerow([json.dumps(value) if isinstance(value, list | dict | bool) else value for value in row])
