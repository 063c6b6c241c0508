"""Bringing home a run that an earlier client started, from its unit or from its bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import TYPE_CHECKING

from cloudrun import bucket, launching, wiring
from cloudrun.clients import is_alive, this_client
from cloudrun.connection import Connection
from cloudrun.core import rundir
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import CloudrunError, ConnectionLost, HostKeyMismatch, LedgerError, NotFound, UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import AttemptRecord, RunRecord, UnitRecord
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.homecoming import Homecoming
from cloudrun.ledger import Ledger, Run
from cloudrun.phases import Phases, together
from cloudrun.plan.endings import Ending
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
        raise UsageError(
            f"{run.run_id} is {run.state}, and the process that started it still looks after it",
            next_step=f"cloudrun logs -f {run.run_id} follows it; wait for that process, or end it",
        )
    cloud = wiring.reconnect(unit.place, profile)
    found = cloud.instances.describe([unit.instance_id]).get(unit.instance_id) if cloud else None
    if cloud is None or found is None or found.state != "running":
        if cloud is not None and pull_stored(cloud, ledger, run, attempt, observe, clock):
            return ledger.get(run.run_id)
        raise ConnectionLost(
            f"{unit.instance_id} is gone, and the outputs with it", next_step="cloudrun reap, then submit again"
        )
    client = this_client(clock.now())
    ledger.register_client(client)
    try:
        if not ledger.take_unit(unit.instance_id, client.client_id, of=unit.client_id, on_exit=unit.on_exit):
            raise UsageError(f"another process is pulling {run.run_id}", next_step=f"cloudrun show {run.run_id}")
        try:
            _despite_cuts(
                cloud,
                ledger,
                unit,
                observe,
                lambda agent: pull_run(ledger, run, agent, observe, clock, cancel_after_s=cancel_after_s),
            )
            _end_unit(cloud, ledger, unit, run.run_id, observe, clock)
        finally:
            with suppress(CloudrunError):
                ledger.update_unit(unit.instance_id, client_id="", on_exit="keep")  # it waits on, for the next try
    except CloudrunError:
        with suppress(CloudrunError):
            if ledger.run(run.run_id).state is RunState.PULLING:
                ledger.move_run(run.run_id, RunState.PULL_PENDING)
        raise
    finally:
        with suppress(CloudrunError):
            ledger.dismiss_client(client.client_id)
    return ledger.get(run.run_id)


def waiting_run(ledger: Ledger, reference: str) -> tuple[RunRecord, AttemptRecord, UnitRecord]:
    """A run that is not home yet, its last attempt and that one's unit. Raises NotFound, UsageError."""
    run = ledger.run(reference)
    if run.state is RunState.LOST:
        raise UsageError(f"{run.run_id} is lost: its machine is gone", next_step="submit again")
    if is_terminal(run.state):
        raise UsageError(f"{run.run_id} is home already ({run.state})", next_step=f"cloudrun show {run.run_id}")
    attempts = ledger.attempts(run.run_id)
    if not attempts:
        raise UsageError(f"{run.run_id} never reached a machine", next_step=f"cloudrun show {run.run_id}")
    return run, attempts[-1], ledger.unit(attempts[-1].instance_id)


def _end_unit(cloud: Cloud, ledger: Ledger, unit: UnitRecord, run_id: str, observe: Observer, clock: Clock) -> None:
    """End a unit that nothing waits on, as it was launched to end."""
    how = ledger.launch(unit.launch_id).on_exit
    if how == "keep" or ledger.unfinished_runs(unit.instance_id):
        return
    if how == "stop":
        launching.stop(cloud, ledger, [unit.instance_id], timeout_s=TERMINATE_S, clock=clock)
        return
    phases = Phases(observe, clock)
    with phases.phase("terminate", unit.instance_id):
        launching.terminate(
            cloud, ledger, [unit.instance_id], reason=EndReason.COMPLETED, timeout_s=TERMINATE_S, clock=clock
        )
    with suppress(LedgerError):  # a time is not worth an error
        ledger.set_timings(run_id, together(ledger.run(run_id).timings, phases.timings()))
    if not any(other.launch_id == unit.launch_id for other in ledger.units()):
        launching.release_resources(cloud, ledger, unit.launch_id, timeout_s=TERMINATE_S, clock=clock)


def connect(cloud: Cloud, ledger: Ledger, unit: UnitRecord, observe: Observer) -> Connection:
    """The way to a unit that this ledger knows, not open yet: without orders, for one who only looks or fetches."""
    connection = Connection(cloud, ledger, SystemClock(), lambda: ledger.unit(unit.instance_id), Event(), observe)
    connection.let_this_address_in()
    return connection


@contextmanager
def log_in(cloud: Cloud, ledger: Ledger, unit: UnitRecord, *, timeout_s: float, observe: Observer) -> Iterator[Agent]:
    """The agent of a unit that this ledger knows. Raises ConnectionLost, HostKeyMismatch."""
    connection = connect(cloud, ledger, unit, observe)
    try:
        connection.open(timeout_s)
        yield connection.agent
    finally:
        connection.close()


def _despite_cuts(
    cloud: Cloud, ledger: Ledger, unit: UnitRecord, observe: Observer, act: Callable[[Agent], None]
) -> None:
    """What has come home stays home, so a lost connection costs no more than what was on its way."""
    for left in reversed(range(TRIES)):
        try:
            with log_in(cloud, ledger, unit, timeout_s=LOGIN_S, observe=observe) as agent:
                return act(agent)
        except HostKeyMismatch:
            raise
        except ConnectionLost:
            if not left:
                raise
            observe(Note("the connection is lost; connecting again", "warning"))
    return None


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
    one that is left alone.
    """
    run = ledger.run(run.run_id)  # a try before this one may have come some way
    attempt = ledger.attempts(run.run_id)[-1]
    place = rundir.run_dir(run.run_id, attempt.number)
    status = agent.status(place)
    if status is None:
        raise NotFound(f"{run.run_id} had not started on its unit yet")
    by_us = None
    if status.state != "exited":
        if cancel_after_s is None:
            raise UsageError(
                f"{run.run_id} still runs", next_step=f"cloudrun attach {run.run_id}, or cloudrun cancel {run.run_id}"
            )
        status = agent.cancel(place, cancel_after_s, "cancelled")
        by_us = forced
    if run.state is RunState.SHIPPING:
        ledger.move_run(run.run_id, RunState.RUNNING)
    home = homecoming(ledger, run, attempt, place, observe, clock)
    if status.reason == "interrupted":
        home.requeue(agent, "the provider took the machine back")
    else:
        home.bring(agent, status, by_us if status.reason else None)
        agent.home(place)


def pull_stored(
    cloud: Cloud, ledger: Ledger, run: RunRecord, attempt: AttemptRecord, observe: Observer, clock: Clock
) -> bool:
    """Bring home what a unit has put into the bucket, and delete it there; false where it did not finish that."""
    if not attempt.store:
        return False
    stored = bucket.Stored(cloud.storage(), attempt.store)
    if not stored.complete:
        return False
    home = homecoming(ledger, run, attempt, "", observe, clock)
    status = stored.status()
    if run.state is RunState.SHIPPING:
        ledger.move_run(run.run_id, RunState.RUNNING)
    if status.reason == "interrupted":
        home.requeue(stored, "the provider took the machine back")
    else:
        home.bring(stored, status)
    try:
        stored.discard()
    except CloudrunError as error:
        observe(Note(f"{attempt.store} could not be deleted: {error}", "warning"))
    return True


def homecoming(
    ledger: Ledger, run: RunRecord, attempt: AttemptRecord, place: str, observe: Observer, clock: Clock
) -> Homecoming:
    earlier = ledger.attempts(run.run_id)[attempt.number - 2].outputs if attempt.number > 1 else ()
    phases = Phases(observe, clock)
    return Homecoming(ledger, run, place, phases, observe, clock, number=attempt.number, earlier=earlier)
