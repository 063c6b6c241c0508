"""What a name means on a command line, where several runs and grids are called so; which one it is, is said on stderr.

The newest of that name is meant. A cell is called as its grid, and is none that somebody has named: where the newest is
a cell, its grid is meant, by whichever command takes grids. Ids mean what has them, and nothing is said.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress

from cloudrun.cli.printing import printable
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.records import RunRecord
from cloudrun.core.states import is_terminal
from cloudrun.ledger import Ledger
from cloudrun.plan.filters import Column, Comparison


def grid_meant(ledger: Ledger, reference: str) -> str | None:
    """The id of the grid that is meant; None where a run is, or nothing.

    Raises UsageError where several ids begin so, NotFound for what looks like a grid's id and is none.
    """
    if grids := ledger.grids_called(reference):
        if not _is_a_run_of_its_own(ledger, reference, grids):
            say_grid(reference, grids, _on_machines(ledger, reference))
            return grids[0]
    elif reference.startswith("g-"):
        return ledger.grid(reference).grid_id
    else:
        try:
            ledger.run(reference)
        except NotFound:
            with suppress(NotFound):
                return ledger.grid(reference).grid_id
    return None


def _is_a_run_of_its_own(ledger: Ledger, reference: str, grids: Sequence[str]) -> bool:
    """Whether the newest that is called so is a run, and no cell of these grids, which are called so too."""
    try:
        run = ledger.run(reference)
    except (NotFound, UsageError):
        return False
    if run.name != reference or run.run_id == reference:
        return run.run_id == reference
    is_cell = not set(grids).isdisjoint(ledger.grids_with([run.run_id]))
    return not is_cell and run.created_at > ledger.grid(grids[0]).created_at


def say_grid(name: str, grids: Sequence[str], waiting: Sequence[RunRecord] = ()) -> None:
    """`grids`: the ids of all that are called so, the newest first; `waiting`: runs that are, and are not home."""
    newest, *older = grids
    some = f"; older ones: {', '.join(older[:5])}{', ...' if len(older) > 5 else ''}" if older else ""
    print(f"  the newest grid called {printable(name)} is {newest}{some}{_not_home(waiting)}", file=sys.stderr)


def run_meant(ledger: Ledger, reference: str, *, not_home: bool = False) -> str:
    """The id of the run that is meant; with `not_home` rather one that waits on a machine than a newer one that does
    not. Raises UsageError where several ids begin so, NotFound where there is none."""
    run = ledger.run(reference)
    if run.name != reference or run.run_id == reference:
        return run.run_id
    waiting = _on_machines(ledger, reference)
    if not_home and waiting and (run.instance_id is None or is_terminal(run.state)):
        newest, run = run, waiting[-1]
        whose = f"the newest called {printable(reference)} is {newest.run_id}, {newest.state}"
        print(f"  {run.run_id} is not home; {whose}", file=sys.stderr)
    elif others := namesakes(ledger, run):
        there = _not_home([each for each in waiting if each.run_id != run.run_id])
        print(f"  {run.run_id} ({printable(run.name)}) {run.state}{others}{there}", file=sys.stderr)
    return run.run_id


def _on_machines(ledger: Ledger, name: str) -> list[RunRecord]:
    """Runs of their own that are called so and not home, the oldest first."""
    return [run for run in ledger.unfinished_runs(placed=True) if run.name == name and run.grid_id is None]


def _not_home(waiting: Sequence[RunRecord]) -> str:
    return f"; not home: {', '.join(each.run_id for each in waiting[-5:])}" if waiting else ""


def namesakes(ledger: Ledger, run: RunRecord) -> str:
    """How many others are called as the run that was meant by its name, and which grid is; "" where nothing is."""
    others = ledger.count(where=[Comparison(Column("field", "name"), "=", run.name)]) - 1
    said = f", the newest of {others + 1:,} that are called so" if others else ""
    grids = ledger.grids_called(run.name)
    return f"{said}; the grid that is called so is {grids[0]}" if grids else said
