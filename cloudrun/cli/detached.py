"""Grids that are left to their machines: `attach` and `pull` by a grid's id."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from cloudrun.cli.printing import print_json
from cloudrun.core.errors import CleanupIncomplete, JobFailed
from cloudrun.core.states import GridState
from cloudrun.grids.cells import ON_UNITS
from cloudrun.grids.grid import Finished
from cloudrun.grids.machines import bill_of
from cloudrun.grids.rows import tally_of
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import counted
from cloudrun.plan.ranking import Preferred
from cloudrun.runs.failing import why_failed

if TYPE_CHECKING:
    from cloudrun.grids.gathering import Pulled


def attach_to_grid(ledger: Ledger, reference: str, profile: str | None, *, as_json: bool) -> int:
    """Go on with a grid from the command line; returns the exit code."""
    from cloudrun.cli.grid import GridDisplay, close_with
    from cloudrun.grids.going_on import attach_grid

    grid = ledger.grid(reference)
    metric, minimize = grid.settings.get("metric"), bool(grid.settings.get("minimize"))
    with GridDisplay(metric, minimize=minimize, why=partial(why_failed, ledger)) as display:
        display.say(f"{grid.grid_id} ({grid.name}): {counted(grid.cells, 'cell')} of {grid.script}")
        finished = attach_grid(
            ledger, grid.grid_id, observe=display, profile=profile, changed=display.changed, over=display.over
        )
        return close_with(finished, ledger, display, Preferred(metric, minimize or None), as_json=as_json)


def pull_of_grid(ledger: Ledger, reference: str, profile: str | None, *, as_json: bool) -> int:
    """Bring home what has ended; returns the exit code."""
    from cloudrun.cli.grid import GridDisplay
    from cloudrun.grids.gathering import pull_grid

    with GridDisplay() as display:
        pulled = pull_grid(ledger, reference, observe=display, profile=profile)
        return _tell_pulled(pulled, ledger, display.say, as_json=as_json)


def _tell_pulled(pulled: Pulled, ledger: Ledger, say: Callable[[str], None], *, as_json: bool) -> int:
    """What is home, what is not, and what to type next."""
    grid, counts = pulled.grid, pulled.counts
    tally = tally_of(grid, ledger, 0)
    tally.running = there = sum(counts[state] for state in ON_UNITS)
    failed, left = tally.failed, tally.left
    words = {"succeeded": tally.succeeded, "failed": failed, "cancelled": tally.cancelled}
    words |= {"on machines": there, "without a machine": left}
    say(f"{grid.grid_id} ({grid.name}) {grid.state}: {', '.join(f'{n} {word}' for word, n in words.items() if n)}")
    if there or left:
        say(f"  next   cloudrun attach {grid.grid_id} goes on with it, cloudrun ps shows how far it is")
    elif grid.state in (GridState.OPEN, GridState.STOPPED):  # with --retries, which takes machines
        say(f"  next   cloudrun attach {grid.grid_id} tries again what has failed")
    else:
        say(f"  next   cloudrun results --grid {grid.grid_id}, or cloudrun report {grid.grid_id} --open")
    if as_json:
        from cloudrun.cli.grid import document as grid_document

        bill = bill_of(ledger, grid.grid_id)
        print_json(grid_document(Finished(grid, tally, bill, "; ".join(pulled.problems)), ledger))
    if pulled.problems:
        return CleanupIncomplete.exit_code  # machines that may be billing
    return JobFailed.exit_code if failed or tally.cancelled else 0
