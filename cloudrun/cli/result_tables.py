"""Runs as the lines of a table or of a CSV file: which columns there are, and what stands in them."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cloudrun.cli.printing import digits_that_tell_apart, print_table, when_text
from cloudrun.core.clock import utc_time
from cloudrun.core.states import RunState, is_terminal
from cloudrun.ledger import Run
from cloudrun.ledger.names import FUNCTIONS
from cloudrun.ledger.results import Ordering
from cloudrun.plan.costs import usd_text
from cloudrun.plan.filters import PER_USD, Column, column_value
from cloudrun.plan.quantities import score_text
from cloudrun.plan.ranking import per_usd

RANK, SCRIPT, RUN, NAME = Column("any", "rank"), *(Column("field", name) for name in ("script", "run_id", "name"))
STATE, WHEN, COST, CODE = (Column("field", name) for name in ("state", "created_at", "cost_usd", "code_digest"))
PER_DOLLAR = Column("any", PER_USD)
DETAILS = (Column("timing", "run_s"), Column("timing", "total_s"), COST, WHEN)
HEADERS = {"run_id": "run", "created_at": "when", "code_digest": "code"}
CODE_LETTERS = 7  # of the digest: as many as git shows of a commit
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes for the beginning of one

Ranked = Iterable[tuple[int | None, Run]]


class Source(Protocol):
    """Runs of one ranking, which can be read again."""

    @property
    def order(self) -> Ordering: ...
    def runs(self) -> Iterator[Run]: ...
    def ranked(self) -> Iterator[tuple[int | None, Run]]: ...


@dataclass
class Columns:
    """What some runs have, in the order it was met."""

    count: int = 0
    params: dict[str, Any] = field(default_factory=dict)  # the first value of each
    differ: set[str] = field(default_factory=set)  # parameters that not all runs have alike
    scores: dict[str, None] = field(default_factory=dict)
    fields: dict[Column, str] = field(default_factory=dict)  # the first value of each
    under_way: int = 0  # that are not over, as far as is known here
    functions: bool = False  # each is a script of its own
    vary: set[Column] = field(default_factory=set)  # fields that not all runs have alike

    @classmethod
    def of(cls, source: Source) -> Columns:
        columns = cls()
        columns.look(source.runs())
        return columns

    def look(self, runs: Iterable[Run]) -> None:
        for run in runs:
            for name, value in run.params.items():
                if name not in self.params and self.count:
                    self.differ.add(name)
                if self.params.setdefault(name, value) != value:
                    self.differ.add(name)
            self.differ.update(self.params.keys() - run.params.keys())
            self.scores.update(dict.fromkeys(run.scores))
            for column, value in ((NAME, run.name), (STATE, str(run.state)), (CODE, run.code_digest)):
                if self.fields.setdefault(column, value) != value:
                    self.vary.add(column)
            self.under_way += not is_terminal(run.state)
            self.functions = self.functions or run.script.startswith(FUNCTIONS)
            self.count += 1

    def usual(self, order: Ordering) -> list[Column]:
        """For people: the score that ranks, the parameters, and the code where it is not the same."""
        columns = [RANK, RUN, NAME, STATE, Column("score", order.metric or "score")]
        if order.per_usd:
            columns += [PER_DOLLAR, COST]
        sorted_by = order.column
        if sorted_by is not None and sorted_by.kind in ("field", "timing") and sorted_by not in (*columns, WHEN):
            columns.append(sorted_by)
        columns += [Column("param", name) for name in self.params]
        return [*columns, *([CODE] if CODE in self.vary and not self.functions else []), WHEN]

    @classmethod
    def all(cls, sources: Sequence[Source]) -> list[Column]:
        """For programs: everything that any of the runs has."""
        columns = cls()
        for source in sources:
            columns.look(source.runs())
        found = [RANK, *([SCRIPT] if len(sources) > 1 else []), RUN, NAME, STATE]
        found += [Column("score", name) for name in columns.scores]
        found += [Column("param", name) for name in columns.params]
        by_dollar = any(source.order.per_usd for source in sources)
        return [*found, *([PER_DOLLAR] if by_dollar else []), *DETAILS]

    def dispensable(self, columns: Sequence[Column]) -> list[Column]:
        """What says least goes first where there is no room: what all runs have alike, ..."""
        alike = [each for each in columns if each.kind == "param" and each.name not in self.differ]
        different = [each for each in columns if each.kind == "param" and each.name in self.differ]
        alike += [each for each in (NAME, STATE) if each not in self.vary]
        return [*dict.fromkeys([*alike, WHEN, NAME, STATE, CODE, *reversed(different), COST])]


class Table:
    """Rows of what the columns say."""

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

    def rows(self, runs: Ranked) -> Iterator[list[Any]]:
        for rank, run in runs:
            yield [rank if column == RANK else self._value(run, column) for column in self.columns]

    def print(self, runs: Ranked, seen: Columns) -> list[str]:
        """Returns the names of what there was no room for."""
        headers = [HEADERS.get(name, name) for name in self.headers()]
        rows = list(self.rows(runs))
        cells = [_texts(column, [row[index] for row in rows]) for index, column in enumerate(self.columns)]
        right = [header for index, header in enumerate(headers) if all(_is_number(row[index]) for row in rows)]
        named = dict(zip(self.columns, headers, strict=True))
        dispensable = [named[column] for column in seen.dispensable(self.columns) if column in named]
        lines = [list(line) for line in zip(*cells, strict=True)]
        return print_table(headers, lines, right=right, dispensable=dispensable)

    def _value(self, run: Run, column: Column) -> Any:
        return self._per_usd(run) if column == PER_DOLLAR else column_value(run, column)

    def _per_usd(self, run: Run) -> float | None:
        score = run.scores.get(self._order.metric or "")
        if run.state is not RunState.SUCCEEDED or score is None or not math.isfinite(score) or not run.cost_usd:
            return None
        return per_usd(score, run.cost_usd, minimize=self._order.minimize)


def _texts(column: Column, values: Sequence[Any]) -> list[str]:
    """A column for people; scores with as many digits as tell them apart, times too."""
    if column == WHEN:
        return _times(values)
    is_score = column.kind in ("score", "any") and column != PER_DOLLAR
    digits = digits_that_tell_apart(each for each in values if isinstance(each, float)) if is_score else 6
    return [_text(column, value, digits) for value in values]


def _times(values: Sequence[str]) -> list[str]:
    """To the second where two are of the same minute."""
    moments = [utc_time(value) for value in values]
    seconds = len({when_text(moment) for moment in moments}) < len(moments)
    return [when_text(moment, seconds=seconds) for moment in moments]


def _text(column: Column, value: Any, digits: int) -> str:
    if value is None:
        return "-"
    if column == CODE:
        return value[:CODE_LETTERS] or "-"
    if column == COST:
        return usd_text(value)
    if column == PER_DOLLAR:
        return _rough(value)
    if isinstance(value, float) and column.kind != "param":
        return score_text(value, digits)
    return value if isinstance(value, str) else json.dumps(value)


def _rough(value: float) -> str:
    """Three significant digits: a price is not known better. No exponent for what can be read without one."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if 100 <= abs(rounded) < 1e9 else f"{rounded:g}"


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def print_csv(columns: Sequence[Column], sources: Sequence[Source]) -> None:
    """Numbers with all their digits; what is missing is empty; lists and tables are JSON; and no text that a
    spreadsheet would compute: such a one has an apostrophe in front."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(map(_harmless, Table(Ordering(None, False), columns).headers()))
    for source in sources:
        for row in Table(source.order, columns).rows(source.ranked()):
            writer.writerow(
                [_harmless(json.dumps(value) if isinstance(value, list | dict | bool) else value) for value in row]
            )


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
