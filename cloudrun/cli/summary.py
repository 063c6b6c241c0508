"""One run in words: the closing lines of a submission."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from cloudrun.cli.printing import printable, when_text
from cloudrun.core.records import RunRecord, Timings, UnitRecord, Usage
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.ledger.models import is_model
from cloudrun.plan.costs import Bill
from cloudrun.plan.quantities import duration_text, score_text, size_text
from cloudrun.plan.scores import nearly_score
from cloudrun.plan.typed import command

SHORTEST_S = 0.05  # that is said of a run: one that was ended before it began took no time


def exit_code(run: RunRecord) -> int:
    """What a shell gets: 0 done, 5 the job failed, 124 deadline, 130 cancelled, 1 where it was not the job's doing."""
    if run.state is RunState.SUCCEEDED:
        return 0
    if run.end_reason is EndReason.DEADLINE:
        return 124
    if run.state is RunState.CANCELLED:
        return 130
    not_the_jobs = {EndReason.PROVISION_FAILED, EndReason.SHIP_FAILED, EndReason.PULL_FAILED, EndReason.UNIT_LOST}
    if run.state is RunState.FAILED and run.end_reason not in not_the_jobs:
        return 5
    return 1


def timings_text(timings: Timings) -> str:
    spent = [(field.name.removesuffix("_s"), getattr(timings, field.name)) for field in fields(timings)]
    return ", ".join(f"{name} {duration_text(seconds)}" for name, seconds in spent if seconds and name != "total")


def headline(run: RunRecord, standing: str = "") -> str:
    """ "run-... (digits) succeeded in 6.2 s: accuracy 0.972222"; of one that is not over, what it does now."""
    name = f" ({run.name})" if run.name and run.name != run.run_id else ""
    if not is_terminal(run.state):
        return printable(f"{run.run_id}{name} {standing or f'is {run.state}'}")
    took = f" in {duration_text(run.timings.total_s)}" if run.timings.total_s >= SHORTEST_S else ""
    return printable(f"{run.run_id}{name} {run.state}{took}{_outcome(run)}")


def _outcome(run: RunRecord) -> str:
    if run.state is RunState.SUCCEEDED:
        scores = scores_text(run)
        return f": {scores}" if scores else ""
    if run.end_reason is EndReason.EXITED and run.exit_code is not None:
        return f": the script exited with code {run.exit_code}"
    why = run.detail or (str(run.end_reason).replace("_", " ") if run.end_reason else "")
    return f": {why}" if why else ""


def scores_text(run: RunRecord) -> str:
    """The primary score first."""
    names = sorted(run.scores, key=lambda name: name != run.metric)
    return ", ".join(f"{name} {score_text(run.scores[name])}" for name in names)


def closing_lines(run: RunRecord, stored_at: Callable[[str], Path], bill: Bill | None = None) -> list[str]:
    """After a submission: the score, the time by phase, what it cost, where the model is, and what to type next.

    `stored_at` gives the place of a digest in the artifact store; `bill` is of its machines.
    """
    lines = [headline(run)]
    if timings := timings_text(run.timings):
        lines.append(f"  time   {timings}")
    if bill is not None and (cost := str(bill)):
        lines.append(f"  cost   {cost}")
    if run.state is RunState.SUCCEEDED and not run.scores:
        meant = _meant_as_score(run, stored_at)
        why = f", {printable(meant)} is none" if meant else ""
        lines.append(
            f'  score  none was found{why}; print one as JSON, {{"accuracy": 0.97}}, or as a line, accuracy: 0.97'
        )
    models = [artifact for artifact in run.artifacts if artifact.kind == "output" and is_model(artifact.path)]
    lines += [
        f"  model  {printable(model.path)} ({size_text(model.size)}) is {_from_here(stored_at(model.sha256))}"
        for model in models
    ]
    if not is_terminal(run.state):  # its machine was taken back, or another process still brings it home
        lines.append(f"  next   cloudrun {'attach' if run.state is RunState.QUEUED else 'show'} {run.run_id}")
    elif run.state is not RunState.SUCCEEDED:
        lines.append(f"  next   cloudrun show {run.run_id} --log")
    elif models:
        lines.append(f"  next   {command('get', run.run_id, models[0].path)}")
    else:
        lines.append(f"  next   cloudrun show {run.run_id}")
    return lines


def _meant_as_score(run: RunRecord, stored_at: Callable[[str], Path]) -> str:
    from cloudrun.runs.printed import scores_tail

    stdout = next((each for each in run.artifacts if each.kind == "log" and each.path == "stdout.log"), None)
    with suppress(OSError):
        return nearly_score(scores_tail(stored_at(stdout.sha256))) if stdout else ""
    return ""


def _from_here(path: Path) -> Path:
    """Relative to the working directory where it is below it: the path fits on a line then."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def detached_lines(run: RunRecord, unit: UnitRecord) -> list[str]:
    """After `--detach`: where it runs, until when, and how to come back to it."""
    return [
        f"{run.run_id} ({run.name}) runs on {unit.instance_id}, which powers itself off by {when_text(unit.deadline)}",
        f"  next   cloudrun attach {run.run_id}   (follow it and bring it home; from any folder of this project)",
        f"         cloudrun logs -f {run.run_id}, cloudrun cancel {run.run_id}, cloudrun extend {run.run_id} 2h",
    ]


def usage_text(usage: Usage) -> str:
    """ "12 s CPU, at most 310 MB memory, 24 MB written"."""
    cpu_s = usage.cpu_user_s + usage.cpu_system_s
    return (
        f"{duration_text(cpu_s)} CPU, at most {size_text(usage.peak_memory_bytes)} memory,"
        f" {size_text(usage.written_bytes)} written"
    )
