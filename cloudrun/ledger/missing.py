"""A reference that nothing has: what was meant by it, among runs and grids."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.near import did_you_mean, instead, nearest
from cloudrun.ledger.rows import find_id
from cloudrun.plan.typed import quoted

RUN_IDS = ("r-", "run-")  # what their ids begin with
GRID_IDS = ("g-",)
NEWEST = 1000  # of each are looked at for what is near


def no_score(metric: str, known: Sequence[str]) -> UsageError:
    """The error for a score that no run has; `known` are those that some have."""
    return _none_of("has the score", metric, known)


def no_script(script: str, known: Sequence[str]) -> UsageError:
    """The same for a script that no run is of."""
    return _none_of("is of the script", script, known)


def _none_of(what: str, name: str, known: Sequence[str]) -> UsageError:
    meant = instead(name, known)
    return UsageError(
        f"no run here {what} {name!r}{did_you_mean(name, known)}",
        next_step=f"ask for {meant[1]!r}" if meant else f"ask for one of: {', '.join(known[:20])}",
        instead=meant,
    )


def no_such(connection: sqlite3.Connection, kind: Literal["run", "grid"], reference: str) -> NotFound:
    """The error for a reference to no run, or no grid: it is one of the other, or near to some of either."""
    with suppress(UsageError):  # several begin so: of the other kind, which was not asked for
        if kind == "run" and (grid_id := find_id(connection, "grids", "grid_id", GRID_IDS, reference)):
            return NotFound(
                f"{grid_id} is a grid, and this takes a run",
                next_step=f"cloudrun show {grid_id} shows it, cloudrun results --grid {grid_id} lists its runs",
            )
        if kind == "grid" and (run_id := find_id(connection, "runs", "run_id", RUN_IDS, reference)):
            return NotFound(f"{run_id} is a run, and this takes a grid", next_step=f"cloudrun show {run_id} shows it")
    message, step = f"no {kind} {reference!r} in the ledger", "`cloudrun results` lists what there is"
    newest = connection.execute(
        "SELECT run_id, name, script FROM runs ORDER BY created_at DESC LIMIT ?", [NEWEST]
    ).fetchall()
    scripts = {row["script"].rpartition("/")[2]: row["script"] for row in newest}
    if reference in scripts or reference in scripts.values():
        return NotFound(
            f"{message}: that is a script", next_step=f"cloudrun results --script {quoted(reference)} lists its runs"
        )
    known: dict[str, None] = {}
    if kind == "run" and not reference.startswith(GRID_IDS):
        known |= dict.fromkeys(word for row in newest for word in (row["name"], row["run_id"]))
    if kind == "grid" or not reference.startswith(RUN_IDS):
        grids = connection.execute("SELECT grid_id, name FROM grids ORDER BY created_at DESC LIMIT ?", [NEWEST])
        known |= dict.fromkeys(str(word) for row in grids for word in row)
    if near := nearest(reference, known, 3):
        return NotFound(f"{message}; near: {', '.join(near)}", next_step=step, instead=(reference, near[0]))
    if meant := nearest(reference, scripts):
        step = f"cloudrun results --script {quoted(scripts[meant[0]])} lists the runs of that script"
    return NotFound(message, next_step=step)
