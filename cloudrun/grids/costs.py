"""What each run cost, of the machines that it shared with others."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError
from cloudrun.grids.machines import units_ever_of
from cloudrun.grids.rows import batches
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import Stay, shares
from cloudrun.pools.pool import Pool


def write_costs(ledger: Ledger, pool: Pool, grid_id: str = "") -> None:
    """What each run cost of the units that it was on: worth knowing, and no reason for anything to fail. `grid_id`: of
    the grid whose earlier units count as well, those of a client that was killed before it could do this."""
    with suppress(CloudrunError):
        used = {*pool.used, *(unit.instance_id for unit in units_ever_of(ledger, grid_id))}
        cells = {attempt.run_id for attempt in ledger.attempts_on(used)}
        units = {attempt.instance_id for attempt in ledger.attempts_of(cells)}
        stays: dict[str, list[Stay]] = defaultdict(list)
        for attempt in ledger.attempts_on(units):
            ended = (attempt.ended_at or SystemClock().now()).timestamp()
            stays[attempt.instance_id].append((attempt.run_id, attempt.started_at.timestamp(), ended))
        cost: dict[str, float] = defaultdict(float)
        for instance_id, each in stays.items():
            price = pool.terms(ledger.unit(instance_id).instance_type).usd_per_hour
            for run_id, usd in shares(price, each).items():
                cost[run_id] += usd
        for batch in batches(cells.intersection(cost)):
            with ledger.together():
                for run_id in batch:
                    ledger.set_cost(run_id, cost[run_id])
