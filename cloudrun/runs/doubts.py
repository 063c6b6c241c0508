"""What a submission names that no earlier run of its script knows: said before a machine is paid for."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cloudrun.core.errors import UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.near import nearest
from cloudrun.ledger import Ledger
from cloudrun.plan.mistyped import is_said, meant_parameter
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
    metric_set_in: str = "",
) -> None:
    """Warn of parameters and of a metric that were probably mistyped. `metric_set_in`: the file and line, or the
    variable, that the metric stands in; "" where it was typed.

    Raises UsageError where that is next to certain: earlier runs of the script gave scores, none of the project's is
    called so, one of theirs nearly is, and the script's code has no such word either. A name with digits in it
    (precision_at_10) may be put together there.
    """
    if not params and metric is None:
        return
    path = checked_script(script)
    root = project_root(path)
    name = path.relative_to(root).as_posix()
    known = ledger.names(script=name, limit=NEWEST)
    files, _ = local_code(root, name)
    code = "\n".join(text.decode("utf-8", "replace") for text in files.values())
    for param in params:
        if meant := meant_parameter(param, code, known.params):
            observe(
                Note(f"nothing in {name} or its earlier runs is called {param!r}: did you mean {meant}?", "warning")
            )
    if metric is None or not known.scores or metric in known.scores or is_said(metric, code):
        return
    near = nearest(metric, known.scores)
    is_made = any(letter.isdigit() for letter in metric)
    if near and not metric_set_in and not is_made and metric not in ledger.names(limit=NEWEST).scores:
        raise UsageError(
            f"no run of {name} so far gave a score {metric!r}; did you mean {near[0]}?\n"
            "a new score is ranked by afterwards: cloudrun results --metric NAME",
            next_step=f"--metric {near[0]}, or leave it out",
            instead=(metric, near[0]),
        )
    meant = f"; did you mean {near[0]}?" if near else ""
    where = f"{metric_set_in}: " if metric_set_in else ""
    gave = ", ".join(known.scores)
    observe(Note(f"{where}no run of {name} so far gave a score {metric!r}, they gave {gave}{meant}", "warning"))
