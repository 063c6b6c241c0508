"""What of runs is sorted by and compared, as SQL over the table `runs`: names that a user typed are values there."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cloudrun.ledger.names import of_script
from cloudrun.ledger.rows import text
from cloudrun.plan.filters import Column, Comparison, Value

Condition = tuple[str, list[Value]]  # SQL, and what its question marks are

_SCORE = """(SELECT coalesce(value, CASE not_finite WHEN 'inf' THEN 9e999 WHEN '-inf' THEN -9e999 END)
    FROM scores WHERE scores.run_id = runs.run_id AND scores.name = ?)"""
_INSTANCE_TYPE = "(SELECT instance_type FROM units WHERE units.instance_id = runs.instance_id)"


def expression_of(column: Column) -> Condition:
    """Names that a user typed are values and never part of the text."""
    if column.kind == "field":
        return (_INSTANCE_TYPE if column.name == "instance_type" else f"runs.{column.name}"), []
    if column.kind == "timing":
        return "json_extract(runs.timings, ?)", [f"$.{column.name}"]
    name = text(column.name)
    if column.kind == "score":
        return _SCORE, [name]
    if column.kind == "param":
        return "param(runs.params, ?)", [name]
    return f"coalesce({_SCORE}, param(runs.params, ?))", [name, name]


def condition_of(where: Sequence[Comparison], script: str | None = None) -> Condition:
    texts, values = "", list[Value]()
    if script is not None:
        condition, script_values = of_script(script)
        texts, values = f" AND {condition}", [*script_values]
    for each in where:
        expression, names = expression_of(each.column)
        if each.value is None:
            texts += f" AND {expression} IS {'NOT' if each.operator == '!=' else ''} NULL"
            values += names
            continue
        texts += f" AND {expression} {'<>' if each.operator == '!=' else each.operator} ?"
        values += [*names, text(each.value) if isinstance(each.value, str) else each.value]
        if each.operator not in ("=", "!="):  # SQLite says that every number is less than every text
            texts += f" AND typeof({expression}) {'=' if isinstance(each.value, str) else '<>'} 'text'"
            values += names
    return texts, values


def per_usd_of(metric: str, *, minimize: bool) -> Condition:
    """`plan.ranking.per_usd`, turned so that larger is better; nothing where the price or a finite score is missing."""
    finite = "(SELECT value FROM scores WHERE scores.run_id = runs.run_id AND scores.name = ?)"
    better = f"{'-' if minimize else ''}{finite}"
    each = f"CASE WHEN {better} >= 0 THEN {better} / cost_usd ELSE {better} * cost_usd END"
    name = text(metric)
    return f"CASE WHEN runs.state = 'succeeded' AND cost_usd > 0 THEN {each} END", [name, name, name]


def param(params: str, name: str) -> str | int | float | None:
    """A parameter as SQLite compares it: numbers by size, lists and tables as their JSON. NaN is as good as none."""
    value = json.loads(params).get(name)
    if isinstance(value, str):
        return text(value)
    if isinstance(value, list | dict):
        return json.dumps(value)
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return float(value) if abs(value) < 1 << 1000 else str(value)
    return value  # type: ignore[no-any-return]
