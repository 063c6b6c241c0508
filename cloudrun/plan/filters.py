"""What of a run a table shows, sorts by and compares: `alpha<1 and state=succeeded`, read and never evaluated."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

from cloudrun.core.clock import utc_text
from cloudrun.core.errors import UsageError
from cloudrun.core.near import did_you_mean, nearest
from cloudrun.core.records import RunRecord, Timings
from cloudrun.core.states import RunState, State

Value = str | int | float | bool | None
Operator = Literal["=", "!=", "<", "<=", ">", ">="]

FIELDS = (
    *("run_id", "name", "script", "state", "end_reason", "exit_code", "detail", "attempts", "grid_id"),
    *("instance_id", "instance_type", "code_digest", "created_at", "ended_at", "cost_usd"),
)
TIMINGS = tuple(field.name for field in fields(Timings))
PER_USD = "score_per_usd"
_KINDS: dict[str, Literal["param", "score", "timing"]] = {"params": "param", "scores": "score", "timings": "timing"}
_TOKEN = re.compile(
    r"""\s*(?: (?P<operator> ==|!=|<=|>=|=|<|> ) | (?P<quoted> "[^"]*"|'[^']*' ) | (?P<word> [^\s"'=!<>()]+ ) )""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_COMPARE = "compare with =, !=, <, <=, > or >= and join with `and`, as in --where 'alpha<1 and state=succeeded'"


@dataclass(frozen=True)
class Column:
    """Something that a run may have. `any` is a name that nobody has said more of: a score, else a parameter."""

    kind: Literal["field", "timing", "score", "param", "any"]
    name: str


@dataclass(frozen=True)
class Comparison:
    """Of a column with a value; None is what a run has that does not have it. `at`: the character it begins at."""

    column: Column
    operator: Operator
    value: Value
    at: int = field(default=0, compare=False)


def parse_column(text: str) -> Column:
    """`state` and the like (`FIELDS`), `run_s` and the like (`TIMINGS`), `params.NAME`, `scores.NAME`, or a name."""
    kind, dot, name = text.partition(".")
    if dot and name and kind in _KINDS:
        if kind == "timings" and name not in TIMINGS:
            raise UsageError(
                f"no run has the timing {name!r}{did_you_mean(name, TIMINGS)}", next_step=f"one of {', '.join(TIMINGS)}"
            )
        return Column(_KINDS[kind], name)
    return Column("field" if text in FIELDS else "timing" if text in TIMINGS else "any", text)


def column_value(run: RunRecord, column: Column) -> Any:
    """What the run has there; None where it has nothing."""
    if column.kind == "field":
        value = getattr(run, column.name)
        return utc_text(value) if isinstance(value, datetime) else str(value) if isinstance(value, State) else value
    if column.kind == "timing":
        return getattr(run.timings, column.name)
    if column.kind != "param" and (column.kind == "score" or column.name in run.scores):
        return run.scores.get(column.name)
    return run.params.get(column.name)


def parse_where(text: str) -> tuple[Comparison, ...]:
    """The comparisons that all have to hold. Raises UsageError, which says at which character it stopped to make sense.

    Values are numbers, `true`, `false`, `null`, and texts, with quotes around them where they have spaces.
    """
    tokens = _tokens(text)
    comparisons = []
    while True:
        comparisons.append(_comparison(text, tokens))
        kind, word, at = tokens.pop(0)
        if kind == "end":
            return tuple(comparisons)
        if kind != "word" or word.lower() != "and":
            raise nonsense(text, at, f"`and` has to come here, not {word!r}")


_Token = tuple[str, str, int]  # kind, text, the character it begins at


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at, end = 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            what = "a quote that nothing closes" if text[at] in "\"'" else f"{text[at]!r} means nothing here"
            raise nonsense(text, at, what)
        kind = str(match.lastgroup)
        tokens.append((kind, match[kind], match.start(kind)))
        at = match.end()
    return [*tokens, ("end", "the end", end)]


def _comparison(text: str, tokens: list[_Token]) -> Comparison:
    kind, word, begin = tokens.pop(0)
    if kind not in ("word", "quoted"):
        raise nonsense(
            text, begin, f"a name has to come here, not {word!r}" if word != "the end" else "a name is missing"
        )
    column = parse_column(word) if kind == "word" else Column("any", word[1:-1])
    kind, sign, at = tokens.pop(0)
    if kind != "operator":
        raise nonsense(text, at, f"after {word} comes one of = != < <= > >=, not {sign!r}")
    operator: Operator = "=" if sign == "==" else sign  # type: ignore[assignment]  # as the pattern has them
    kind, said, at = tokens.pop(0)
    if kind not in ("word", "quoted"):
        raise nonsense(text, at, f"a value has to come after {sign}")
    value = said[1:-1] if kind == "quoted" else _value(said)
    if value is None and operator not in ("=", "!="):
        raise nonsense(text, at, "null is neither less nor more than anything")
    if column == Column("field", "state") and value not in (*map(str, RunState), None):
        near = nearest(str(value), map(str, RunState))
        raise nonsense(text, at, f"no run is {value!r}", f"write {near[0]}" if near else "")
    return Comparison(column, operator, value, begin)


def _value(word: str) -> Value:
    constants: dict[str, Value] = {"true": True, "false": False, "null": None}
    if word in constants:
        return constants[word]
    if _NUMBER.fullmatch(word):
        return int(word) if re.fullmatch(r"[+-]?\d{1,18}", word) else float(word)
    return word


def nonsense(text: str, at: int, what: str, next_step: str = "") -> UsageError:
    """What is wrong with a filter, and below it the filter with a mark where that is."""
    shown = [letter if letter.isprintable() else "?" for letter in text]
    width = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in shown[:at])
    where = f"{''.join(shown)}\n{' ' * width}^"
    return UsageError(f"--where, character {at + 1}: {what}\n{where}", next_step=next_step or _COMPARE)


# -- names ------------------------------------------------------------------------------------------------------------


def check_column(column: Column, scores: Collection[str], params: Collection[str], *also: str) -> str:
    """Why no run has that: the names that runs have are `scores`, `params`, those that all have, and `also`. "" where
    one may."""
    if column.kind in ("field", "timing") or column.name in also:
        return ""
    known = {"any": [*scores, *params], "score": [*scores], "param": [*params]}[column.kind]
    if column.name in known:
        return ""
    what = {"any": "", "score": "score ", "param": "parameter "}[column.kind]
    more = [*also, *FIELDS, *TIMINGS] if column.kind == "any" else []
    return f"no run here has {'the ' if what else ''}{what}{column.name!r}{did_you_mean(column.name, [*known, *more])}"


def all_columns(scores: Collection[str], params: Collection[str], *also: str) -> str:
    """Everything that may be sorted by, shown or compared, for people."""
    return ", ".join(dict.fromkeys([*scores, *params, *also, *TIMINGS, *FIELDS]))
