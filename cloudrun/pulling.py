"""Bringing home a run that an earlier client started: `cloudrun pull`, and the reaper's last act on a unit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from cloudrun import launching, wiring
from cloudrun.clients import is_alive
from cloudrun.core import rundir
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import CloudrunError, ConnectionLost, NotFound, UsageError
from cloudrun.core.events import Observer
from cloudrun.core.records import RunRecord, SshTarget, UnitRecord
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.homecoming import Homecoming
from cloudrun.ledger import Ledger, Run
from cloudrun.phases import Phases
from cloudrun.plan.endings import Ending

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Agent

LOGIN_S = 30.0
GRACE_S = 30.0
TERMINATE_S = 300.0


def pull(ledger: Ledger, run_id: str, *, observe: Observer, profile: str | None = None) -> Run:
    """Bring home the outputs that wait on a unit. With the last of them home the unit is terminated, unless it was
    launched to be kept.

    Raises NotFound, UsageError (the run is home, or still going), ConnectionLost (its unit is gone).
    """
    clock = SystemClock()
    run = ledger.run(run_id)
    if run.state is RunState.LOST:
        raise UsageError(f"{run.run_id} is lost: its machine is gone", next_step="submit again")
    if is_terminal(run.state):
        raise UsageError(f"{run.run_id} is home already ({run.state})", next_step=f"cloudrun show {run.run_id}")
    attempts = ledger.attempts(run.run_id)
    if not attempts:
        raise UsageError(f"{run.run_id} never reached a machine", next_step=f"cloudrun show {run.run_id}")
    unit = ledger.unit(attempts[-1].instance_id)
    if is_alive(ledger.client(unit.client_id), clock.now()):
        raise UsageError(
            f"{run.run_id} is {run.state}, and the process that started it still looks after it",
            next_step="wait for that process, or end it",
        )
    cloud = wiring.reconnect(unit.place, profile)
    found = cloud.instances.describe([unit.instance_id]).get(unit.instance_id) if cloud else None
    if cloud is None or found is None or found.state != "running":
        raise ConnectionLost(
            f"{unit.instance_id} is gone, and the outputs with it", next_step="cloudrun reap, then submit again"
        )
    try:
        with log_in(ledger, unit, timeout_s=LOGIN_S) as agent:
            pull_run(ledger, run, agent, observe, clock)
    except CloudrunError:
        with suppress(CloudrunError):  # it waits on, for the next try
            if ledger.run(run.run_id).state is RunState.PULLING:
                ledger.move_run(run.run_id, RunState.PULL_PENDING)
        raise
    others_wait = bool(ledger.unfinished_runs(unit.instance_id))
    if ledger.launch(unit.launch_id).on_exit == "terminate" and not others_wait:
        launching.terminate(
            cloud, ledger, [unit.instance_id], reason=EndReason.COMPLETED, timeout_s=TERMINATE_S, clock=clock
        )
        launching.release_resources(cloud, ledger, unit.launch_id, timeout_s=TERMINATE_S, clock=clock)
    return ledger.get(run.run_id)


@contextmanager
def log_in(ledger: Ledger, unit: UnitRecord, *, timeout_s: float) -> Iterator[Agent]:
    """The agent of a unit that this ledger knows. Raises ConnectionLost, HostKeyMismatch."""
    from cloudrun.ssh.agent import Agent
    from cloudrun.ssh.session import Session

    key = launching.key_path(ledger, unit.launch_id)
    target = SshTarget(unit.address or "", unit.ssh_port, unit.user, key, unit.host_key)
    session = Session.open(target, timeout_s=timeout_s)
    try:
        agent = Agent(session)
        agent.install()
        yield agent
    finally:
        session.close()


def pull_run(ledger: Ledger, run: RunRecord, agent: Agent, observe: Observer, clock: Clock) -> None:
    """Fetch and record one run. One that still runs is ended first: nobody is there who wants it to go on."""
    place = rundir.run_dir(run.run_id, ledger.attempts(run.run_id)[-1].number)
    status = agent.status(place)
    if status is None:
        raise NotFound(f"{run.run_id} had not started on its unit yet")
    forced = None
    if status.state != "exited":
        status = agent.cancel(place, GRACE_S)
        forced = Ending(RunState.FAILED, EndReason.CLIENT_LOST, "the client that started it is gone, so it was ended")
    if run.state is RunState.SHIPPING:
        ledger.move_run(run.run_id, RunState.RUNNING)
    home = Homecoming(ledger, run, place, Phases(observe, clock), observe, clock)
    home.bring(agent, status, forced)
