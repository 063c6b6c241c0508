"""Runs, rankings and pools as HTML for a notebook: text in tables, every character of it escaped, no script."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from cloudrun.core.records import RunRecord, Timings
from cloudrun.core.states import RunState, is_terminal
from cloudrun.plan.costs import AT_LIST_PRICES, mark, usd_text
from cloudrun.plan.quantities import duration_text, size_text

SHOWN = 50  # rows of a ranking, and files of a run
LONGEST = 200  # characters of a value
_STATES = {RunState.SUCCEEDED: "#1a7f37", RunState.FAILED: "#cf222e", RunState.LOST: "#cf222e"}


def run_html(run: RunRecord) -> str:
    """One run: what it was, what came of it, where the time went."""
    facts = [
        ("script", text(" ".join([run.script, *run.arguments]))),
        ("params", text(", ".join(f"{name} = {value_text(value)}" for name, value in run.params.items()))),
        ("scores", text(", ".join(f"{name} {value_text(value)}" for name, value in _scores(run)))),
        ("unit", text(f"{run.instance_id}, {run.instance_type}" if run.instance_id else "")),
        ("time", text(_times(run.timings))),
        ("cost", text(_cost(run))),
        ("why", text(run.detail)),
        ("files", _files(run)),
    ]
    name = f" ({text(run.name)})" if run.name != run.run_id else ""
    return f"<div><b>{text(run.run_id)}</b>{name} {_state(run)}{_facts(dict(facts))}</div>"


def ranking_html(runs: Sequence[RunRecord]) -> str:
    """Runs in their order: place, score, parameters."""
    if not runs:
        return "<i>no runs</i>"
    metrics = dict.fromkeys(run.metric for run in runs[:SHOWN] if run.metric)
    params = dict.fromkeys(name for run in runs[:SHOWN] for name in run.params)
    scripts = ["script"] if len({run.script for run in runs[:SHOWN]}) > 1 else []  # never mixed silently
    head = ["", "run", "name", *scripts, *metrics, *params]
    rows = [
        [
            text(str(place)),
            text(run.run_id),
            text(run.name),
            *(text(run.script) for _ in scripts),
            *(text(value_text(run.scores.get(name or ""))) for name in metrics),
            *(text(value_text(run.params.get(name))) for name in params),
        ]
        for place, run in enumerate(runs[:SHOWN], 1)
    ]
    more = f"<i>and {len(runs) - SHOWN:,} more</i>" if len(runs) > SHOWN else ""
    return f"<div>{table([text(name or '') for name in head], rows)}{more}</div>"


def pool_html(facts: Mapping[str, str]) -> str:
    """A pool as it is now."""
    return f"<div><b>process_pool</b>{_facts({text(name): text(value) for name, value in facts.items()})}</div>"


def _facts(facts: Mapping[str, str]) -> str:
    """`facts` are markup already, by name."""
    left = 'style="text-align:left"'
    rows = (f"<tr><th {left}>{name}</th><td {left}>{value}</td></tr>" for name, value in facts.items() if value)
    return f"<table>{''.join(rows)}</table>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """`head` and `rows` are markup already."""
    top = "".join(f"<th>{each}</th>" for each in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def text(value: str) -> str:
    """As it is to be read: markup and characters that nobody sees as escapes."""
    short = value if len(value) <= LONGEST else value[: LONGEST - 1] + "…"
    seen = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in short)
    return html.escape(seen.encode("utf-8", "backslashreplace").decode("utf-8"))


def value_text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else str(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _scores(run: RunRecord) -> list[tuple[str, float]]:
    return sorted(run.scores.items(), key=lambda pair: pair[0] != run.metric)


def _cost(run: RunRecord) -> str:
    if run.cost_usd is None:
        return ""
    return f"{usd_text(run.cost_usd)} {AT_LIST_PRICES}, its share{mark(run.place.provider if run.place else None)}"


def _state(run: RunRecord) -> str:
    colour = _STATES.get(run.state, "inherit" if is_terminal(run.state) else "#9a6700")
    return f'<span style="color:{colour}">{text(str(run.state))}</span>'


def _times(timings: Timings) -> str:
    took = [(each.name.removesuffix("_s"), getattr(timings, each.name)) for each in fields(Timings)]
    spent = [f"{name} {duration_text(seconds)}" for name, seconds in took if seconds > 0 and name != "total"]
    return ", ".join(spent)


def _files(run: RunRecord) -> str:
    outputs = [each for each in run.artifacts if each.kind == "output"]
    named = [f"{text(each.path)} ({size_text(each.size)})" for each in outputs[:SHOWN]]
    more = [f"and {len(outputs) - SHOWN:,} more"] if len(outputs) > SHOWN else []
    return "<br>".join([*named, *more])
