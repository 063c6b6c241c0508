"""A report's data as columns of JSON: each name once, every text that repeats once, times as seconds since the first.

Every text has gone through `visible` (logs through `shown`), so the page holds no character that cannot be seen.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

from cloudrun.core.records import AttemptRecord, RunRecord, Timings, UnitRecord
from cloudrun.plan.costs import usd_text
from cloudrun.report.collecting import Data
from cloudrun.report.tails import shown, visible

SCHEMA = 1
LONGEST_TEXT = 2_000  # characters of one value; whoever wants more asks the ledger
LONGEST_PARAM = 200
MOST_NAMES = 100  # parameters, or scores, of all runs together
MOST_FILES = 20  # named for each run
SAFE_INTEGER = 2**53  # a browser's numbers are doubles

Column = dict[str, Any]


def document(data: Data) -> dict[str, Any]:
    """What the page's scripts read. Times are seconds since `began` (which is seconds since 1970), money is USD."""
    moments = [run.created_at for run in data.runs] + [unit.created_at for unit in data.units]
    began = min(moments, default=data.made_at)
    return {
        "schema": SCHEMA,
        "title": text(data.title),
        "began": began.timestamp(),
        "made": _since(began, data.made_at),
        "metric": None if data.metric is None else text(data.metric),
        "cut": data.cut,
        "bill": None if data.bill is None or not data.bill.usd else [usd_text(data.bill.usd), text(str(data.bill))],
        "count": len(data.runs),
        "runs": _runs(data.runs, began),
        "params": [_param(name, data.runs) for name in _names(run.params for run in data.runs)],
        "scores": [
            {
                "name": text(name),
                "minimize": data.minimize.get(name, False),
                "values": [None if name not in run.scores else _number(run.scores[name]) for run in data.runs],
            }
            for name in _names(run.scores for run in data.runs)
        ],
        "timings": {
            each.name.removesuffix("_s"): [round(getattr(run.timings, each.name), 3) for run in data.runs]
            for each in fields(Timings)
        },
        "units": [_unit(unit, began) for unit in data.units],
        "attempts": _attempts(data, began),
        "logs": _logs(data),
    }


def _runs(runs: Sequence[RunRecord], began: datetime) -> dict[str, Any]:
    def pooled(get: Callable[[RunRecord], object]) -> Column:
        return pool(None if (value := get(run)) in (None, "") else text(str(value)) for run in runs)

    return {
        "id": [text(run.run_id) for run in runs],
        "name": pooled(lambda run: run.name),
        "script": pooled(lambda run: " ".join([run.script, *run.arguments])),
        "state": pooled(lambda run: run.state),
        "reason": pooled(lambda run: run.end_reason),
        "detail": pooled(lambda run: run.detail),
        "exit_code": [run.exit_code for run in runs],
        "created": [_since(began, run.created_at) for run in runs],
        "ended": [_since(began, run.ended_at) for run in runs],
        "cost": [None if run.cost_usd is None else _number(run.cost_usd) for run in runs],
        "instance": pooled(lambda run: run.instance_id),
        "type": pooled(lambda run: run.instance_type),
        "region": pooled(lambda run: run.place and f"{run.place.region} ({run.place.provider})"),
        "code": pooled(lambda run: run.code_digest[:16]),
        "data": pooled(lambda run: run.data_digest[:16]),
        "environment": pooled(lambda run: run.environment_digest[:16]),
        "passport": pool(_passport(run) for run in runs),
        "usage": [_usage(run) for run in runs],
        "files": [_files(run) for run in runs],
        "file_count": [len(run.artifacts) for run in runs],
    }


def _passport(run: RunRecord) -> str | None:
    """Name and version pairs as JSON text, so that equal ones are one word of the pool."""
    if run.passport is None:
        return None
    rows = {"python": run.passport.python, **run.passport.packages, "platform": run.passport.platform}
    return json.dumps([[text(str(name)), text(str(value))] for name, value in rows.items()])


def _usage(run: RunRecord) -> list[float] | None:
    """CPU seconds, bytes of memory at most, bytes written."""
    if run.usage is None:
        return None
    cpu_s = run.usage.cpu_user_s + run.usage.cpu_system_s
    return [round(cpu_s, 3), run.usage.peak_memory_bytes, run.usage.written_bytes]


def _files(run: RunRecord) -> list[list[Any]]:
    outputs_first = sorted(run.artifacts, key=lambda artifact: artifact.kind != "output")
    return [[text(each.path), each.size, each.sha256[:12]] for each in outputs_first[:MOST_FILES]]


def _param(name: str, runs: Sequence[RunRecord]) -> Column:
    """A column of numbers where all that have it have a number, else of words."""
    column: Column = {"name": text(name)}
    given = [run.params[name] for run in runs if name in run.params]
    if all(_is_number(value) for value in given):
        return {**column, "values": [run.params.get(name) for run in runs]}
    return {**column, "pool": pool(_param_text(run.params[name]) if name in run.params else None for run in runs)}


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < SAFE_INTEGER


def _param_text(value: object) -> str:
    return text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), LONGEST_PARAM)


def _unit(unit: UnitRecord, began: datetime) -> dict[str, Any]:
    return {
        "id": text(unit.instance_id),
        "type": text(unit.instance_type),
        "region": text(f"{unit.place.region} ({unit.place.provider})"),
        "state": str(unit.state),
        "reason": None if unit.end_reason is None else str(unit.end_reason),
        "created": _since(began, unit.created_at),
        "ended": _since(began, unit.ended_at),
        "deadline": _since(began, unit.deadline),
    }


def _attempts(data: Data, began: datetime) -> dict[str, Any]:
    """`run` and `unit` are positions among the report's runs (-1: another run) and units."""
    run_at = {run.run_id: position for position, run in enumerate(data.runs)}
    unit_at = {unit.instance_id: position for position, unit in enumerate(data.units)}
    tries: Sequence[AttemptRecord] = [each for each in data.attempts if each.instance_id in unit_at]
    return {
        "run": [run_at.get(each.run_id, -1) for each in tries],
        "unit": [unit_at[each.instance_id] for each in tries],
        "number": [each.number for each in tries],
        "start": [_since(began, each.started_at) for each in tries],
        "end": [_since(began, each.ended_at) for each in tries],
        "state": pool(str(each.state) for each in tries),
        "reason": pool(None if each.end_reason is None else str(each.end_reason) for each in tries),
    }


def _logs(data: Data) -> dict[str, dict[str, str]]:
    run_at = {run.run_id: position for position, run in enumerate(data.runs)}
    return {
        str(run_at[run_id]): {stream: shown(log) for stream, log in tails.items()}
        for run_id, tails in data.tails.items()
        if run_id in run_at
    }


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each key once, in the order of its first appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))[:MOST_NAMES]


def pool(values: Iterable[str | None]) -> Column:
    """`words`, each once, and for each value its position `at` among them (-1 for None)."""
    words: dict[str, int] = {}
    at = [-1 if value is None else words.setdefault(value, len(words)) for value in values]
    return {"words": list(words), "at": at}


def text(value: str, longest: int = LONGEST_TEXT) -> str:
    return visible(value if len(value) <= longest else value[: longest - 1] + "…")


def _number(value: float) -> float | str:
    """JSON has no NaN and no infinities: they go as words."""
    return value if math.isfinite(value) else "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _since(began: datetime, moment: datetime | None) -> float | None:
    return None if moment is None else round((moment - began).total_seconds(), 3)
