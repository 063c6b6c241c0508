"""Runs on open units: dispatched and followed to the end, or started and left to themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    ConnectionLost,
    Interrupted,
    JobFailed,
    LedgerError,
    ProvisionError,
    TransferError,
    UnitGone,
    UsageError,
)
from cloudrun.core.ids import new_id
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Run
from cloudrun.plan.fingerprint import cell_key
from cloudrun.runs import datasets, performing
from cloudrun.runs.attempt import Attempt
from cloudrun.runs.prepared import Prepared, submission
from cloudrun.runs.pulling import requeue_unseen
from cloudrun.runs.slots import Turn
from cloudrun.units.lifeline import LIFELINE

if TYPE_CHECKING:
    from cloudrun.units.unit import OpenUnit


def execute(
    unit: OpenUnit,
    plan: Prepared,
    *,
    check: bool = True,
    run_id: str | None = None,
    new: RunRecord | None = None,
    begun: int = 0,
    turn: Turn | None = None,
) -> Run:
    """Run it. Returns when everything is home and recorded; raises JobFailed (with `.run`) where `check` is true.

    `run_id` is that of a run whose earlier attempt was interrupted; `new` one that is not in the ledger yet; `begun`
    the number of an attempt that is there already. `turn` is waited for before anything is done, and is over when the
    unit can begin another job.

    Whatever interrupts this (Ctrl-C, SIGTERM, the deadline), the job is ended, what it wrote is brought home where the
    unit still answers, and the run says how far it came, before the interruption goes on its way. Raises Interrupted
    (with `.run_id`) where the provider took the machine back: the run is queued again, with what it had saved.
    """
    turn, shipped = turn or Turn(), ""
    if not turn.take(wait=False):
        shipped = performing.ship_ahead(unit, plan, run_id) if run_id else ""
        turn.take(check=unit.check_cancelled)
    attempt = _attempt(
        unit,
        lambda: _again(unit, run_id, begun) if run_id and begun else _begin(unit, plan, run_id, new),
        lambda attempt: performing.carry_out(attempt, plan, turn, shipped),
        at_once=begun > 0,
    )
    run = unit.ledger.get(attempt.run.run_id)
    if check and run.state is not RunState.SUCCEEDED:
        raise job_failed(run)
    return run


def detach(unit: OpenUnit, plan: Prepared, *, run_id: str | None = None) -> Run:
    """Start it, let go of the unit, and return the run as it is then. As `execute` where that does not come about."""
    attempt = _attempt(unit, lambda: _begin(unit, plan, run_id), lambda begun: performing.start(begun, plan))
    return unit.ledger.get(attempt.run.run_id)


def go_on(unit: OpenUnit, run_id: str, turn: Turn | None = None) -> Run:
    """Follow a run that a client which is dead has begun on this unit, and bring it home. As `execute`, unchecked; a
    run that never got as far as its job is queued again."""

    def follow(attempt: Attempt) -> None:
        known = unit.agent.status(attempt.place)
        if known is None:
            raise _NeverStarted(f"its client died before it had started it on {unit.instance_id}")
        unit.begins_jobs = True
        if known.state != "queued":
            attempt.mark_running()
        attempt.printed.discard()  # what that client had seen of its log comes once more
        with attempt.in_time():
            finished = attempt.follow()
        attempt.mark_running()
        performing.conclude(attempt, finished, turn or Turn())

    with suppress(_NeverStarted):
        _attempt(unit, lambda: _again(unit, run_id), follow)
    return unit.ledger.get(run_id)


class _NeverStarted(Interrupted):
    """It is queued again; nothing is wrong with its machine."""


def job_failed(run: Run) -> JobFailed:
    """The error for a run whose job did not end well; `error.run` is the run."""
    what = "was cancelled" if run.state is RunState.CANCELLED else "failed"
    return JobFailed(
        f"{run.record.script} {what}: {run.record.detail}", run=run, next_step=f"cloudrun show {run.run_id} --log"
    )


def _attempt(
    unit: OpenUnit, begin: Callable[[], Attempt], act: Callable[[Attempt], None], *, at_once: bool = False
) -> Attempt:
    """`at_once`: it is in the ledger already, so that its end has to be, whatever comes."""
    if not at_once:
        unit.check_cancelled()
    attempt = None
    working = ExitStack()
    try:
        working.enter_context(unit.at_work())
        with LIFELINE.shield():
            attempt = begin()
        unit.check_cancelled()
        act(attempt)
    except BaseException as cause:
        error = _told_by_ec2(unit, cause)
        if attempt is not None:
            if isinstance(error, Interrupted):
                error.run_id = attempt.run.run_id
            with LIFELINE.shield(drop=True):
                if at_once and isinstance(error, Cancelled) and unit.holds() and not attempt.has_begun():
                    try:
                        requeue_unseen(unit.ledger, attempt.run, "it had not begun")  # what it was given is given back
                    except LedgerError as failure:  # the first cause stays the first
                        error.add_note(f"{attempt.run.run_id} could not be queued again: {failure}")
                else:
                    attempt.rescue(error)
        if isinstance(error, Exception) and not isinstance(error, ConnectionLost):
            unit.stay()
        if error is cause:
            raise
        raise error from cause
    finally:
        working.close()
    return attempt


def _told_by_ec2(unit: OpenUnit, error: BaseException) -> BaseException:
    """What a failure was, where EC2 knows better: a machine that is taken back fails in many ways first."""
    if isinstance(error, ConnectionLost | ProvisionError | TransferError) and not isinstance(error, Interrupted):
        try:
            if unit.was_taken_back():
                return Interrupted(f"{unit.instance_id} was taken back by the provider")
        except CloudrunError:
            pass  # then what is known is the error
        if unit.replaceable and unit.is_gone():
            return UnitGone(f"{unit.instance_id} went away")
    return error


def _begin(unit: OpenUnit, plan: Prepared, run_id: str | None, new: RunRecord | None = None) -> Attempt:
    """Write down the run, where it is new, and its attempt on this unit."""
    ledger, now = unit.ledger, unit.clock.now()
    if run_id is None:
        run = new or new_run(plan, now)
        number, store = 1, performing.store_of(ledger, plan, run.run_id, 1)
        ledger.begin_run(run, unit.instance_id, now, store=store, beside=plan.beside)
    else:
        run = ledger.run(run_id)
        number = run.attempts + 1
        try:
            store = performing.store_of(ledger, plan, run_id, number)
            ledger.begin_attempt(run_id, unit.instance_id, now, store=store, beside=plan.beside)
        except LedgerError as error:
            _raise_why_not(ledger.run(run_id), error)
            raise
    unit.run_ids.append(run.run_id)
    return Attempt(unit, ledger.run(run.run_id), number)


def _again(unit: OpenUnit, run_id: str, number: int = 0) -> Attempt:
    """One that is in the ledger: the last one, or that of the number."""
    run = unit.ledger.run(run_id)
    if number and (run.attempts, run.state) != (number, RunState.SHIPPING):  # another client has gone on meanwhile
        _raise_why_not(run, LedgerError(f"{run_id} is {run.state}"))
        raise Cancelled(f"{run_id} was queued again meanwhile", next_step="cloudrun ps")
    unit.run_ids.append(run_id)
    return Attempt(unit, run, number or run.attempts)


def _raise_why_not(run: RunRecord, error: LedgerError) -> None:
    """A queued run is whoever's comes first: another process may have ended it, or have gone on with it."""
    if run.state is RunState.CANCELLED:
        raise Cancelled(f"{run.run_id} was cancelled meanwhile", next_step=f"cloudrun show {run.run_id}") from error
    if run.state is not RunState.QUEUED:
        raise UsageError(f"another process goes on with {run.run_id}", next_step="cloudrun ps") from error


def new_run(plan: Prepared, now: datetime) -> RunRecord:
    """A run as it begins, and is not in the ledger yet. Its key is that of the same work as a cell, so that a grid can
    take it over."""
    params, data = dict(plan.job.params), datasets.digest(plan.data)
    return RunRecord(
        run_id=new_id("r"),
        name=plan.job.name or Path(plan.shipment.script).stem,
        script=plan.shipment.script,
        cwd=plan.shipment.cwd,
        state=RunState.QUEUED,
        created_at=now,
        arguments=plan.job.arguments,
        params=params,
        cell_key=key_of(plan, params, data),
        submission=submission(plan),
        metric=plan.settings.metric,
        minimize=plan.settings.minimize,
        code_digest=plan.code_digest,
        data_digest=data,
        environment_digest=plan.environment.fingerprint,
    )


def key_of(plan: Prepared, params: Mapping[str, Any], data_digest: str) -> str:
    """What a run of this plan with these parameters has in common with all that are the same work."""
    return cell_key(
        plan.code_digest,
        params,
        data_digest,
        plan.environment.fingerprint,
        plan.job.arguments,
        plan.shipment.cwd,
    )
