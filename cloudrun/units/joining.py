"""Whether a unit that was kept or stopped may be joined."""

from __future__ import annotations

from datetime import datetime

from cloudrun.core.errors import UsageError
from cloudrun.core.records import UnitRecord
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.units.clients import is_alive


def check_free(ledger: Ledger, unit: UnitRecord, now: datetime) -> None:
    """Raises UsageError for a unit that is at its end, or in the hands of another client."""
    if unit.state in (UnitState.TERMINATING, UnitState.TERMINATED):
        raise UsageError(f"{unit.instance_id} is {unit.state}", next_step="launch a new unit")
    if is_alive(ledger.client(unit.client_id), now):
        raise in_use(unit.instance_id)
    if unit.deadline <= now:
        raise UsageError(
            f"the deadline of {unit.instance_id} has passed",
            next_step=f"cloudrun reap {unit.instance_id}, then launch a new unit",
        )


def in_use(instance_id: str) -> UsageError:
    return UsageError(f"{instance_id} is in use by another process or block", next_step="wait for its end, or end it")
