"""Runs on open units: dispatched and followed to the end, or started and left to themselves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudrun.core import rundir
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
from cloudrun.core.events import Note, Progress
from cloudrun.core.ids import new_id
from cloudrun.core.records import FileEntry, JobStatus, RunRecord, System
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.fingerprint import cell_key
from cloudrun.runs import bucket, datasets
from cloudrun.runs.attempt import Attempt
from cloudrun.runs.furnishing import furnished
from cloudrun.runs.prepared import Prepared, job_spec, submission
from cloudrun.runs.pulling import requeue_unseen
from cloudrun.runs.slots import Turn
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.phases import together

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Finished
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
        shipped = _ship_ahead(unit, plan, run_id) if run_id else ""
        turn.take(check=unit.check_cancelled)
    attempt = _attempt(
        unit,
        lambda: _again(unit, run_id, begun) if run_id and begun else _begin(unit, plan, run_id, new),
        lambda attempt: _carry_out(attempt, plan, turn, shipped),
        at_once=begun > 0,
    )
    run = unit.ledger.get(attempt.run.run_id)
    if check and run.state is not RunState.SUCCEEDED:
        raise job_failed(run)
    return run


def detach(unit: OpenUnit, plan: Prepared, *, run_id: str | None = None) -> Run:
    """Start it, let go of the unit, and return the run as it is then. As `execute` where that does not come about."""
    attempt = _attempt(unit, lambda: _begin(unit, plan, run_id), lambda begun: _start(begun, plan))
    return unit.ledger.get(attempt.run.run_id)


def go_on(unit: OpenUnit, run_id: str, turn: Turn | None = None) -> Run:
    """Follow a run that a client which is dead has begun on this unit, and bring it home. As `execute`, unchecked; a
    run that never got as far as its job is queued again."""

    def follow(attempt: Attempt) -> None:
        known = unit.agent.status(attempt.place)
        if known is None:
            raise _NeverStarted(f"its client died before it had started it on {unit.instance_id}")
        if known.state != "queued":
            attempt.mark_running()
        attempt.printed.discard()  # what that client had seen of its log comes once more
        with attempt.in_time():
            finished = attempt.follow()
        attempt.mark_running()
        _conclude(attempt, finished, turn or Turn())

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
                if at_once and isinstance(error, Cancelled) and not attempt.started and unit.holds():
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
        number, store = 1, store_of(ledger, plan, run.run_id, 1)
        ledger.begin_run(run, unit.instance_id, now, store=store, beside=plan.beside)
    else:
        run = ledger.run(run_id)
        number = run.attempts + 1
        try:
            store = store_of(ledger, plan, run_id, number)
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


def store_of(ledger: Ledger, plan: Prepared, run_id: str, number: int) -> str:
    """Where in S3 an attempt's outputs go; "" for nowhere."""
    name = plan.settings.bucket
    return bucket.store_uri(name, ledger.ledger_id, run_id, number) if name else ""


# -- the steps -------------------------------------------------------------------------------------------------------


def _ship_ahead(unit: OpenUnit, plan: Prepared, run_id: str) -> str:
    """The project to where the run's next attempt will look for it, while it waits; returns that place. "" where that
    failed: whatever is wrong, the attempt is what meets it."""
    with suppress(CloudrunError):
        run = unit.ledger.run(run_id)
        if run.state is RunState.QUEUED and not run.attempts:
            place = rundir.run_dir(run_id, 1)
            unit.agent.ship(place, plan.shipment.root, plan.shipment.entries)
            unit.say_what_is_home()
            return place
    return ""


def _carry_out(attempt: Attempt, plan: Prepared, turn: Turn, shipped: str) -> None:
    furnish(attempt, plan)
    finished = _perform(attempt, plan, _spec(attempt, plan), shipped)
    _conclude(attempt, finished, turn)


def _conclude(attempt: Attempt, finished: Finished, turn: Turn) -> None:
    """The next job does not wait until one that ended well is home. After one that did not, it is to be decided first
    whether there shall be another."""
    if finished.status.exit_code == 0 and not finished.status.reason:
        turn.end()
    attempt.conclude(finished.status, finished)


def _start(attempt: Attempt, plan: Prepared) -> None:
    unit = attempt.unit
    furnish(attempt, plan)
    spec = _spec(attempt, plan)
    with attempt.phases.phase("ship", _what_travels(plan)):
        attempt.despite_cuts(lambda: _ship_and_start(attempt, plan, spec))
    with LIFELINE.shield():
        attempt.mark_running()
        unit.ledger.set_timings(attempt.run.run_id, together(attempt.run.timings, attempt.phases.timings()))
        attempt.despite_cuts(lambda: unit.let_go(power_off_when_done=bool(plan.settings.bucket)))


def furnish(attempt: Attempt, plan: Prepared) -> None:
    """The environment and the data that the job needs, where the unit does not have them yet."""
    _provision(attempt, plan)
    unit = attempt.unit
    for data in plan.data:
        if not attempt.despite_cuts(partial(unit.has_data, data.key)):
            with attempt.phases.phase("ship", f"{data.source}, {data.total_bytes:,} bytes"):
                attempt.despite_cuts(partial(unit.bring_data, data, _progress(attempt)))


def _provision(attempt: Attempt, plan: Prepared) -> None:
    unit, environment = attempt.unit, plan.environment
    with unit.provisioning:
        if unit.knows_environment(environment.fingerprint):
            return
        build = partial(_build, attempt, plan)
        if unit.spreading is None or environment.system != System():  # what else a unit has does not travel
            build()
        else:
            unit.spreading.provide(unit, environment.fingerprint, attempt.phases, build)


def _build(attempt: Attempt, plan: Prepared) -> None:
    from cloudrun.provisioning.playbook import provision

    unit, environment = attempt.unit, plan.environment
    with attempt.phases.phase("provision", f"Python {environment.python}, {environment.source}"):
        try:
            with furnished(unit.session, environment):
                attempt.provision_log = provision(
                    unit.target(),
                    environment,
                    private_dir=attempt.folder,
                    timeout_s=unit.settings.provision_timeout_s,
                    on_line=lambda line: unit.observe(Note(line, "verbose")),
                    cancelled=unit.stop,
                )
        except ProvisionError as error:
            attempt.provision_log = error.log_path
            raise


def _spec(attempt: Attempt, plan: Prepared) -> dict[str, Any]:
    return spec_on(attempt.unit, plan, attempt.run.run_id, attempt.number)


def spec_on(unit: OpenUnit, plan: Prepared, run_id: str, number: int) -> dict[str, Any]:
    """What the unit's agent is told of an attempt, with leave to upload where there is a bucket."""
    upload = None
    if address := store_of(unit.ledger, plan, run_id, number):
        upload = bucket.ticket(unit.cloud, address, plan.settings.output_max_bytes, unit.seconds_left())
    return job_spec(plan, run_id, number, upload)


def _perform(attempt: Attempt, plan: Prepared, spec: dict[str, Any], shipped: str) -> Finished:
    """Ship, start and follow, at the cost of one round trip where all is well. `shipped`: where the project is."""
    unit = attempt.unit
    is_there = attempt.place == shipped
    cut = False
    with attempt.in_time(), ExitStack() as phase:
        phase.enter_context(attempt.phases.phase("ship", _what_travels(plan)))

        def started(_status: JobStatus) -> None:
            if not attempt.started:
                phase.close()
                phase.enter_context(attempt.phases.phase("run", " ".join(spec["argv"][1:])))
            attempt.mark_running()

        def act() -> Finished:
            nonlocal cut
            was_cut = cut
            if cut and (status := unit.agent.status(attempt.place)) is not None:
                started(status)
            cut = True  # whatever comes now, a second time it is asked how far the first one came
            if not attempt.started and attempt.home.earlier:
                started(_ship_and_start(attempt, plan, spec))
            if attempt.started:
                return attempt.follow()
            return unit.agent.perform(
                attempt.place,
                plan.shipment.root,
                None if is_there and not was_cut else plan.shipment.entries,
                spec,
                attempt.printed,
                on_started=started,
                on_progress=_progress(attempt),
                offsets=attempt.printed.offsets,
                cancelled=unit.stop,
                at_home=unit.take_home_news(),
            )

        unit.check_cancelled()
        return attempt.despite_cuts(act)


def _ship_and_start(attempt: Attempt, plan: Prepared, spec: dict[str, Any]) -> JobStatus:
    """Step by step."""
    unit = attempt.unit
    known = unit.agent.status(attempt.place)
    if known is not None:
        return known  # by a connection that was lost before it could say so
    ship(attempt, plan)
    unit.check_cancelled()
    return unit.agent.start(attempt.place, spec)


def ship(attempt: Attempt, plan: Prepared) -> None:
    """The project to the run's own directory, and what an earlier attempt had saved over it."""
    unit, goods = attempt.unit, plan.shipment
    unit.agent.ship(attempt.place, goods.root, goods.entries, _progress(attempt))
    saved = [each for each in attempt.home.earlier if each.kind == "output"]
    if saved:
        with tempfile.TemporaryDirectory(prefix="cloudrun-") as folder:
            for artifact in saved:
                link = Path(folder, artifact.path)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(unit.ledger.artifacts.path(artifact.sha256))
            entries = [FileEntry(each.path, each.size, each.sha256) for each in saved]
            unit.agent.ship(attempt.place, Path(folder), entries, _progress(attempt), area="outputs")


def _progress(attempt: Attempt) -> Any:
    return lambda done, total: attempt.unit.observe(Progress("ship", done, total))


def _what_travels(plan: Prepared) -> str:
    return f"{len(plan.shipment.entries)} files, {plan.shipment.total_bytes:,} bytes"
