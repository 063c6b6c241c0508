"""All that is known of one run, for people: what `cloudrun show` prints."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from itertools import accumulate
from typing import TYPE_CHECKING

from cloudrun.cli.printing import Style, printable, styled, when_text
from cloudrun.cli.summary import SHORTEST_S, headline, usage_text
from cloudrun.cli.under_way import standing
from cloudrun.core.records import Artifact, RunRecord, Timings, UnitRecord
from cloudrun.core.states import RunState, is_terminal
from cloudrun.plan.costs import Bill, usd_text
from cloudrun.plan.quantities import counted, duration_text, score_text, size_text
from cloudrun.plan.typed import command

if TYPE_CHECKING:
    from cloudrun.runs.watching import Seen

LABEL = 13  # columns
BAR = (5, 40)  # columns of the phases' bars, at least and at most


def page(
    run: RunRecord,
    unit: UnitRecord | None,
    bill: Bill,
    tails: Mapping[str, Sequence[str]],
    *,
    encoding: str | None,
    width: int | None,
    seen: Seen | None = None,
    attended: bool = False,
) -> list[str]:
    """`seen`: what its machine says of it, of a run that is not over; `attended`: a process goes on with its grid;
    `tails`: the last lines of its logs by name; `encoding`: what the screen can show, `width`: how much of it beside
    another (None: as much as there is)."""
    solid = "█" if _can_show("█", encoding) else "#"
    parts: list[tuple[str, list[str]]] = [
        ("why", [seen.problem] if seen else []),
        ("name", [run.name]),
        ("script", [" ".join([run.script, *run.arguments])]),
        ("params", [f"{name} = {value}" for name, value in run.params.items()]),
        ("scores", list(_scores(run))),
        ("unit", [_unit(run, unit)]),
        ("created", [_when(run)]),
        ("time", list(_phases(run, solid, (width or 80) - LABEL))),
        ("used", [usage_text(run.usage)] if run.usage else []),
        ("attempts", [str(run.attempts)] if run.attempts > 1 else []),
        ("cost", list(_cost(run, bill))),
        ("made with", list(_passport(run))),
        ("code", [run.code_digest[:16]]),
        ("data", [run.data_digest[:16]]),
        ("environment", [run.environment_digest[:16]]),
        ("grid", [run.grid_id or ""]),
        ("files", list(_files(run, "output"))),
        ("logs", list(_files(run, "log"))),
    ]
    first = headline(run, standing(seen, datetime.now(UTC)) if seen else "")
    lines = [styled(line, _style(run)) for line in _fitting(first, width, label=0)]
    for name, texts in parts:
        said = [line for text in texts if text for line in _fitting(printable(text), width)]
        lines += [f"{_label(name if not place else '')}{text}" for place, text in enumerate(said)]
    for log, last in tails.items():
        lines += [styled(f"{log} ends with", "quiet"), *(f"  {line}" for line in last)]
    step = (seen.next_step if seen else "") or _next_step(run, attended)
    if width is not None and LABEL + len(step) > width:  # it is copied: no end of a line in the middle of it
        return [*lines, styled("next", "quiet"), styled(step, "command")]
    return [*lines, f"{_label('next')}{styled(step, 'command')}"]


def _style(run: RunRecord) -> Style:
    return "good" if run.state is RunState.SUCCEEDED else "bad" if is_terminal(run.state) else "heading"


def _label(name: str) -> str:
    return styled(f"{name:<{LABEL}}", "quiet") if name else " " * LABEL


def _fitting(text: str, width: int | None, label: int = LABEL) -> list[str]:
    """The text on as many lines as it takes beside the labels; words that are longer than that are left whole."""
    room = max(20, (width or 0) - label)
    if width is None or len(text) <= room:
        return [text]
    too_long = any(len(word) > room for word in text.split())
    return textwrap.wrap(text, room, subsequent_indent="  ", break_long_words=False, break_on_hyphens=too_long)


def _can_show(letter: str, encoding: str | None) -> bool:
    try:
        letter.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _scores(run: RunRecord) -> Iterator[str]:
    """The one that ranks first."""
    for name in sorted(run.scores, key=lambda each: each != run.metric):
        way = f"  ({'smaller' if run.minimize else 'larger'} is better)" if name == run.metric else ""
        yield f"{name} {score_text(run.scores[name])}{way}"


def _unit(run: RunRecord, unit: UnitRecord | None) -> str:
    if run.instance_id is None:
        return ""
    where = f" in {run.place.region} ({run.place.provider})" if run.place else ""
    state = f", {unit.state}" if unit else ""
    return f"{run.instance_id}, {run.instance_type}{where}{state}"


def _when(run: RunRecord) -> str:
    ended = f", ended {when_text(run.ended_at, seconds=True)}" if run.ended_at else ""
    return when_text(run.created_at, seconds=True) + ended


def _phases(run: RunRecord, solid: str, columns: int) -> Iterator[str]:
    """A line for each phase, with a bar of when it was and how long."""
    timings = run.timings
    took = [(each.name.removesuffix("_s"), getattr(timings, each.name)) for each in fields(Timings)]
    spent = [(name, seconds) for name, seconds in took if seconds > 0 and name != "total"]
    if timings.total_s >= SHORTEST_S:
        yield f"{duration_text(timings.total_s)} {'in all' if is_terminal(run.state) else 'until its job began'}"
    whole_s = sum(seconds for _, seconds in spent)
    if not whole_s or not math.isfinite(whole_s):
        return
    room = max(BAR[0], min(BAR[1], columns - 21))
    ends = list(accumulate(seconds for _, seconds in spent))
    for (name, seconds), end in zip(spent, ends, strict=True):
        begin = min(room - 1, int(room * (end - seconds) / whole_s))
        bar = " " * begin + solid * max(1, round(room * end / whole_s) - begin)
        yield f"{name:<9} {bar[:room]:<{room}} {duration_text(seconds):>9}".rstrip()


def _cost(run: RunRecord, bill: Bill) -> Iterator[str]:
    """Its share, and what all of its machines took."""
    if run.cost_usd is not None:
        yield f"{usd_text(run.cost_usd)}, its share"
    if whole := str(bill):
        machines = "its machine" if bill.machines == 1 else f"its {counted(bill.machines, 'machine')}"
        yield f"{machines}: {whole}"


def _passport(run: RunRecord) -> Iterator[str]:
    if run.passport is not None:
        versions = [f"{package} {version}" for package, version in run.passport.packages.items()]
        yield ", ".join([f"python {run.passport.python}", *versions])
        yield run.passport.platform


def _files(run: RunRecord, kind: str) -> Iterator[str]:
    artifacts: list[Artifact] = [artifact for artifact in run.artifacts if artifact.kind == kind]
    width = min(48, max((len(printable(artifact.path)) for artifact in artifacts), default=0))
    for artifact in artifacts:
        yield f"{artifact.path:<{width}}  {size_text(artifact.size):>7}  {artifact.sha256[:16]}"


def _next_step(run: RunRecord, attended: bool) -> str:
    if run.state is RunState.QUEUED and run.grid_id and attended:
        return f"a process goes on with {run.grid_id}: cloudrun ps shows how far it is"
    if run.state is RunState.QUEUED and not run.attempts and run.grid_id:
        return f"the same command as before begins it, or cloudrun attach {run.grid_id}"
    if not is_terminal(run.state):
        follow = "attach" if run.state is RunState.QUEUED and run.attempts else "logs -f"
        return f"cloudrun {follow} {run.run_id}"
    if run.state is not RunState.SUCCEEDED:
        if run.state is RunState.CANCELLED and not run.attempts:  # it never began: there is no log
            return f"cloudrun show {run.grid_id}" if run.grid_id else "submit it again"
        return f"cloudrun show {run.run_id} --log"
    outputs = [artifact.path for artifact in run.artifacts if artifact.kind == "output"]
    return command("get", run.run_id, outputs[0]) if outputs else f"cloudrun logs {run.run_id}"


def last_lines(path: os.PathLike[str], count: int, *, most_bytes: int = 64_000) -> list[str]:
    """Of a log that may be large, as a screen may show them."""
    with open(path, "rb") as stream:  # noqa: PTH123
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - most_bytes))
        text = stream.read().decode("utf-8", "replace")
    written_over = [line.rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n")]
    lines = written_over[:-1] if written_over[-1] == "" else written_over
    return [printable(line.expandtabs()) for line in lines[-count:]] if count else []
