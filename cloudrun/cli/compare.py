"""`cloudrun compare`: runs side by side, and what is different in their code. It needs no network."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import Annotated, Any

from cyclopts import Parameter

from cloudrun.cli.meant import run_meant
from cloudrun.cli.parser import Json
from cloudrun.cli.printing import (
    columns,
    digits_that_tell_apart,
    folded,
    is_terminal,
    print_json,
    print_table,
    printable,
    styled,
    when_text,
)
from cloudrun.core.clock import utc_time
from cloudrun.core.errors import UsageError
from cloudrun.ledger import Ledger
from cloudrun.ledger.run import finite
from cloudrun.plan.comparing import MISSING, Line, Made, code_diffs
from cloudrun.plan.comparing import compare as compare_runs
from cloudrun.plan.costs import usd_text
from cloudrun.plan.quantities import duration_text, score_text

TITLES = {"run": [], "params": ["param"], "scores": ["score"], "timings": ["time"], "environment": ["package"]}
COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def compare(
    *runs: Annotated[
        str, Parameter(help="Two or more runs: ids, their beginnings, or names. Example: r-0s1dq4xk8m2vt baseline")
    ],
    all_of_it: Annotated[
        bool, Parameter(name="--all", help="What is the same too. Example: cloudrun compare baseline tuned --all")
    ] = False,
    as_json: Json = False,
) -> None:
    """Parameters, scores, times and versions of runs side by side, as far as they
    differ; then their code, as a diff from the first one's.

    Type, for example:
        cloudrun compare baseline tuned
        cloudrun compare r-0s1dq4xk8m2vt r-0s1dq5b7yq0aa --all
        cloudrun compare baseline tuned --json | jq .differences.params
    """
    with closing(Ledger()) as ledger:
        found = [ledger.get(run_meant(ledger, reference)) for reference in runs]
        if len({run.run_id for run in found}) < 2:
            raise UsageError(
                "one run alone cannot be compared" if found else "which runs are to be compared?",
                next_step="cloudrun compare RUN ANOTHER; cloudrun results lists what there is",
            )
        made = [Made(ledger.environment(run.environment_digest), ledger.code(run.code_digest)) for run in found]
    lines = compare_runs(found, made)
    diffs = code_diffs(found, made)
    if as_json:
        print_json(_document([run.run_id for run in found], lines, diffs, all_of_it=all_of_it))
        return
    shown = [(line, texts) for line in lines if (texts := _texts(line)) and (all_of_it or len(set(texts)) > 1)]
    if shown:
        rows = [[_title(line), *texts] for line, texts in shown]
        print_table(["", *(run.run_id for run in found)], rows)
    for one, other, diff in diffs:
        if shown:
            print()
        print(styled(folded(f"code of {other} beside {one}:", columns(sys.stdout)), "heading"))
        _print_diff(diff)
    if not shown and not diffs:
        print("  they do not differ; --all shows what they have", file=sys.stderr)


def _title(line: Line) -> str:
    name = line.name.removesuffix("_s") if line.part == "timings" else line.name
    return " ".join([*TITLES[line.part], name])


def _texts(line: Line) -> list[str]:
    """The values as people read them: what looks the same is the same to them, a hundredth of a second, say."""
    numbers = [each for each in line.values if isinstance(each, float)]
    digits = digits_that_tell_apart(numbers) if line.part == "scores" else 6
    return [_text(line, each, digits) for each in line.values]


def _text(line: Line, value: Any, digits: int) -> str:
    if value is MISSING:
        return "-"
    if line.part == "timings":
        return duration_text(value) if value else "-"
    if line.part == "scores":
        return score_text(value, digits)
    if line.name == "cost_usd":
        return usd_text(value)
    if line.name == "created_at":
        return when_text(utc_time(value), seconds=True)
    return value if isinstance(value, str) else json.dumps(value)


def _print_diff(lines: Sequence[str]) -> None:
    """In colours where there is a terminal, and nobody has said NO_COLOR."""
    safe = [printable(line.expandtabs()) for line in lines]
    if not is_terminal(sys.stdout):
        print("\n".join(safe))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False)
    for line in safe:
        console.print(Text(line, style=COLOURS.get(line[:1], "")), soft_wrap=True)


def _document(
    run_ids: Sequence[str], lines: Sequence[Line], diffs: Sequence[tuple[str, str, list[str]]], *, all_of_it: bool
) -> dict[str, Any]:
    """`differences`: by part, by name, a value for each run, in their order; null where one does not have it."""
    differences: dict[str, dict[str, Any]] = {}
    for line in lines:
        if all_of_it or line.differs:
            values = [None if each is MISSING else finite(each) for each in line.values]
            differences.setdefault(line.part, {})[line.name] = values
    code = [{"run_id": other, "beside": one, "diff": "\n".join(diff)} for one, other, diff in diffs]
    return {"runs": list(run_ids), "differences": differences, "code": code}
