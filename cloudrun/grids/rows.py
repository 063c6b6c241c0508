"""A grid in the ledger: begun or found again by its identity, its cells filled in, and how far they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import UsageError
from cloudrun.core.ids import new_id
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import GridState, RunState, is_terminal
from cloudrun.grids.cells import Tally
from cloudrun.ledger import Ledger
from cloudrun.plan.grid import Grid
from cloudrun.runs import datasets, dispatch
from cloudrun.runs.prepared import Prepared, submission
from cloudrun.units.clients import is_alive

BATCH = 1000  # cells that are written in one transaction
T = TypeVar("T")


def begin(
    plan: Prepared,
    grid: Grid,
    wishes: Mapping[str, Any],
    ledger: Ledger,
    client_id: str,
    *,
    again: bool,
    budget_usd: float | None,
    only: str | None,
) -> tuple[GridRecord, GridRecord | None]:
    """The grid of this very command that is not over, or that has all of its cells; else a new one, and with `again`
    the one that it takes the place of. Where that was begun with `again` itself, it is gone on with.

    Raises UsageError where another process has it, and where it is another one than `only`.
    """
    identity = identity_of(plan, grid)
    former = ledger.find_grid(identity)
    if only is not None and (former is None or former.grid_id != only):
        raise _has_changed(ledger.grid(only))
    if former is not None and former.state in (GridState.OPEN, GridState.STOPPED):
        alive = is_alive(ledger.client(former.client_id), SystemClock().now())
        if alive or not ledger.take_grid(former.grid_id, client_id, of=former.client_id):
            raise UsageError(
                f"another process goes on with this very grid, {former.grid_id}",
                next_step=f"cloudrun results --grid {former.grid_id} shows how far it is",
            )
        was_again = is_again(former)
        if was_again or not again:
            if former.state is GridState.STOPPED:
                ledger.reopen_grid(former.grid_id)
            ledger.update_grid(
                former.grid_id,
                budget_usd=budget_usd,
                settings=submission(plan)["settings"],
                wishes={**wishes, "again": was_again},
            )
            return ledger.grid(former.grid_id), None
    elif former is not None and not again and _has_all(former, ledger):
        return former, None
    else:
        former = None
    goods = plan.shipment
    record = GridRecord(
        grid_id=new_id("g"),
        name=plan.job.name or dispatch.new_run(plan, SystemClock().now()).name,
        script=goods.script,
        state=GridState.OPEN,
        created_at=SystemClock().now(),
        identity=identity,
        cells=grid.size,
        spec={
            "root": str(goods.root),
            "cwd": goods.cwd,
            "arguments": plan.job.arguments,
            "grid": grid.to_json(),
            "wishes": dict(wishes),
        },
        settings=submission(plan)["settings"],
        budget_usd=budget_usd,
        client_id=client_id,
    )
    ledger.begin_grid(record)
    return record, former


def _has_all(record: GridRecord, ledger: Ledger) -> bool:
    """Whether it is done, and nothing of it was removed since."""
    return record.state is GridState.DONE and ledger.counts(record.grid_id)[RunState.SUCCEEDED] == record.cells


def is_again(record: GridRecord) -> bool:
    """Whether it was begun with `--again`: nothing that earlier grids have done counts in it."""
    return bool(record.spec.get("wishes", {}).get("again"))


def retries_of(record: GridRecord) -> int:
    """How often a cell whose script fails is tried again."""
    return int(record.spec.get("wishes", {}).get("retries", 0))


def _has_changed(record: GridRecord) -> UsageError:
    """What is to be gone on with is not what there is: no cell may run other code under the old one's name."""
    return UsageError(
        f"{record.script}, what it imports, its data or its environment is not what it was when {record.grid_id} was"
        " submitted",
        next_step=f"put it back and attach again; or cloudrun pull {record.grid_id} brings home what has ended, and"
        f" cloudrun submit {record.script} with its parameters begins a grid with what there is now",
    )


def identity_of(plan: Prepared, grid: Grid) -> str:
    """What the same command with the same code, data and environment has again: and nothing of how it is run."""
    lines = [
        "cloudrun grid 1",
        plan.shipment.script,
        plan.shipment.cwd,
        plan.code_digest,
        datasets.digest(plan.data),
        plan.environment.fingerprint,
        json.dumps(plan.job.arguments),
        json.dumps(grid.to_json()),
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def fill(record: GridRecord, plan: Prepared, grid: Grid, ledger: Ledger, *, again: bool) -> int:
    """See to it that every cell is in the ledger, as a run that has succeeded, or goes on, or waits. Returns how many
    had succeeded before."""
    now = SystemClock().now()
    data_digest = datasets.digest(plan.data)
    template = dispatch.new_run(plan, now)
    taken = 0
    for batch in batches(enumerate(grid.cells())):
        keys = {number: dispatch.key_of(plan, params, data_digest) for number, params in batch}
        with ledger.together():  # what is taken from another grid is this one's, too, before that can be removed
            before = ledger.cells(record.grid_id, after=batch[0][0] - 1, limit=len(batch))
            there = {cell.number: cell for cell in before}
            known = {} if again else ledger.succeeded_by_cell(keys.values())
            added: list[tuple[int, RunRecord | str]] = []
            for number, params in batch:
                cell = there.get(number)
                if cell is not None and (cell.state is RunState.SUCCEEDED or not is_terminal(cell.state)):
                    taken += cell.state is RunState.SUCCEEDED
                elif run_id := known.get(keys[number]):
                    added.append((number, run_id))
                    taken += 1
                else:
                    added.append((number, replace(template, run_id=new_id("r"), params=params, cell_key=keys[number])))
            if added:
                ledger.add_cells(record.grid_id, added)
    return taken


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Of BATCH items at most."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def tally_of(record: GridRecord, ledger: Ledger, taken: int) -> Tally:
    """How far it is, by the ledger; `taken` as `fill` has counted them."""
    counts = ledger.counts(record.grid_id)
    return Tally(
        record.cells, counts[RunState.SUCCEEDED], taken, failed=failed_of(counts), cancelled=counts[RunState.CANCELLED]
    )


def failed_of(counts: Mapping[RunState, int]) -> int:
    """How many cells are over that neither succeeded nor were cancelled."""
    return sum(counts[state] for state in (RunState.FAILED, RunState.LOST))
