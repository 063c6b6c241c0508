"""Opening a unit and closing it behind whatever happens: the two ends between which `units` does its work."""

from __future__ import annotations

from contextlib import suppress

from cloudrun import reaper
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import (
    BEGIN_AGAIN,
    Cancelled,
    CloudrunError,
    LedgerError,
    UsageError,
    note_clean_up,
    stopped,
    untouched,
)
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.units import launching
from cloudrun.units.beforehand import say_beforehand, say_what_differs
from cloudrun.units.clients import this_client
from cloudrun.units.connection import EarlyLogin
from cloudrun.units.leases import beat
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.purse import Purse
from cloudrun.units.rented import RentedUnit
from cloudrun.units.unit import OpenUnit
from cloudrun.wiring import Cloud


def open_unit(
    cloud: Cloud,
    ledger: Ledger,
    settings: Settings,
    observe: Observer,
    *,
    image: Image | None = None,
    instance_id: str | None = None,
    early: EarlyLogin | None = None,
    clock: Clock | None = None,
    purse: Purse | None = None,
) -> OpenUnit:
    """Launch (or join) a unit and log in. Where that fails, all that was made is gone before the error surfaces.

    `early` is a login to the unit that is joined, where one has begun; `purse` pays for this one and the next.
    """
    from cloudrun.provisioning.playbook import check_playbook

    if settings.spot and settings.on_exit == "stop":
        raise UsageError("EC2 does not stop a spot machine", next_step="leave out --spot, or --on-exit stop")
    purse = purse or Purse(ledger)
    if instance_id is None:
        settings = purse.allow(settings, cloud.place.region, observe)
    check_playbook()  # a unit that cannot be provisioned is not worth launching
    say_beforehand(cloud, settings, (clock or SystemClock()).now(), observe)
    unit = RentedUnit(cloud, ledger, settings, observe, clock or SystemClock())
    client = this_client(unit.clock.now())
    ledger.register_client(client)
    unit.client_id = client.client_id
    began = unit.clock.now()
    with unit.at_work():
        LIFELINE.add(unit)
        try:
            beat(ledger, unit.client_id, unit.clock, unit.ended)
            for unknown in reaper.settle(cloud, ledger, unit.clock, observe):
                raise unknown
            if instance_id is not None:
                unit.join(instance_id, client, early)
            else:
                image = image or launching.find_image(cloud, settings)
                say_what_differs(cloud, settings, image, observe)
                unit.launch(image, client)
            unit.check_cancelled()
        except BaseException as error:
            close_behind(unit, error, instance_id)
            raise
        finally:
            if hasattr(unit, "record"):  # also one that was taken back while it booted
                purse.pays_for(unit.record, began if instance_id is not None else unit.record.created_at)
    return unit


def close_behind(unit: OpenUnit, error: BaseException | None, joined: str | None = None) -> None:
    """Close; where an error is already on its way up, a failure to close is a note on it and never hides it. `joined`
    is the machine that was to be taken over, where that may not have come about."""
    try:
        with LIFELINE.shield(drop=error is not None):
            unit.close()
        if isinstance(error, KeyboardInterrupt | SystemExit | Cancelled):
            with suppress(LedgerError):
                _say_what_is_left(unit, error, joined)
    except Exception as failure:
        if error is None:
            raise
        note_clean_up(error, failure)
        next_step = failure.next_step if isinstance(failure, CloudrunError) else "cloudrun reap"
        unit.observe(Note(f"{failure}; next: {next_step}", "warning"))


def _say_what_is_left(unit: OpenUnit, error: BaseException, joined: str | None) -> None:
    """Whoever interrupts a command wants to know first whether it goes on costing money."""
    if unit.is_let_go:
        return  # its run says so
    stopped(error, f"cloudrun show {unit.run_ids[-1]}" if unit.run_ids else BEGIN_AGAIN)
    record = unit.ledger.unit(unit.instance_id) if hasattr(unit, "record") else None
    if record is None and joined is not None:
        error.add_note(untouched(joined))
    elif record is None:
        error.add_note("no machine is left of it: nothing runs, and nothing is billed")
    elif record.state is UnitState.TERMINATED:
        error.add_note(f"{record.instance_id} is terminated: nothing runs on it, and nothing is billed any more")
    else:
        error.add_note(
            f"{record.instance_id} is {record.state}, and goes on costing until {record.deadline:%Y-%m-%d %H:%M} UTC"
            f" at most: cloudrun reap {record.instance_id} ends it"
        )
