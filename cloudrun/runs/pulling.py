"""Bringing home a run that an earlier client started, from its unit or from its bucket."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from cloudrun import wiring
from cloudrun.core import rundir
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import CloudrunError, ConnectionLost, HostKeyMismatch, LedgerError, NotFound, UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import AttemptRecord, Instance, RunRecord, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.endings import AGAIN, Ending, with_its_machine
from cloudrun.plan.interruptions import was_interrupted
from cloudrun.runs import bucket
from cloudrun.runs.homecoming import Homecoming
from cloudrun.runs.prepared import submitted_settings
from cloudrun.units import terminating
from cloudrun.units.clients import is_alive
from cloudrun.units.connection import connected
from cloudrun.units.costs import settle
from cloudrun.units.leases import Attended, Lease, lease
from cloudrun.units.phases import Phases, together
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Agent

LOGIN_S = 30.0
GRACE_S = 30.0
TRIES = 20  # connections for one pull
TERMINATE_S = 300.0


def pull(
    ledger: Ledger, run_id: str, *, observe: Observer, profile: str | None = None, cancel_after_s: float | None = None
) -> Run:
    """Bring home the outputs that wait on a unit or in a bucket. With the last of them home the unit is terminated,
    unless it was launched to be kept. A run that was interrupted is queued again with what it had saved.

    `cancel_after_s`: a job that still runs is ended first, with that many seconds to save what it has. Raises NotFound,
    UsageError (the run is home, or still going), ConnectionLost (its unit is gone, and nothing in a bucket).
    """
    clock = SystemClock()
    run, attempt, unit = waiting_run(ledger, run_id)
    if is_alive(ledger.client(unit.client_id), clock.now()):
        raise Attended(
            f"{run.run_id} is {run.state}, and the process that started it still looks after it",
            next_step=f"cloudrun logs -f {run.run_id} follows it; wait for that process, or end it",
        )
    cloud = wiring.reconnect(unit.place, profile)
    found = cloud.instances.describe([unit.instance_id]).get(unit.instance_id) if cloud else None
    if cloud is None or found is None or found.state != "running":
        return _without_its_unit(cloud, found, ledger, run, attempt, observe, clock)
    with lease(ledger, unit, clock) as held:

        def bring(agent: Agent) -> None:
            pull_run(ledger, run, agent, observe, clock, cancel_after_s=cancel_after_s)

        try:
            despite_cuts(cloud, ledger, unit, observe, bring)
        except BaseException as error:
            _wait_on(ledger, run, held, pending=isinstance(error, CloudrunError))
            raise
        end_unit(cloud, ledger, unit, held, observe, clock, run.run_id)
    settle(ledger, [unit.instance_id])
    clear_stores(cloud, ledger, run.run_id, observe)
    return ledger.get(run.run_id)


def _wait_on(ledger: Ledger, run: RunRecord, held: Lease, *, pending: bool) -> None:
    """Leave a unit to the next try, as long as it has what nobody else has; one that has nothing is the reaper's."""
    try:
        state = ledger.run(run.run_id).state
        if is_terminal(state) or state is RunState.QUEUED:
            return
        if pending and state is RunState.PULLING:
            ledger.move_run(run.run_id, RunState.PULL_PENDING)
    except CloudrunError:
        pass
    held.leave()


def _without_its_unit(
    cloud: Cloud | None,
    found: Instance | None,
    ledger: Ledger,
    run: RunRecord,
    attempt: AttemptRecord,
    observe: Observer,
    clock: Clock,
) -> Run:
    """What can be had of a run whose unit does not run: what is in its bucket, and where the provider took it back,
    another attempt. Raises ConnectionLost."""
    if cloud is not None and pull_stored(cloud, ledger, run, attempt, observe, clock):
        clear_stores(cloud, ledger, run.run_id, observe)
        settle(ledger, [attempt.instance_id])
        return ledger.get(run.run_id)
    if found is not None and found.state == "terminated" and was_interrupted(found):
        requeue_unseen(ledger, run, "the provider took the machine back")
        return ledger.get(run.run_id)
    if found is not None and found.state in ("pending", "stopping", "stopped", "shutting-down"):
        again = f"cloudrun pull {run.run_id}, in a minute"
        if found.state in ("stopping", "stopped"):
            again = f"submit with --instance-id {attempt.instance_id} starts it again; then cloudrun pull {run.run_id}"
        raise ConnectionLost(f"{attempt.instance_id} is {found.state}", next_step=again)
    unit = ledger.unit(attempt.instance_id)
    ending = with_its_machine(unit.deadline, found, clock.now(), bucket=bool(attempt.store))
    again = AGAIN if ending.reason is EndReason.DEADLINE else "submit again"
    raise ConnectionLost(f"{run.run_id} is lost: {ending.detail}", next_step=f"cloudrun reap, then {again}")


def requeue_unseen(ledger: Ledger, run: RunRecord, detail: str) -> None:
    """Let another attempt begin where the last one did: nobody could ask that one what it has. Raises LedgerError."""
    attempts = ledger.attempts(run.run_id)
    saved = attempts[-2].outputs if len(attempts) > 1 else ()
    ledger.requeue_run(run.run_id, reason=EndReason.INTERRUPTED, detail=detail, outputs=saved)


def waiting_run(ledger: Ledger, reference: str) -> tuple[RunRecord, AttemptRecord, UnitRecord]:
    """A run that is not home yet, its last attempt and that one's unit. Raises NotFound, UsageError."""
    run = ledger.run(reference)
    if run.state is RunState.LOST:
        again = AGAIN if run.end_reason is EndReason.DEADLINE else "submit again"
        raise UsageError(f"{run.run_id} is lost: {run.detail or 'its machine is gone'}", next_step=again)
    if is_terminal(run.state):
        raise UsageError(f"{run.run_id} is home already ({run.state})", next_step=f"cloudrun show {run.run_id}")
    attempts = ledger.attempts(run.run_id)
    if not attempts:
        raise UsageError(f"{run.run_id} never reached a machine", next_step=f"cloudrun cancel {run.run_id}")
    if run.state is RunState.QUEUED:
        raise UsageError(
            f"{run.run_id} has no machine: the provider took it back", next_step=f"cloudrun attach {run.run_id}"
        )
    return run, attempts[-1], ledger.unit(attempts[-1].instance_id)


def end_unit(
    cloud: Cloud,
    ledger: Ledger,
    unit: UnitRecord,
    held: Lease,
    observe: Observer,
    clock: Clock,
    run_id: str | None = None,
) -> None:
    """End a unit that nothing waits on, as it was launched to end. Where that is interrupted it is the reaper's.
    `run_id`: the run whose time that is."""
    how = ledger.launch(unit.launch_id).on_exit
    if not held.holds():
        observe(Note(f"another client has taken {unit.instance_id} over: it is left to it", "warning"))
        return
    if how == "keep" or ledger.unfinished_runs(unit.instance_id):
        held.leave()
        return
    if how == "stop":
        terminating.stop(cloud, ledger, [unit.instance_id], timeout_s=TERMINATE_S, clock=clock)
        held.leave(on_exit="stop")
        return
    phases = Phases(observe, clock)
    with phases.phase("terminate", unit.instance_id):
        terminating.terminate(
            cloud, ledger, [unit.instance_id], reason=EndReason.COMPLETED, timeout_s=TERMINATE_S, clock=clock
        )
    if run_id is not None:
        with suppress(LedgerError):  # a time is not worth an error
            ledger.set_timings(run_id, together(ledger.run(run_id).timings, phases.timings()))
    if not any(other.launch_id == unit.launch_id for other in ledger.units()):
        terminating.release_resources(cloud, ledger, unit.launch_id, timeout_s=TERMINATE_S, clock=clock)


def despite_cuts(
    cloud: Cloud,
    ledger: Ledger,
    unit: UnitRecord,
    observe: Observer,
    act: Callable[[Agent], object],
    *,
    login_s: float = LOGIN_S,
) -> None:
    """What has come home stays home, so a lost connection costs no more than what was on its way."""
    for left in reversed(range(TRIES)):
        try:
            with connected(cloud, ledger, unit, observe, timeout_s=login_s) as connection:
                act(connection.agent)
                return
        except HostKeyMismatch:
            raise
        except ConnectionLost:
            if not left:
                raise
            observe(Note("the connection is lost; connecting again", "warning"))


def pull_run(
    ledger: Ledger,
    run: RunRecord,
    agent: Agent,
    observe: Observer,
    clock: Clock,
    *,
    cancel_after_s: float | None = GRACE_S,
    forced: Ending | None = None,
) -> None:
    """Fetch and record one run. One that still runs is ended first, or with `cancel_after_s` None left alone.

    `forced` is what to record for a job that was ended here; None is that somebody cancelled it. Raises UsageError for
    one that is left alone, NotFound for one that never started and is not cancelled.
    """
    run = ledger.run(run.run_id)  # a try before this one may have come some way
    attempt = ledger.attempts(run.run_id)[-1]
    place = rundir.run_dir(run.run_id, attempt.number)
    if run.state is RunState.QUEUED:
        return
    if is_terminal(run.state):
        agent.home(place)
        return
    status = agent.status(place)
    if status is None and (cancel_after_s is None or forced is not None):
        raise never_started(run)
    by_us, finished = None, None
    if status is not None and status.state == "queued" and forced is not None and run.grid_id is not None:
        requeue_unseen(ledger, run, forced.detail)  # it never began: another machine may
        return
    if status is None or status.state != "exited":
        if cancel_after_s is None:
            does = "waits for its turn" if status is not None and status.state == "queued" else "still runs"
            raise UsageError(
                f"{run.run_id} {does}", next_step=f"cloudrun attach {run.run_id}, or cloudrun cancel {run.run_id}"
            )
        status = agent.cancel(place, cancel_after_s, "cancelled")
        by_us = forced
    else:
        finished = agent.collect(place)
    if run.state is RunState.SHIPPING:
        ledger.move_run(run.run_id, RunState.RUNNING)
    home = homecoming(ledger, run, attempt, place, observe, clock)
    if status.reason == "interrupted":
        home.requeue(agent, "the provider took the machine back", status, finished=finished)
    else:
        home.bring(agent, status, by_us if status.reason else None, finished=finished)
        agent.home(place)


def never_started(run: RunRecord) -> NotFound:
    return NotFound(
        f"{run.run_id} never started: its client ended before", next_step=f"cloudrun cancel {run.run_id}; submit again"
    )


def pull_stored(
    cloud: Cloud,
    ledger: Ledger,
    run: RunRecord,
    attempt: AttemptRecord,
    observe: Observer,
    clock: Clock,
    phases: Phases | None = None,
) -> bool:
    """Bring home what a unit has put into the bucket; false where it did not finish that. `phases`: of a client that
    has watched the attempt, which are not in the ledger yet."""
    if not attempt.store:
        return False
    stored = bucket.Stored(cloud.storage(), attempt.store)
    if not stored.complete:
        return False
    home = homecoming(ledger, run, attempt, "", observe, clock, phases)
    status = stored.status()
    if run.state is RunState.SHIPPING:
        ledger.move_run(run.run_id, RunState.RUNNING)
    if status.reason == "interrupted":
        home.requeue(stored, "the provider took the machine back", status)
    else:
        home.bring(stored, status)
    return True


def clear_stores(cloud: Cloud, ledger: Ledger, run_id: str, observe: Observer) -> None:
    """Delete what the attempts of a run that is home have left in a bucket: nobody reads it again."""
    try:
        if not is_terminal(ledger.run(run_id).state):
            return
        for attempt in ledger.attempts(run_id):
            if attempt.store:
                bucket.discard(cloud.storage(), attempt.store)
    except CloudrunError as error:
        observe(Note(f"what {run_id} has left in its bucket could not be deleted: {error}", "warning"))


def homecoming(
    ledger: Ledger,
    run: RunRecord,
    attempt: AttemptRecord,
    place: str,
    observe: Observer,
    clock: Clock,
    phases: Phases | None = None,
) -> Homecoming:
    earlier = ledger.attempts(run.run_id)[attempt.number - 2].outputs if attempt.number > 1 else ()
    settings = submitted_settings(run) or Settings()
    return Homecoming(
        ledger, run, place, phases or Phases(observe, clock), observe, clock,
        settings.output_max_bytes, settings.output_max_files, attempt.number, earlier,
    )  # fmt: skip
