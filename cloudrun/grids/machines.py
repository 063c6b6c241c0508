"""Which machines are a grid's, from the ledger alone."""

from __future__ import annotations

from collections.abc import Iterable

from cloudrun.core.records import LaunchRecord, UnitRecord
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import Bill
from cloudrun.units.costs import bill

GRID_TAG = "cloudrun:grid"  # on each machine of a grid: its id


def launches_of(ledger: Ledger, grid_id: str) -> dict[str, LaunchRecord]:
    """A grid's launches by id, whichever client of it they were."""
    return {launch.launch_id: launch for launch in ledger.launches() if launch.request.tags.get(GRID_TAG) == grid_id}


def units_of(ledger: Ledger, grid_id: str) -> list[UnitRecord]:
    """Those that are not known to be terminated."""
    launches = launches_of(ledger, grid_id)
    return [unit for unit in ledger.units() if unit.launch_id in launches]


def units_ever_of(ledger: Ledger, grid_id: str) -> list[UnitRecord]:
    """Those that have ended too."""
    launches = launches_of(ledger, grid_id)
    return [unit for unit in ledger.units(live=False) if unit.launch_id in launches]


def names_of(ledger: Ledger, grid_id: str) -> set[str]:
    """The ids of all that it ever had."""
    return {unit.instance_id for unit in units_ever_of(ledger, grid_id)}


def bill_of(ledger: Ledger, grid_id: str, others: Iterable[str] = ()) -> Bill:
    """What its machines have cost, those of earlier commands too, and `others`: a pool's, say."""
    return bill(ledger, [ledger.unit(name) for name in sorted({*names_of(ledger, grid_id), *others})])


def what_is_gone(ledger: Ledger, grid_id: str) -> str:
    """ "all 2 machines that it had are terminated: $0.0034 at list prices..."; "" where none that it had has ended."""
    units = units_ever_of(ledger, grid_id)
    ended = sum(unit.ended_at is not None for unit in units)
    if not ended:
        return ""
    which = f"{ended} of the {len(units)} machines that it had are terminated"
    if ended == len(units):
        which = f"all {ended} machines that it had are terminated" if ended > 1 else "its machine is terminated"
    return ": ".join(filter(None, (which, str(bill_of(ledger, grid_id)))))
