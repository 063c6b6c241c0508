"""Which unit a user means, and the way to it for OpenSSH's own client."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

from cloudrun import wiring
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.events import Observer
from cloudrun.core.near import did_you_mean, instead
from cloudrun.core.records import SshTarget, UnitRecord
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import counted
from cloudrun.units.connection import Connection, ssh_target

ENDED = (UnitState.TERMINATING, UnitState.TERMINATED, UnitState.STOPPING, UnitState.STOPPED)
LOOK = "cloudrun units shows what is alive"


def meant(ledger: Ledger, reference: str) -> UnitRecord:
    """A unit by its id or the beginning of it ("i-" may be left out), else the one that a run is on, by the run's id,
    its beginning or name.

    Raises NotFound (with near ids), UsageError where several are meant, or the unit has ended.
    """
    units = ledger.units(live=False)
    begins = [unit for unit in units if unit.instance_id.startswith((reference, f"i-{reference}"))] if reference else []
    found = [unit for unit in begins if unit.instance_id == reference] or begins
    living = [unit for unit in found if unit.state not in ENDED]
    if len(living) > 1:
        names = ", ".join(unit.instance_id for unit in living[:5])
        raise UsageError(f"several units begin with {reference!r}: {names}", next_step="type more of the id")
    if found:
        return _alive(living[0] if living else found[-1])
    alive = [unit.instance_id for unit in units if unit.state not in ENDED]
    on_them = [run for name in alive for run in ledger.unfinished_runs(name)]
    known = [*alive, *(word for run in on_them for word in (run.name, run.run_id))]
    try:
        run = ledger.run(reference)
    except NotFound as error:
        words = f"no unit and no run {reference!r}{did_you_mean(reference, known)}"
        raise NotFound(words, next_step=LOOK, instead=instead(reference, known)) from error
    if run.instance_id is None:
        raise UsageError(f"{run.run_id} has no unit: it is {run.state}", next_step=LOOK)
    return _alive(ledger.unit(run.instance_id))


def _alive(unit: UnitRecord) -> UnitRecord:
    if unit.state in (UnitState.STOPPED, UnitState.STOPPING):
        again = f"cloudrun submit SCRIPT --instance-id {unit.instance_id} starts it again"
        raise UsageError(f"{unit.instance_id} is {unit.state}", next_step=again)
    if unit.state in ENDED:
        raise UsageError(f"{unit.instance_id} is {unit.state}", next_step=LOOK)
    return unit


def way_to(ledger: Ledger, unit: UnitRecord, observe: Observer, profile: str | None = None) -> SshTarget:
    """Where it lets us in from here. Raises UsageError where it has gone, has no address or no key of ours yet;
    CredentialsError."""
    cloud = wiring.reconnect(unit.place, profile)
    if cloud is None:
        raise UsageError(f"{unit.instance_id} went away with its sandbox", next_step="cloudrun reap")
    Connection(
        cloud, ledger, SystemClock(), lambda: ledger.unit(unit.instance_id), Event(), observe
    ).let_this_address_in()
    target = ssh_target(ledger, unit)
    if not target.host or not target.key_path.exists():
        raise UsageError(f"{unit.instance_id} is {unit.state}: nobody is let in yet", next_step=LOOK)
    return target


def doing(runs: Sequence[str], unit: UnitRecord) -> str:
    """What a unit does, in few words. `runs`: the names of those that are on it and not over."""
    if unit.state in (UnitState.LAUNCHING, UnitState.BOOTING):
        return "boots"
    if unit.state is not UnitState.READY and unit.state is not UnitState.DRAINING:
        return str(unit.state)
    if len(runs) == 1:
        return f"run {runs[0]}"
    return counted(len(runs), "run") if runs else "nothing"
