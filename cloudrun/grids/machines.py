"""Which machines are a grid's, from the ledger alone."""

from __future__ import annotations

from cloudrun.core.records import LaunchRecord, UnitRecord
from cloudrun.ledger import Ledger

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
