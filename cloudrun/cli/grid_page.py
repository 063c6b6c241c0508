"""What `cloudrun show` says of a grid: how far it is, its best cells, what it cost, and what to type next."""

from __future__ import annotations

from cloudrun.cli.grid import document
from cloudrun.cli.grid_summary import ranking
from cloudrun.cli.preferred import preferred
from cloudrun.cli.printing import assignments_text, print_json, printable, when_text
from cloudrun.cli.run_page import LABEL
from cloudrun.cli.under_way import cells_of
from cloudrun.core.clock import SystemClock
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import GridState, RunState
from cloudrun.grids.cells import ON_UNITS
from cloudrun.grids.grid import Finished
from cloudrun.grids.machines import bill_of, units_of
from cloudrun.grids.rows import tally_of
from cloudrun.grids.watching import SeenGrid, glance
from cloudrun.ledger import Ledger
from cloudrun.plan.ranking import NOTHING_PREFERRED, Preferred
from cloudrun.runs.failing import why_failed
from cloudrun.units.clients import is_alive

FAILED = (RunState.FAILED, RunState.LOST)


def show_grid(ledger: Ledger, reference: str, profile: str | None, *, as_json: bool) -> None:
    """Print it; of cells on machines that nobody looks after, what those machines say. Raises NotFound, UsageError."""
    grid = ledger.grid(reference)
    tally = tally_of(grid, ledger, 0)
    counts = ledger.counts(grid.grid_id)
    tally.running = sum(counts[state] for state in ON_UNITS)
    found = Finished(grid, tally, bill_of(ledger, grid.grid_id), grid.detail)
    seen = glance(ledger, grid, profile) if tally.running else None
    if as_json:
        whole = document(found, ledger)
        there = {"there": dict(seen.there)} if seen and not seen.attended else {}
        print_json({**whole, "summary": {**whole["summary"], **there}})
    else:
        print("\n".join(printable(line) for line in page(found, ledger, preferred(), seen)))


def page(
    found: Finished, ledger: Ledger, of_settings: Preferred = NOTHING_PREFERRED, seen: SeenGrid | None = None
) -> list[str]:
    grid, tally = found.grid, found.tally
    words = {"succeeded": tally.succeeded, "failed": tally.failed, "cancelled": tally.cancelled}
    words |= {"on machines": tally.running, "left": tally.left}
    cells = f"{grid.cells:,}: {', '.join(f'{count} {word}' for word, count in words.items() if count)}"
    if seen is not None and not seen.attended:
        cells = ", ".join(cells_of(seen))
    failed = _first_failed(grid, ledger)
    units = units_of(ledger, grid.grid_id)
    until = f", powering off by {when_text(max(unit.deadline for unit in units))}" if units else ""
    parts: list[tuple[str, list[str]]] = [
        ("grid", [grid.grid_id]),
        ("script", [" ".join([grid.script, *grid.spec.get("arguments", ())])]),
        ("cells", [cells]),
        ("created", [when_text(grid.created_at) + (f", ended {when_text(grid.ended_at)}" if grid.ended_at else "")]),
        ("why", [found.why, *(seen.problems if seen else ())]),
        ("machines", [f"{', '.join(unit.instance_id for unit in units)}{until}"] if units else []),
        ("budget", [f"${grid.budget_usd:g}"] if grid.budget_usd is not None else []),
        ("cost", [str(found.bill)]),
        ("best", [line.strip() for line in ranking(found, ledger, of_settings)]),
        ("failed", [_told(failed, ledger)] if failed else []),
        ("next", _next_steps(found, failed, ledger, seen)),
    ]
    lines = [f"{grid.name}, a grid, is {grid.state}"]
    for name, texts in parts:
        said = [text for text in texts if text]
        lines += [f"{name if not place else '':<{LABEL}}{text}" for place, text in enumerate(said)]
    return lines


def _first_failed(grid: GridRecord, ledger: Ledger) -> RunRecord | None:
    cells = ledger.cells(grid.grid_id, limit=1, states=FAILED)
    return ledger.run(cells[0].run_id) if cells else None


def _told(failed: RunRecord, ledger: Ledger) -> str:
    return "  ".join(each for each in (why_failed(ledger, failed), assignments_text(failed.params)) if each)


def _next_steps(found: Finished, failed: RunRecord | None, ledger: Ledger, seen: SeenGrid | None) -> list[str]:
    grid, grid_id = found.grid, found.grid.grid_id
    steps = []
    if grid.state is GridState.OPEN and is_alive(ledger.client(grid.client_id), SystemClock().now()):
        steps.append(f"a process goes on with it: cloudrun ps shows how far it is, cloudrun cancel {grid_id} ends it")
    elif grid.state in (GridState.OPEN, GridState.STOPPED):
        steps.append(seen.next_step if seen else f"the same command goes on with it, or cloudrun attach {grid_id}")
    if failed is not None:
        steps.append(f"cloudrun show {failed.run_id} --log, the first that failed")
    return [*steps, f"cloudrun results --grid {grid_id}, or cloudrun report {grid_id} --open"]
