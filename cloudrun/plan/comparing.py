"""What differs between runs, side by side: values by name, and their code as a unified diff."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cloudrun.core.clock import utc_text
from cloudrun.core.records import Environment, RunRecord, Timings

MISSING = object()  # what a run does not have, which is not None
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(?:===?|@)\s*([^\s;]+)")


@dataclass(frozen=True)
class Line:
    """One thing that runs have, with the value of each; `MISSING` where one has it not."""

    part: str  # "run", "params", "scores", "timings", "environment"
    name: str
    values: tuple[Any, ...]

    @property
    def differs(self) -> bool:
        first = self.values[0]
        return any(each is not first and (each != first or type(each) is not type(first)) for each in self.values[1:])


@dataclass(frozen=True)
class Made:
    """What a run was made of, as far as that was kept."""

    environment: Environment | None
    code: Mapping[str, str]  # text by path


def compare(runs: Sequence[RunRecord], made: Sequence[Made]) -> list[Line]:
    """Everything that any of the runs has, in the order in which somebody wants to know it."""
    lines = list(_lines("params", [run.params for run in runs]))
    lines += _lines("scores", [run.scores for run in runs])
    lines += _lines("run", [_facts(run) for run in runs])
    names = [field.name for field in fields(Timings)]
    lines += _lines("timings", [{name: getattr(run.timings, name) for name in names} for run in runs])
    lines += _lines("environment", [packages(run, each.environment) for run, each in zip(runs, made, strict=True)])
    return lines


def _lines(part: str, found: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    for name in dict.fromkeys(name for each in found for name in each):
        yield Line(part, name, tuple(each.get(name, MISSING) for each in found))


def _facts(run: RunRecord) -> dict[str, Any]:
    facts = {
        "name": run.name,
        "script": run.script,
        "arguments": " ".join(run.arguments),
        "state": str(run.state),
        "end_reason": None if run.end_reason is None else str(run.end_reason),
        "exit_code": run.exit_code,
        "instance_type": run.instance_type,
        "place": f"{run.place.region} ({run.place.provider})" if run.place else None,
        "attempts": run.attempts,
        "cost_usd": run.cost_usd,
        "created_at": utc_text(run.created_at),
        "code": run.code_digest[:16],
        "data": run.data_digest[:16],
        "environment": run.environment_digest[:16],
    }
    return {name: value for name, value in facts.items() if value not in (None, "")}


def packages(run: RunRecord, environment: Environment | None) -> dict[str, str]:
    """Versions by package, and Python's: as the environment was pinned, else as the model's passport has them."""
    if environment is not None:
        pinned = (_REQUIREMENT.match(line) for line in environment.requirements)
        versions = {match[1].lower().replace("_", "-"): match[2] for match in pinned if match}
        apt = {f"apt {package}": "yes" for package in environment.system.apt}
        playbook = {"playbook": environment.system.playbook_digest[:16]} if environment.system.playbook else {}
        return {"python": environment.python, "architecture": environment.architecture, **versions, **apt, **playbook}
    if run.passport is not None:
        return {"python": run.passport.python, **run.passport.packages}
    return {}


def code_diffs(runs: Sequence[RunRecord], made: Sequence[Made]) -> list[tuple[str, str, list[str]]]:
    """For each run after the first whose code is another: the two ids and a unified diff. Where the text of either was
    not kept, that is said in its place. Scripts are compared with each other whatever they are called."""
    diffs = []
    for run, of_run in zip(runs[1:], made[1:], strict=True):
        if run.code_digest == runs[0].code_digest:
            continue
        if made[0].code and of_run.code:
            lines = list(_diff(runs[0], made[0].code, run, of_run.code))
        else:
            lines = [f"the text was not kept: {runs[0].code_digest[:16]} and {run.code_digest[:16]} differ"]
        diffs.append((runs[0].run_id, run.run_id, lines))
    return diffs


def _diff(one: RunRecord, old: Mapping[str, str], other: RunRecord, new: Mapping[str, str]) -> Iterator[str]:
    pairs = [(one.script, other.script)]
    paths: Iterable[str] = dict.fromkeys([*old, *new])
    pairs += [(path, path) for path in paths if path not in (one.script, other.script)]
    for before, after in pairs:
        if old.get(before) != new.get(after):
            yield from difflib.unified_diff(
                old.get(before, "").splitlines(),
                new.get(after, "").splitlines(),
                f"{one.run_id}/{before}" if before in old else "/dev/null",
                f"{other.run_id}/{after}" if after in new else "/dev/null",
                lineterm="",
            )
