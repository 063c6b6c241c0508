"""Opening a unit and closing it behind whatever happens: the two ends between which `units` does its work."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from cloudrun import prices, reaper
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    LedgerError,
    UsageError,
    note_clean_up,
    untouched,
)
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.quantities import duration_text
from cloudrun.units import launching
from cloudrun.units.clients import this_client
from cloudrun.units.connection import EarlyLogin
from cloudrun.units.leases import beat
from cloudrun.units.lifeline import LIFELINE
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
) -> OpenUnit:
    """Launch (or join) a unit and log in. Where that fails, all that was made is gone before the error surfaces.

    `early` is a login to the unit that is joined, where one has begun.
    """
    from cloudrun.provisioning.playbook import check_playbook

    if settings.spot and settings.on_exit == "stop":
        raise UsageError("EC2 does not stop a spot machine", next_step="leave out --spot, or --on-exit stop")
    if instance_id is None:
        check_budget(settings, cloud.place.region)
    check_playbook()  # a unit that cannot be provisioned is not worth launching
    for note in cloud.notes:
        observe(Note(note))
    _warn_of_expiry(cloud, settings, (clock or SystemClock()).now(), observe)
    unit = OpenUnit(cloud, ledger, settings, observe, clock or SystemClock())
    client = this_client(unit.clock.now())
    ledger.register_client(client)
    unit.client_id = client.client_id
    with unit.at_work():
        LIFELINE.add(unit)
        try:
            beat(ledger, unit.client_id, unit.clock, unit.ended)
            for unknown in reaper.settle(cloud, ledger, unit.clock, observe):
                raise unknown
            if instance_id is not None:
                unit.join(instance_id, client, early)
            else:
                unit.launch(image or launching.find_image(cloud, settings), client)
            unit.check_cancelled()
        except BaseException as error:
            close_behind(unit, error, instance_id)
            raise
    return unit


def check_budget(settings: Settings, region: str) -> None:
    """Raises UsageError where one machine could cost more, until its deadline, than the settings allow."""
    if settings.budget is None:
        return
    for instance_type in (settings.instance_type, *settings.fallback_types):
        listed = prices.usd_per_hour(instance_type, region)
        usd = settings.max_price if settings.spot and settings.max_price else listed.usd_per_hour if listed else None
        if usd is None:
            raise UsageError(
                f"nobody here knows what a {instance_type} costs in {region}, so no budget can be kept",
                next_step="use a common type such as m7i.large, or leave out budget and set an early --deadline",
            )
        most = budget.least_usd(usd, settings.deadline_s)
        if most > settings.budget:
            until = budget.lease(0.0, settings.budget, usd, deadline_s=settings.deadline_s, least_s=60.0)
            step = f"--deadline {int(until // 60)}m, or a larger budget" if until else "a larger budget"
            raise UsageError(
                f"a {instance_type} could cost ${most:.4f} until its deadline in {duration_text(settings.deadline_s)},"
                f" and the budget is ${settings.budget:g}",
                next_step=f"{step} (cloudrun config show budget --origin)",
            )


def _warn_of_expiry(cloud: Cloud, settings: Settings, now: datetime, observe: Observer) -> None:
    """Credentials that end before the machine does: nobody could end it, move its deadline or let it upload then."""
    expiry = cloud.credentials_expire_at()
    if expiry is None:
        return
    left_s = (expiry - now).total_seconds()
    if left_s < settings.deadline_s:
        uploads = ", and what it may upload ends with them" if settings.bucket else ""
        observe(
            Note(
                f"the AWS credentials expire in {duration_text(max(0.0, left_s))}, before the machine's deadline in"
                f" {duration_text(settings.deadline_s)}{uploads}: log in anew first, or set an earlier --deadline",
                "warning",
            )
        )


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
