"""What a submission names that no earlier run of its script knows: said before a machine is paid for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from cloudrun.core.errors import UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.near import nearest
from cloudrun.ledger import Ledger
from cloudrun.plan import spoken
from cloudrun.plan.mistyped import argument_doubt, is_no_score, parameter_doubt
from cloudrun.plan.typed import quoted
from cloudrun.runs.prepared import local_code
from cloudrun.runs.project import checked_script, project_root

NEWEST = 200  # runs whose names are looked at


def check_names(
    script: Path,
    params: Collection[str],
    metric: str | None,
    ledger: Ledger,
    observe: Observer,
    *,
    arguments: Sequence[str] = (),
    metric_set_in: str = "",
    is_keyword: bool = False,
) -> None:
    """Warn of parameters, of arguments and of a metric that were probably mistyped. `metric_set_in`: the file and line,
    or the variable, that the metric stands in; "" where it was typed, on a command line or as a keyword of Python's.

    Raises UsageError where that is next to certain of the metric (`is_no_score`), and no run of the project has it.
    """
    if not params and not arguments and metric is None:
        return
    path = checked_script(script)
    root = project_root(path)
    name = path.relative_to(root).as_posix()
    known = ledger.names(script=name, limit=NEWEST)
    files, _ = local_code(root, name)
    code = spoken.read(text.decode("utf-8-sig", "replace") for text in files.values())
    doubts = [parameter_doubt(param, code, known.params) for param in params]
    for doubt in (*doubts, argument_doubt(arguments, code, known.params)):
        if doubt:
            observe(Note(f"{name} {doubt}", "warning"))
    if metric is None or not known.scores or metric in known.scores or code.says(metric):
        return
    is_new = metric not in ledger.names(limit=NEWEST).scores
    near = nearest(metric, known.scores)
    if near and is_new and not metric_set_in and is_no_score(metric, code, known.scores):
        raise UsageError(
            f"no run of {name} so far gave a score {metric!r}; did you mean {near[0]}?\n"
            "a new score is ranked by afterwards: cloudrun results --metric NAME",
            next_step=f"metric={near[0]!r}, or leave it out"
            if is_keyword
            else f"--metric {quoted(near[0])}, or leave it out",
            instead=(metric, near[0]),
        )
    meant = f"; did you mean {near[0]}?" if near else ""
    where = f"{metric_set_in}: " if metric_set_in else ""
    gave = ", ".join(known.scores)
    observe(Note(f"{where}no run of {name} so far gave a score {metric!r}, they gave {gave}{meant}", "warning"))
