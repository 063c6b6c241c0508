"""What is said of a grid when its command returns: how it ended and its best cells, or where it was left."""

from __future__ import annotations

from functools import partial

from cloudrun.cli.printing import assignments_text, when_text
from cloudrun.core.states import GridState
from cloudrun.grids.grid import Finished
from cloudrun.grids.machines import units_of
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import AT_LIST_PRICES, usd_text
from cloudrun.plan.quantities import counted, score_text
from cloudrun.plan.ranking import NOTHING_PREFERRED, Preferred, chosen, direction_text

RANKED = 10  # cells in the ranking at the end


def closing_lines(
    finished: Finished, ledger: Ledger, asked: Preferred = NOTHING_PREFERRED, *, minimize: bool | None = None
) -> list[str]:
    """`asked`: the metric of the command and its settings; `minimize`: what was typed, whatever ranks then."""
    tally, grid = finished.tally, finished.grid
    counts = [f"{tally.succeeded} succeeded"]
    counts += [f"{tally.taken} of them before"] if 0 < tally.taken < tally.cells else []
    counts += [f"{tally.failed} failed"] if tally.failed else []
    counts += [f"{tally.cancelled} cancelled"] if tally.cancelled else []
    counts += [f"{tally.left} left"] if tally.left else []
    counts += [f"{tally.elsewhere} on machines that cannot be reached"] if tally.elsewhere else []
    lines = [f"{grid.grid_id} ({grid.name}) {grid.state}: {', '.join(counts)}"]
    if why := finished.why or (finished.failures.in_words(tally.cells) if _all_failed(finished) else ""):
        lines.append(f"  why    {why}")
    if bill := str(finished.bill):
        earlier = f", {usd_text(finished.earlier_usd)} of it before this command" if finished.earlier_usd else ""
        lines.append(f"  cost   {bill}{earlier}")
    lines += [f"  {line}" for line in ranking(finished, ledger, asked, minimize=minimize)]
    return [*lines, *(f"  next   {step}" for step in _next_steps(finished))]


def _all_failed(finished: Finished) -> bool:
    return bool(finished.failures.first_run) and finished.tally.failed == finished.tally.cells


def _next_steps(finished: Finished) -> list[str]:
    grid, failures = finished.grid, finished.failures
    log = f"cloudrun show {failures.first_run} --log"
    if _all_failed(finished) or (finished.why and finished.why == failures.stop(finished.tally.cells)):
        go_on = "" if _all_failed(finished) else " (--keep-going tries the other cells)"
        return [f"{log}, then correct the script and type the same command{go_on}"]
    steps = []
    if grid.state is not GridState.DONE:
        more = ", with a higher --budget" if grid.budget_usd is not None and "budget" in finished.why else ""
        steps.append(f"the same command goes on with it{more}")
    if failures.first_run:
        steps.append(f"{log}, the first that failed")
    return [*steps, f"cloudrun results --grid {grid.grid_id}, or cloudrun report {grid.grid_id} --open"]


def ranking(
    finished: Finished, ledger: Ledger, asked: Preferred = NOTHING_PREFERRED, *, minimize: bool | None = None
) -> list[str]:
    """The best cells, best first; nothing where none has a score."""
    lines: list[str] = []
    grid_id = finished.grid.grid_id
    metric, minimize = chosen(None, minimize, asked, partial(ledger.has_score, grid_id=grid_id))
    order = ledger.ordering(grid_id, metric=metric, minimize=minimize, sort=None)
    metric, minimize = order.metric, order.minimize
    if metric is None:
        return lines
    if way := direction_text(metric, minimize):
        lines.append(f"     by {metric}, {way}")
    best = ledger.ranking(metric, minimize=minimize, grid_id=grid_id, limit=RANKED)
    for place, run in enumerate(best, 1):
        lines.append(f"{place:>3}  {metric} {score_text(run.scores[metric])}  {assignments_text(run.params)}")
    if len(best) == RANKED < finished.tally.succeeded:
        shown = f"{RANKED} of {finished.tally.succeeded} shown"
        lines.append(f"     {shown}: cloudrun results --grid {grid_id} --limit 0")
    return lines


def detached_lines(finished: Finished, ledger: Ledger) -> list[str]:
    """After `--detach`: where its cells are, until when, and how to come back to them."""
    tally, grid = finished.tally, finished.grid
    units = units_of(ledger, grid.grid_id)
    machines = counted(len(units), "machine")
    lines = [
        f"{grid.grid_id} ({grid.name}): {tally.running} of {counted(tally.cells, 'cell is', 'cells are')} on {machines}"
    ]
    if units:
        lines[0] += f", powering off by {when_text(max(unit.deadline for unit in units))}"
    counts = [f"{tally.succeeded} have succeeded before"] if tally.succeeded else []
    counts += [f"{tally.failed} failed"] if tally.failed else []
    counts += [f"{tally.cancelled} cancelled"] if tally.cancelled else []
    counts += [f"{tally.left} wait: {finished.why}" if finished.why else f"{tally.left} wait"] if tally.left else []
    lines += [f"  cells  {', '.join(counts)}"] if counts else []
    if finished.most_usd:
        lines.append(
            f"  cost   at most {usd_text(finished.most_usd)} {AT_LIST_PRICES}, if all run until their deadlines"
        )
    lines.append(
        f"  next   cloudrun attach {grid.grid_id}   (goes on with it to its end; from any folder of this project)"
    )
    lines.append(f"         cloudrun ps, cloudrun pull {grid.grid_id}, cloudrun cancel {grid.grid_id}")
    return lines
