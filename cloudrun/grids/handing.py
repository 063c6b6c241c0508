"""Handing a grid out: who lives is caught up with, machines are launched for the rest, each is left to its share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CleanupIncomplete, CloudrunError, LedgerError
from cloudrun.core.events import Note, Observer
from cloudrun.grids.cells import Cells
from cloudrun.grids.detaching import HandOver, Share, deal
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Backlog, Limits, UnitView, decide
from cloudrun.pools.pool import Pool
from cloudrun.pools.work import Joined
from cloudrun.runs.prepared import Prepared

MINE = (Cancelled, CleanupIncomplete, LedgerError)  # errors that no other machine helps against


@dataclass(frozen=True)
class HandedOut:
    """`most_usd`: what the grid's machines can cost until the last of them powers itself off. `why`: what kept cells
    from being handed out; "" where all were."""

    most_usd: float
    why: str = ""


def hand_out(
    cells: Cells,
    plan: Prepared,
    limits: Limits,
    ledger: Ledger,
    observe: Observer,
    take_over: Callable[[], Joined],
    make_pool: Callable[[Limits], Pool],
) -> HandedOut:
    """`take_over` gives the machines that live; `make_pool` has units of one slot: each carries out one share.

    A share whose machine does not come up goes to the others. Raises what kept it from all.
    """
    queue: list[str] | None = None
    for may_launch in (True, False):
        joined = take_over()
        if queue is None:
            queue = _drained(cells)
        new, why = _to_launch(queue, joined, limits) if may_launch else (0, "")
        if not new and not joined.units:
            return HandedOut(joined.spent_usd, why)
        shares = deal(queue, [len(tasks) for _, _, tasks in joined.units] + [0] * new)
        there = zip(joined.units, shares, strict=False)
        joined = replace(
            joined, units=tuple((unit, price, (Share(tasks, tuple(dealt)),)) for (unit, price, tasks), dealt in there)
        )
        others = [Share(cells=tuple(dealt)) for dealt in shares[len(joined.units) :] if dealt]
        work = HandOver(ledger, plan, others, observe)
        pool = make_pool(replace(limits, slots=1, max_units=new + len(joined.units) if may_launch else 0))
        try:
            pool.run(work, joined)
        except CloudrunError as error:
            if not (work.left and work.handed) or isinstance(error, MINE):
                raise
            observe(Note(f"{error}; its share goes to the others", "warning"))
        queue = work.left
        if not queue:
            break
    return HandedOut(pool.bill.ended_usd, (pool.why or str(work.trouble or why)) if queue else "")


def _drained(cells: Cells) -> list[str]:
    """The runs of all cells that wait, in the order in which they should be started."""
    queue = []
    while (cell := cells.take()) is not None:
        queue.append(cell.run.run_id)
    return queue


def _to_launch(queue: list[str], joined: Joined, limits: Limits) -> tuple[int, str]:
    """How many units the queue needs and the limits allow, and why fewer than it needs."""
    if not queue:
        return 0, ""
    views = [
        UnitView(unit.instance_id, "ready", 1, 1, unit.created_at.timestamp(), unit.deadline.timestamp(), price)
        for unit, price, _ in joined.units
    ]
    wanted = Backlog(ceil(len(queue) / limits.slots), 0)
    decision = decide(SystemClock().now().timestamp(), wanted, views, replace(limits, slots=1), joined.spent_usd)
    return decision.launch, decision.why
