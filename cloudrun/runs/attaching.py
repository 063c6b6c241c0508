"""Coming back to a run: follow it to its end and bring it home, or end it; move its unit's deadline."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from cloudrun import config, wiring
from cloudrun.core import rundir
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import Interrupted, NotFound, UsageError
from cloudrun.core.events import Note, Observer, Output
from cloudrun.core.records import RunRecord, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import RunState, UnitState, is_terminal
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.budget import least_usd
from cloudrun.plan.endings import CANCELLED
from cloudrun.plan.quantities import duration_text
from cloudrun.runs import pulling, watching
from cloudrun.runs.deadlines import move_deadline
from cloudrun.runs.homecoming import end_queued
from cloudrun.runs.machine import ATTEMPTS_MAX
from cloudrun.runs.prepared import submitted_settings
from cloudrun.runs.submit import resume
from cloudrun.units.clients import is_alive
from cloudrun.units.connection import connected
from cloudrun.units.costs import price_of
from cloudrun.units.leases import Attended
from cloudrun.units.purse import Purse

OTHER_CLIENT_S = 120.0  # for the process that looks after a run to bring home what was cancelled under it
POLL_S = 0.2
FARTHEST_S = 7 * 86400.0  # from now: a slip of the finger must not become a month's bill


def attach(ledger: Ledger, reference: str, *, observe: Observer, profile: str | None = None) -> Run:
    """Follow a run that nobody looks after, from its first byte to its end, and bring it home; where its machine was
    taken back, go on with it on another one. Leaving this early (Ctrl-C) changes nothing about a run that runs.

    Raises NotFound, UsageError (the run is over, or a process looks after it), ConnectionLost (its unit is gone).
    """
    run_id = ledger.run(reference).run_id  # once: a name may be another run's by the next look
    for _ in range(ATTEMPTS_MAX):
        run = ledger.run(run_id)
        if run.state is RunState.QUEUED and run.attempts:
            _resume(ledger, run, observe, profile)
        pulled = _follow_home(ledger, run_id, observe, profile)
        if pulled.state is not RunState.QUEUED:
            return pulled
        observe(Note(f"its machine was taken back; {run_id} goes on with what it had saved", "warning"))
    raise Interrupted(
        f"the machines of {run_id} were taken back {ATTEMPTS_MAX} times", next_step=f"cloudrun attach {run_id}"
    )


def _follow_home(ledger: Ledger, run_id: str, observe: Observer, profile: str | None) -> Run:
    run, attempt, unit = pulling.waiting_run(ledger, run_id)
    if is_alive(ledger.client(unit.client_id), SystemClock().now()):
        raise Attended(
            f"the process that submitted {run.run_id} still looks after it",
            next_step=f"cloudrun logs -f {run.run_id} shows what it prints",
        )
    positions = {"stdout": 0, "stderr": 0}
    watching.earlier_logs_note(run, ledger.attempts(run.run_id), observe)

    def show(stream: str, data: bytes) -> None:
        positions[stream] += len(data)
        observe(Output("stdout" if stream == "stdout" else "stderr", data))

    try:
        watching.follow_attempt(
            ledger, run, attempt, show, positions, wait=True, profile=profile, observe=observe,
            before=lambda: _adopt(ledger, run, unit),
        )  # fmt: skip
    except (watching.Gone, Interrupted) as gone:
        observe(Note(f"{gone}; looking for what it has left"))
    return _pulled(ledger, run_id, observe, profile)


def _pulled(ledger: Ledger, run_id: str, observe: Observer, profile: str | None) -> Run:
    """The run brought home: by us, or by another process that came for it at the same moment."""
    while True:
        if _is_settled(ledger, run_id):
            return ledger.get(run_id)
        try:
            return pulling.pull(ledger, run_id, observe=observe, profile=profile)
        except Attended:
            observe(Note("another process brings it home: waiting for that"))
            _await_end(ledger, run_id, SystemClock())
        except UsageError:
            if not _is_settled(ledger, run_id):
                raise


def _is_settled(ledger: Ledger, run_id: str) -> bool:
    """Whether nothing of it is on a machine: it is home, or waits for another attempt."""
    state = ledger.run(run_id).state
    return is_terminal(state) or state is RunState.QUEUED


def _adopt(ledger: Ledger, run: RunRecord, unit: UnitRecord) -> None:
    """A unit whose client died is anybody's to end. From here on it is left to its run and its deadline, as after
    `--detach`, until the run is home."""
    if unit.client_id and not ledger.take_unit(unit.instance_id, "", of=unit.client_id, on_exit="keep"):
        raise Attended(f"another process has just come for {run.run_id}", next_step="cloudrun ps")


def _resume(ledger: Ledger, run: RunRecord, observe: Observer, profile: str | None) -> None:
    """Start its next attempt on a new machine, which is left to it: whoever follows it may go at any time."""
    unit = ledger.unit(ledger.attempts(run.run_id)[-1].instance_id)
    launch = ledger.launch(unit.launch_id)
    given: dict[str, Any] = {
        "provider": unit.place.provider,
        "region": unit.place.region,
        "profile": profile,
        "instance_type": unit.instance_type,
        "spot": launch.request.spot,
        "on_exit": launch.on_exit,
    }
    given = {name: value for name, value in given.items() if value is not None}
    submitted = submitted_settings(run)
    settings = config.load(ledger.project, given) if submitted is None else replace(submitted, **given)
    resume(run.run_id, settings, ledger=ledger, observe=observe, detach=True)


def cancel(ledger: Ledger, reference: str, *, grace_s: float, observe: Observer, profile: str | None = None) -> Run:
    """End a run: SIGTERM, `grace_s` seconds to save what it has, SIGKILL. What it wrote comes home, and its unit ends
    as it was launched to. Where another process looks after the run, that one does it.

    Raises NotFound, UsageError (it is over), ConnectionLost.
    """
    run = ledger.run(reference)
    if run.state is RunState.QUEUED:
        end_queued(ledger, run.run_id, CANCELLED)
        return ledger.get(run.run_id)
    run, attempt, unit = pulling.waiting_run(ledger, run.run_id)
    clock = SystemClock()
    if not is_alive(ledger.client(unit.client_id), clock.now()):
        return pulling.pull(ledger, run.run_id, observe=observe, profile=profile, cancel_after_s=grace_s)
    cloud = wiring.reconnect(unit.place, profile)
    if cloud is None:
        raise NotFound(f"{unit.instance_id} went away with its sandbox", next_step="cloudrun reap")
    with connected(cloud, ledger, unit, observe, timeout_s=pulling.LOGIN_S) as connection:
        connection.agent.cancel(rundir.run_dir(run.run_id, attempt.number), grace_s, "cancelled")
    _await_end(ledger, run.run_id, clock, OTHER_CLIENT_S)
    if not is_terminal(ledger.run(run.run_id).state):
        observe(Note(f"the process that looks after {run.run_id} is still bringing it home", "warning"))
    return ledger.get(run.run_id)


def _await_end(ledger: Ledger, run_id: str, clock: Clock, at_most_s: float = float("inf")) -> None:
    """Until the run is over, or the process that looks after it is: that one keeps to its unit's deadline."""
    end = clock.monotonic() + at_most_s
    while clock.monotonic() < end:
        run = ledger.run(run_id)
        if is_terminal(run.state) or run.instance_id is None:
            return
        if not is_alive(ledger.client(ledger.unit(run.instance_id).client_id), clock.now()):
            return
        clock.sleep(POLL_S)


# -- deadlines -------------------------------------------------------------------------------------------------------


def extend(ledger: Ledger, reference: str, by_s: float, *, observe: Observer, profile: str | None = None) -> UnitRecord:
    """Move the deadline of a unit, named by its id or by a run on it, `by_s` seconds later. Returns the unit.

    Raises NotFound, UsageError (also where a run's budget does not pay for it), ConnectionLost, CloudrunError where the
    machine does not take it.
    """
    unit = _unit_of(ledger, reference)
    if unit.state in (UnitState.TERMINATING, UnitState.TERMINATED):
        raise UsageError(f"{unit.instance_id} is {unit.state}", next_step="cloudrun units")
    deadline = unit.deadline + timedelta(seconds=by_s)
    if (deadline - SystemClock().now()).total_seconds() > FARTHEST_S:
        raise UsageError(
            f"{unit.instance_id} would live until {deadline:%Y-%m-%d %H:%M} UTC, over {duration_text(FARTHEST_S)} more",
            next_step="give it less, and again later: nothing makes a deadline earlier",
        )
    _check_budget(ledger, unit, deadline)
    cloud = watching.running(unit, profile)
    with connected(cloud, ledger, unit, observe, timeout_s=pulling.LOGIN_S) as connection:
        move_deadline(cloud, ledger, unit, deadline, connection.session, connection.agent, observe)
    return ledger.unit(unit.instance_id)


def _check_budget(ledger: Ledger, unit: UnitRecord, deadline: datetime) -> None:
    """Raises UsageError where the machine could cost more than a single run on it was submitted with. Grids look after
    their own. A run that found the machine used before does not answer for that."""
    usd_per_hour = price_of(ledger, unit)
    for run in ledger.unfinished_runs(unit.instance_id):
        most_usd = (submitted_settings(run) or Settings()).budget
        if run.grid_id is not None or most_usd is None or usd_per_hour is None:
            continue
        is_first = ledger.attempts_on([unit.instance_id])[0].run_id == run.run_id
        began = unit.created_at + timedelta(seconds=unit.stopped_s) if is_first else run.created_at
        earlier_usd = Purse(ledger, run.run_id).spent_usd(apart_from=unit.instance_id)
        could_usd = earlier_usd + least_usd(usd_per_hour, (deadline - began).total_seconds())
        if could_usd > most_usd:
            raise UsageError(
                f"{run.run_id} could cost ${could_usd:.4f} then, and its budget is ${most_usd:g}",
                next_step="give it less time, or submit again with a larger budget",
            )


def _unit_of(ledger: Ledger, reference: str) -> UnitRecord:
    if reference.startswith("i-"):
        with suppress(NotFound):  # then it is what somebody has called a run
            return ledger.unit(reference)
    _, _, unit = pulling.waiting_run(ledger, reference)
    return unit
