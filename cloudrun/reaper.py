"""Finds what this ledger owns and nobody needs, in every place it launched in, saves what it can and ends the rest."""

from __future__ import annotations

from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass

from cloudrun import wiring
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import (
    BucketMissing,
    CleanupIncomplete,
    CloudrunError,
    LedgerError,
    NotFound,
    UnresolvedLaunch,
    UsageError,
)
from cloudrun.core.events import Note, Observer, nobody
from cloudrun.core.records import AttemptRecord, Instance, Place, RunRecord, UnitRecord
from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan import reaping
from cloudrun.plan.endings import Ending, with_its_machine
from cloudrun.plan.interruptions import was_interrupted
from cloudrun.runs.pulling import clear_stores, pull_stored, requeue_unseen
from cloudrun.runs.rescue import end_lost, end_unit
from cloudrun.units import launching, terminating
from cloudrun.units.clients import is_alive
from cloudrun.wiring import Cloud

TERMINATE_S = 300.0


@dataclass(frozen=True)
class ReapAction:
    """One thing done, or with `dry_run` one that would be. `kind` as in `plan.reaping`."""

    kind: str
    target: str
    place: Place
    reason: str
    done: bool
    problem: str = ""


@dataclass(frozen=True)
class ReapReport:
    actions: tuple[ReapAction, ...]

    @property
    def problems(self) -> tuple[ReapAction, ...]:
        return tuple(action for action in self.actions if action.problem)

    def require_complete(self) -> None:
        """Raises CleanupIncomplete, with the ids, where something may still be billing."""
        if self.problems:
            raise CleanupIncomplete(
                "; ".join(f"{action.target}: {action.problem}" for action in self.problems),
                ids=[action.target for action in self.problems],
                next_step="cloudrun reap, when the cause is mended",
            )


def reap(
    ledger: Ledger,
    *,
    units: Sequence[str] = (),
    dry_run: bool = False,
    observe: Observer = nobody,
    profile: str | None = None,
) -> ReapReport:
    """End this ledger's expired and unneeded units, each where it was launched, and delete what launches left; or end
    the named `units`, which were kept or stopped, and no others.

    Everything is tried; what could not be done is in the report, as `problems`. Raises NotFound for a unit that this
    ledger does not know, UsageError for one that another process is using.
    """
    clock = SystemClock()
    actions: list[ReapAction] = []
    unwanted = frozenset(_free_unit(ledger, each, clock).instance_id for each in units)
    for place in dict.fromkeys(launch.place for launch in ledger.launches()):
        if unwanted and all(ledger.unit(each).place != place for each in unwanted):
            continue
        try:
            cloud = wiring.reconnect(place, profile)
            if cloud is None:
                actions += _forget_place(ledger, place, dry_run)
            else:
                actions += reap_place(cloud, ledger, clock, observe, dry_run=dry_run, unwanted=unwanted)
        except CloudrunError as error:  # the other places are tried all the same
            actions.append(
                ReapAction("connect", f"{place.provider} {place.region}", place, str(error), False, str(error))
            )
    gone = frozenset(action.target for action in actions if action.kind == "forget")
    return ReapReport((*actions, *_end_orphans(ledger, clock, observe, profile, dry_run=dry_run, gone=gone)))


def _free_unit(ledger: Ledger, instance_id: str, clock: Clock) -> UnitRecord:
    unit = ledger.unit(instance_id)
    if unit.state is UnitState.TERMINATED:
        raise UsageError(f"{instance_id} has ended already", next_step="cloudrun units")
    if is_alive(ledger.client(unit.client_id), clock.now()):
        raise UsageError(f"{instance_id} is in use by another process", next_step="wait for that process, or end it")
    return unit


def _end_orphans(
    ledger: Ledger,
    clock: Clock,
    observe: Observer,
    profile: str | None,
    *,
    dry_run: bool,
    gone: Set[str] = frozenset(),
) -> list[ReapAction]:
    """Runs that nobody ended: their machine is gone, and so is the client that could have said so. `gone`: ids of units
    that were forgotten now, or with `dry_run` would have been."""
    living = _living(ledger, clock)
    units = {unit.instance_id: unit for unit in ledger.units(live=False)}
    actions = []
    for run in ledger.unfinished_runs(placed=True):
        unit = units.get(run.instance_id or "")
        if unit is None or unit.client_id in living:
            continue
        ended, attempt = unit.state is UnitState.TERMINATED, ledger.attempts(run.run_id)[-1]
        if attempt.store and dry_run and (ended or unit.instance_id in gone):
            why = f"what it has left in {attempt.store} comes home"
            actions.append(ReapAction("pull", run.run_id, unit.place, why, False))
        elif attempt.store and ended:
            actions.append(_fetch_stored(ledger, run, attempt, unit, observe, profile, clock))
        elif ended:
            ending = with_its_machine(unit.deadline, None, clock.now(), bucket=False)
            kind = "forget" if dry_run else _lose(ledger, run, ending, clock)
            actions.append(ReapAction(kind, run.run_id, unit.place, ending.detail, not dry_run))
    return actions


def _fetch_stored(
    ledger: Ledger,
    run: RunRecord,
    attempt: AttemptRecord,
    unit: UnitRecord,
    observe: Observer,
    profile: str | None,
    clock: Clock,
) -> ReapAction:
    """The last word on a run whose unit had a bucket: its outputs are there, or they are nowhere."""
    try:
        cloud = wiring.reconnect(unit.place, profile)
        if cloud is not None and pull_stored(cloud, ledger, run, attempt, observe, clock):
            clear_stores(cloud, ledger, run.run_id, observe)
            return ReapAction("pull", run.run_id, unit.place, f"its outputs were in {attempt.store}", True)
        found = cloud.instances.describe([unit.instance_id]).get(unit.instance_id) if cloud else None
        if found is not None and was_interrupted(found):
            requeue_unseen(ledger, run, "the provider took the machine back")
            return ReapAction("requeue", run.run_id, unit.place, "the provider took the machine back", True)
    except BucketMissing as gone:
        ending = Ending(RunState.LOST, EndReason.CLIENT_LOST, f"its machine is gone, and {gone}")
        end_lost(ledger, run, ending, clock)
        return ReapAction("forget", run.run_id, unit.place, ending.detail, True)
    except CloudrunError as error:  # it waits on: nothing bills for it but a bucket's storage
        return ReapAction("pull", run.run_id, unit.place, f"its outputs may be in {attempt.store}", False, str(error))
    ending = with_its_machine(unit.deadline, found, clock.now(), bucket=True)
    return ReapAction(_lose(ledger, run, ending, clock), run.run_id, unit.place, ending.detail, True)


def _lose(ledger: Ledger, run: RunRecord, ending: Ending, clock: Clock) -> str:
    """Nothing of it can be had any more: a cell of a grid waits for another machine, any other run is over. Returns the
    kind of action that this is."""
    if run.grid_id is not None:
        requeue_unseen(ledger, run, ending.detail)
        return "requeue"
    end_lost(ledger, run, ending, clock)
    return "forget"


def _forget_place(ledger: Ledger, place: Place, dry_run: bool) -> list[ReapAction]:
    """A sandbox that ended took its units with it: only the ledger has to hear of it."""
    actions = []
    for launch in ledger.launches(unsettled=True):
        if launch.place == place and not dry_run:
            ledger.move_launch(launch.launch_id, LaunchState.REFUSED, "its sandbox ended")
    living = _living(ledger, SystemClock())
    for unit in ledger.units():
        # A living client sees its own sandbox; this one may be looking for it in another folder, or as another user.
        if unit.place == place and unit.client_id not in living:
            if not dry_run:
                forget(ledger, unit)
            actions.append(ReapAction("forget", unit.instance_id, place, "its sandbox ended", not dry_run))
    return actions


def forget(ledger: Ledger, unit: UnitRecord, instance: Instance | None = None) -> None:
    """The machine is gone: so say its row and the runs that were on it. What it may have put into a bucket waits there;
    a run whose machine was taken back waits for another. `instance` is what EC2 still says of it."""
    for run in ledger.unfinished_runs(unit.instance_id):
        attempts = ledger.attempts(run.run_id)
        if attempts[-1].store and run.state in (RunState.SHIPPING, RunState.RUNNING, RunState.PULLING):
            if run.state is RunState.SHIPPING:  # its client may have died before it could write down that it runs
                ledger.move_run(run.run_id, RunState.RUNNING)
            ledger.move_run(run.run_id, RunState.PULL_PENDING, detail="its machine is gone; its bucket may have it")
        elif instance is not None and was_interrupted(instance):
            requeue_unseen(ledger, run, "the provider took the machine back")
        elif run.state is not RunState.PULL_PENDING or not attempts[-1].store:
            clock, store = SystemClock(), attempts[-1].store
            _lose(ledger, run, with_its_machine(unit.deadline, instance, clock.now(), bucket=bool(store)), clock)
    terminating.move_on(ledger, unit.instance_id, UnitState.TERMINATED, EndReason.UNIT_LOST)
    if not any(other.launch_id == unit.launch_id for other in ledger.units()):  # or nobody gets into those any more
        ledger.key_path(unit.launch_id).unlink(missing_ok=True)


def _living(ledger: Ledger, clock: Clock) -> frozenset[str]:
    """Also clients that have launched nothing yet: they may be making their key pair just now."""
    return frozenset(client.client_id for client in ledger.clients() if is_alive(client, clock.now()))


def settle(cloud: Cloud, ledger: Ledger, clock: Clock, observe: Observer) -> list[CloudrunError]:
    """Resolve the launches of dead clients in this place and end what they launched: nobody is there to use it, and
    asking again launches it where the first request never arrived. Returns what kept it from that: an UnresolvedLaunch
    for each that is still unknown, a CleanupIncomplete for each that has not ended.
    """
    living = _living(ledger, clock)
    left: list[CloudrunError] = []
    for launch in ledger.launches(unsettled=True):
        if launch.place != cloud.place or launch.client_id in living:
            continue
        observe(
            Note(f"an earlier launch ({launch.launch_id}) was left unresolved: asking EC2 what became of it", "verbose")
        )
        try:
            units = launching.resolve(cloud, ledger, launch, clock)
        except UnresolvedLaunch as error:
            left.append(error)
            continue
        except LedgerError:
            raise
        except CloudrunError as refusal:
            observe(Note(f"launch {launch.launch_id} never happened: {refusal}", "verbose"))
            continue
        ids = [unit.instance_id for unit in units]
        try:
            terminating.terminate(cloud, ledger, ids, reason=EndReason.CLIENT_LOST, timeout_s=TERMINATE_S, clock=clock)
            terminating.release_resources(cloud, ledger, launch.launch_id, timeout_s=TERMINATE_S, clock=clock)
        except CleanupIncomplete as error:
            left.append(error)
    return left


def reap_place(
    cloud: Cloud,
    ledger: Ledger,
    clock: Clock,
    observe: Observer,
    *,
    dry_run: bool,
    unwanted: Set[str] = frozenset(),
) -> list[ReapAction]:
    """Decide and act for one place. A problem with one action is on that action; the others are still done."""
    left = [] if dry_run else settle(cloud, ledger, clock, observe)
    done = [ReapAction("resolve", cloud.place.region, cloud.place, str(why), False, str(why)) for why in left]
    done += _reap_decided(cloud, ledger, clock, observe, dry_run=dry_run, unwanted=unwanted)
    if any(action.kind == "terminate" and action.done for action in done):
        # Keys and groups of what was just terminated are free now.
        known = {(action.kind, action.target) for action in done}
        again = _reap_decided(cloud, ledger, clock, observe, dry_run=False, unwanted=unwanted)
        done += [action for action in again if (action.kind, action.target) not in known]
    return done


def _reap_decided(
    cloud: Cloud, ledger: Ledger, clock: Clock, observe: Observer, *, dry_run: bool, unwanted: Set[str]
) -> list[ReapAction]:
    launches = {launch.launch_id: launch for launch in ledger.launches() if launch.place == cloud.place}
    decided = reaping.plan(
        units=[unit for unit in ledger.units() if unit.place == cloud.place],
        launches=launches,
        instances=cloud.instances.owned(ledger.ledger_id),
        leftovers=cloud.network.leftovers(ledger.ledger_id),
        living=_living(ledger, clock),
        now=clock.now(),
        unwanted=unwanted,
    )
    done = []
    for action in decided:
        problem = "" if dry_run else _act(cloud, ledger, clock, observe, action)
        done.append(
            ReapAction(action.kind, action.target, cloud.place, action.reason, not dry_run and not problem, problem)
        )
    return done


def _act(cloud: Cloud, ledger: Ledger, clock: Clock, observe: Observer, action: reaping.ReapAction) -> str:
    """Do one action; the problem in words, or ""."""
    rows = {unit.instance_id: unit for unit in ledger.units()}
    try:
        if action.kind == "terminate" and action.target in rows:
            return end_unit(cloud, ledger, clock, observe, rows[action.target])
        if action.kind == "terminate":
            with suppress(NotFound):  # there is no row for it to be written in
                terminating.terminate(
                    cloud,
                    ledger,
                    [action.target],
                    reason=EndReason.CLIENT_LOST,
                    timeout_s=TERMINATE_S,
                    clock=clock,
                )
        elif action.kind == "forget":
            again = cloud.instances.describe([action.target]).get(action.target)  # one empty answer proves nothing
            if again is None or again.state == "terminated":
                forget(ledger, rows[action.target], again)
        elif action.kind == "delete_key_pair":
            cloud.network.delete_key_pair(action.target)
            ledger.key_path(action.target.removeprefix(reaping.KEY_PREFIX)).unlink(missing_ok=True)
        elif action.kind == "delete_security_group":
            terminating.delete_group(cloud, action.target, timeout_s=TERMINATE_S, clock=clock)
        elif action.kind == "delete_volume":
            cloud.network.delete_volume(action.target)
    except CloudrunError as error:
        return str(error)
    return ""
