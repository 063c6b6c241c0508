"""A unit that was kept or stopped, used again: whether it may be, and how a stopped one is started."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cloudrun.core.clock import Clock, utc_text
from cloudrun.core.errors import CloudrunError, NotFound, UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.reaping import ENDED
from cloudrun.units import terminating
from cloudrun.units.beforehand import check_budget
from cloudrun.units.clients import is_alive
from cloudrun.units.timer import set_timer
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.ssh.session import Session

STOPPED = (UnitState.STOPPING, UnitState.STOPPED)
LOGIN_S = 60.0  # beside the time that a machine may take to boot: to be told its new deadline


def overdue_grace_s(settings: Settings) -> float:
    """What a machine launched by these has, started after its deadline, until it is over: as long as a client waits for
    it to boot. None (0) where a budget is to hold and it is to be terminated: whatever it boots for, nobody starts it.
    """
    if settings.budget is not None and settings.on_exit == "terminate":
        return 0.0
    return settings.boot_timeout_s + LOGIN_S


def unit_to_join(ledger: Ledger, instance_id: str) -> UnitRecord:
    """Raises NotFound for a machine that this ledger did not launch, whoever's it is."""
    try:
        return ledger.unit(instance_id)
    except NotFound as error:
        raise NotFound(
            f"{instance_id} is no machine that this project's ledger has launched, and others are not touched",
            next_step="cloudrun units lists those that can be used again; leave it out to launch a new one",
        ) from error


def check_free(ledger: Ledger, unit: UnitRecord, now: datetime) -> None:
    """Raises UsageError for a unit that is at its end, or in the hands of another client. One that is stopped has no
    end: it gets a new deadline when it is started."""
    if unit.state in (UnitState.TERMINATING, UnitState.TERMINATED):
        raise UsageError(f"{unit.instance_id} is {unit.state}", next_step="launch a new unit")
    if is_alive(ledger.client(unit.client_id), now):
        raise in_use(unit.instance_id)
    if unit.deadline <= now and unit.state not in STOPPED:
        raise UsageError(
            f"the deadline of {unit.instance_id} has passed",
            next_step=f"cloudrun reap {unit.instance_id}, then launch a new unit",
        )


def check_stop(ledger: Ledger, unit: UnitRecord, settings: Settings) -> None:
    """Raises UsageError where it is to be stopped in the end and EC2 would not, or could not start it again."""
    if settings.on_exit != "stop":
        return
    request, step = ledger.launch(unit.launch_id).request, "write --on-exit keep"
    if request.spot:
        raise UsageError(f"{unit.instance_id} is a spot machine, which EC2 does not stop", next_step=step)
    if not request.overdue_grace_s:
        raise UsageError(
            f"{unit.instance_id} was launched for a grid or with a budget: started after its deadline, it would"
            " terminate itself",
            next_step=step,
        )


def check_start(ledger: Ledger, unit: UnitRecord, settings: Settings) -> None:
    """Raises UsageError where a stopped unit could cost more, until the deadline that its start gives it, than the
    settings allow: what is to be launched is refused for the same. What it cost before it was stopped was of another
    budget."""
    if unit.state in STOPPED:
        life_s = max(settings.deadline_s, ledger.launch(unit.launch_id).request.overdue_grace_s)
        its_own = replace(settings, instance_type=unit.instance_type, fallback_types=(), spot=False, deadline_s=life_s)
        check_budget(its_own, unit.place.region)


def in_use(instance_id: str) -> UsageError:
    return UsageError(f"{instance_id} is in use by another process or block", next_step="wait for its end, or end it")


def start(cloud: Cloud, ledger: Ledger, unit: UnitRecord, settings: Settings, clock: Clock) -> datetime:
    """Ask EC2 to start a stopped unit. Returns the deadline that it shall have, `settings.deadline_s` from now.

    Its own timer has the old one: where that has passed, the machine waits some minutes for `tell_deadline`. The ledger
    has the later of the two from now on, lest a reaper end it meanwhile; and it says that the machine boots before EC2
    is asked: whatever goes wrong from there on, it may run, and has to be stopped again. Raises UsageError where EC2
    has ended it.
    """
    name = unit.instance_id
    if unit.state is UnitState.STOPPING:  # whoever stopped it did not see it stopped
        terminating.stop(cloud, ledger, [name], timeout_s=settings.terminate_timeout_s, clock=clock)
    found = cloud.instances.describe([name]).get(name)
    if found is None or found.state in ENDED:
        raise UsageError(
            f"{name} is not there any more: EC2 says it is {found.state if found else 'unknown'}",
            next_step="cloudrun reap, then launch a new unit",
        )
    deadline = clock.now() + timedelta(seconds=settings.deadline_s)
    with ledger.together():
        ledger.update_unit(name, deadline=max(deadline, unit.deadline))
        ledger.move_unit(name, UnitState.BOOTING)
    cloud.instances.start([name])
    return deadline


def note_stopped(cloud: Cloud, ledger: Ledger, instance_id: str) -> bool:
    """Whether a unit that should run was stopped by somebody else; then its row says so, and it can be started."""
    found = cloud.instances.describe([instance_id]).get(instance_id)
    if found is None or found.state not in ("stopping", "stopped"):
        return False
    terminating.move_on(ledger, instance_id, UnitState.STOPPING, None)
    if found.state == "stopped":
        terminating.move_on(ledger, instance_id, UnitState.STOPPED, None)
    return True


def tell_deadline(
    cloud: Cloud, ledger: Ledger, unit: UnitRecord, deadline: datetime, session: Session, observe: Observer
) -> None:
    """Give a unit that was started its new deadline: its timer first, then the ledger, then the tag that people see."""
    set_timer(session, unit, deadline)
    ledger.update_unit(unit.instance_id, deadline=deadline)
    try:
        cloud.instances.tag([unit.instance_id], {"cloudrun:expires-at": utc_text(deadline)})
    except CloudrunError as error:
        observe(Note(f"the tag of {unit.instance_id} still says the old deadline: {error}", "warning"))
