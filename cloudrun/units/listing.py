"""What is alive, as EC2 tells it now."""

from __future__ import annotations

from cloudrun import wiring
from cloudrun.core.clock import SystemClock
from cloudrun.core.records import UnitRecord
from cloudrun.ledger import Ledger
from cloudrun.units.clients import is_alive


def live_units(ledger: Ledger, profile: str | None = None) -> list[UnitRecord]:
    """This ledger's live units, after those that EC2 says are gone were taken off. One describe for each place."""
    from cloudrun.reaper import forget

    units = ledger.units()
    for place in dict.fromkeys(unit.place for unit in units):
        here = [unit for unit in units if unit.place == place]
        cloud = wiring.reconnect(place, profile)
        found = {} if cloud is None else cloud.instances.describe([unit.instance_id for unit in here])
        for unit in here:
            instance = found.get(unit.instance_id)
            if cloud is None and is_alive(ledger.client(unit.client_id), SystemClock().now()):
                continue  # its client sees its own sandbox, in another folder or as another user
            if cloud is None or (instance is not None and instance.state == "terminated"):
                forget(ledger, unit, instance)
    return ledger.units()
