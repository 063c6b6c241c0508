"""What a grid would do: how many of its cells are left, on how many machines, and what that may cost."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cloudrun.core.events import Observer
from cloudrun.core.settings import Settings
from cloudrun.core.states import GridState
from cloudrun.grids.cells import ON_UNITS
from cloudrun.grids.estimating import outlook
from cloudrun.grids.grid import Wishes, check_money, check_wishes, limits_of, on_its_share, terms_of
from cloudrun.grids.rows import batches, identity_of
from cloudrun.ledger import Ledger
from cloudrun.plan.estimate import Estimate
from cloudrun.plan.expecting import Expectation
from cloudrun.plan.grid import Grid
from cloudrun.plan.scheduling import Limits, Terms
from cloudrun.runs import datasets, dispatch
from cloudrun.runs.prepared import Job, Prepared
from cloudrun.runs.preview import Preview, preview
from cloudrun.runs.preview import document as run_document


@dataclass(frozen=True)
class GridPreview:
    """`succeeded` are taken from the ledger, `under_way` are on `machines` of the grid `grid_id` ("": none) that would
    be gone on with; `seen` is of the first cell that is neither. `launch` machines would be asked for at first, fewer
    than wished for where `why` says so; `seen` has the deadline that they would get, which the budget shortens where it
    `is_short`. `estimate` is of the cells that wait: None where none does, or where a budget is to be kept at a price
    that only AWS can say."""

    seen: Preview
    cells: int
    succeeded: int
    under_way: int
    machines: int
    grid_id: str
    launch: int
    estimate: Estimate | None
    budget_usd: float | None
    why: str = ""
    is_short: bool = False

    @property
    def left(self) -> int:
        return self.cells - self.succeeded


def preview_grid(
    job: Job, grid: Grid, settings: Settings, wishes: Wishes, *, ledger: Ledger, observe: Observer
) -> GridPreview:
    """All that `run_grid` would check and do, with nothing written or launched. Raises what it raises before that."""
    check_wishes(wishes)
    first = replace(job, params=next(grid.cells()))
    seen = preview(first, settings, ledger=ledger, observe=observe, whole=False)
    if seen.problem and wishes.budget_usd is not None and seen.most_usd is None:  # AWS may know the price
        succeeded, _, params = _counted(seen.plan, grid, ledger, again=wishes.again)
        return GridPreview(_of_cell(seen, params), grid.size, succeeded, 0, 0, "", 0, None, wishes.budget_usd)
    terms = terms_of(wishes, settings, seen.region)
    limits = limits_of(wishes, settings, terms)
    check_money(limits)
    plan = on_its_share(seen.plan, wishes, terms)
    former = ledger.find_grid(identity_of(plan, grid))
    if wishes.again or former is None or former.state not in (GridState.OPEN, GridState.STOPPED):
        former = None
    under_way = set(_under_way(former.grid_id, ledger)) if former is not None else set()
    succeeded, expected_s, params = _counted(plan, grid, ledger, again=wishes.again, under_way=under_way)
    found = GridPreview(
        seen=_of_cell(seen, params),
        cells=grid.size,
        succeeded=succeeded,
        under_way=len(under_way),
        machines=0,
        grid_id=former.grid_id if former is not None else "",
        launch=0,
        estimate=None,
        budget_usd=wishes.budget_usd,
    )
    return _reckoned(found, expected_s, limits, terms, ledger) if found.left else found


def _reckoned(
    found: GridPreview,
    expected_s: Sequence[float] | None,
    limits: Limits,
    terms: Callable[[str], Terms],
    ledger: Ledger,
) -> GridPreview:
    """With the machines that the cells which wait would get, and what that may take and cost."""
    seen = found.seen
    ahead = outlook(
        ledger,
        found.grid_id,
        found.left - found.under_way,
        expected_s and expected_s[found.under_way :],  # the longest are first, and those are under way
        settings=seen.settings,
        region=seen.region,
        environment=seen.plan.environment.fingerprint,
        limits=limits,
        terms=terms,
    )
    return replace(
        found,
        seen=replace(seen, settings=replace(seen.settings, deadline_s=ahead.deadline_s)),
        machines=ahead.living,
        launch=ahead.launch,
        why=ahead.why,
        is_short=ahead.deadline_s < seen.settings.deadline_s,
        estimate=ahead.estimate if ahead.estimate.cells else None,
    )


def _of_cell(seen: Preview, params: Mapping[str, Any] | None) -> Preview:
    """The same with those parameters, where there are any: no other part of it depends on them."""
    if params is None:
        return seen
    return replace(seen, plan=replace(seen.plan, job=replace(seen.plan.job, params=params)))


def _under_way(grid_id: str, ledger: Ledger) -> Iterator[int]:
    """The numbers of the cells that are on machines."""
    after = -1
    while cells := ledger.cells(grid_id, after=after, states=ON_UNITS):
        yield from (cell.number for cell in cells)
        after = cells[-1].number


def _counted(
    plan: Prepared, grid: Grid, ledger: Ledger, *, again: bool, under_way: Collection[int] = ()
) -> tuple[int, list[float] | None, Mapping[str, Any] | None]:
    """How many cells have succeeded, how long each of the others is expected to take, the longest first (None: nobody
    knows), and the parameters of the first that is left and not under way (None: there is none)."""
    data_digest = datasets.digest(plan.data)
    expectation = Expectation(ledger.timed(plan.shipment.script))
    succeeded = 0
    expected: list[float] = []
    first: Mapping[str, Any] | None = None
    for batch in batches(enumerate(grid.cells())):
        keys = [dispatch.key_of(plan, params, data_digest) for _, params in batch]
        known = {} if again else ledger.succeeded_by_cell(keys)
        for (number, params), key in zip(batch, keys, strict=True):
            if key in known:
                succeeded += 1
                continue
            if first is None and number not in under_way:
                first = params
            if (seconds := expectation.seconds(params)) is not None:
                expected.append(seconds)
    return succeeded, sorted(expected, reverse=True) or None, first


def document(seen: GridPreview) -> dict[str, Any]:
    """As that of one run, and `grid`: cells by what becomes of them, and the estimate in seconds and US dollars."""
    told = seen.estimate
    return {
        **run_document(seen.seen),
        "grid": {
            "goes_on_with": seen.grid_id or None,
            "cells": seen.cells,
            "succeeded": seen.succeeded,
            "under_way": seen.under_way,
            "left": seen.left,
            "launch": seen.launch,
            "units": told.units if told else None,
            "slots": told.slots if told else None,
            "expected_s": told.seconds if told else None,
            "expected_usd": told.usd if told else None,
            "most_usd": told.most_usd if told and told.usd_per_hour else None,
            "budget_usd": seen.budget_usd,
        },
    }
