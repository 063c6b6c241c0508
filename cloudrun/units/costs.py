"""What machines of the ledger have cost, and their runs' shares of that, brought into the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime

from cloudrun.core.errors import CloudrunError
from cloudrun.core.records import AttemptRecord, UnitRecord
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import CHARGING, Bill, MachineCost, Stay, machine_cost
from cloudrun.prices import usd_per_hour

BATCH = 1000  # runs in one transaction


def settle(ledger: Ledger, instance_ids: Iterable[str]) -> None:
    """Write down what each run cost that was ever on those units: worth knowing, and no reason for anything to fail."""
    with suppress(CloudrunError):
        runs = {attempt.run_id for attempt in ledger.attempts_on(instance_ids)}
        units = _units(ledger, {attempt.instance_id for attempt in ledger.attempts_of(runs)})
        cost: dict[str, float] = defaultdict(float)
        for unit, machine in _machines(ledger, units):
            if machine is not None:
                for run_id, usd in machine.shares.items():
                    cost[run_id] += usd
            else:
                runs.difference_update(each.run_id for each in ledger.attempts_on([unit.instance_id]))
        known = sorted(runs.intersection(cost))
        for begin in range(0, len(known), BATCH):
            with ledger.together():
                for run_id in known[begin : begin + BATCH]:
                    ledger.set_cost(run_id, cost[run_id])


def bill(ledger: Ledger, units: Iterable[UnitRecord]) -> Bill:
    """What those units have cost until now: the shares of all runs that were on them, and the rest."""
    units = list(units)
    usd = runs_usd = 0.0
    unpriced: dict[str, None] = {}
    for unit, machine in _machines(ledger, units):
        if machine is None:
            unpriced[unit.instance_type] = None
        else:
            usd += machine.usd
            runs_usd += sum(machine.shares.values())
    charged = any(unit.place.provider in CHARGING for unit in units)
    is_over = all(unit.ended_at is not None for unit in units)
    return Bill(len(units), usd, runs_usd, tuple(unpriced), charged, is_over)


def bill_of_run(ledger: Ledger, run_id: str) -> Bill:
    """Of all machines that a run was on, what they did for other runs included."""
    return bill(ledger, _units(ledger, {attempt.instance_id for attempt in ledger.attempts(run_id)}))


def price_of(ledger: Ledger, unit: UnitRecord) -> float | None:
    """US dollars an hour: the list price, or of a spot machine at most what was said; None where nobody knows."""
    request = ledger.launch(unit.launch_id).request
    if request.spot and request.max_price is not None:
        return request.max_price
    listed = usd_per_hour(unit.instance_type, unit.place.region)
    return None if listed is None else listed.usd_per_hour


def _units(ledger: Ledger, instance_ids: Iterable[str]) -> list[UnitRecord]:
    return [ledger.unit(instance_id) for instance_id in sorted(instance_ids)]


def _machines(ledger: Ledger, units: Iterable[UnitRecord]) -> list[tuple[UnitRecord, MachineCost | None]]:
    """Each with what it cost; None where its price is not known."""
    units = list(units)
    attempts: dict[str, list[AttemptRecord]] = defaultdict(list)
    for attempt in ledger.attempts_on([unit.instance_id for unit in units]):
        attempts[attempt.instance_id].append(attempt)
    took = ledger.took({each.run_id for some in attempts.values() for each in some})
    return [(unit, _machine(ledger, unit, attempts[unit.instance_id], took)) for unit in units]


def _machine(
    ledger: Ledger, unit: UnitRecord, attempts: Iterable[AttemptRecord], took: dict[str, float]
) -> MachineCost | None:
    price = price_of(ledger, unit)
    if price is None:
        return None
    until = unit.ended_at or datetime.now(UTC)
    stopped_s = unit.stopped_s + ((until - unit.stopped_at).total_seconds() if unit.stopped_at else 0.0)
    stays = [
        Stay(
            each.run_id,
            each.started_at.timestamp(),
            (each.ended_at or until).timestamp(),
            took.get(each.run_id) or None,
        )
        for each in attempts
    ]
    return machine_cost(price, unit.created_at.timestamp(), until.timestamp(), stays, stopped_s=stopped_s)
