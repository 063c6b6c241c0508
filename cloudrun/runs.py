"""One run on an open unit: provision, ship, start, follow, bring home, record."""

from __future__ import annotations

import json
import posixpath
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING, Any, TypeVar

from cloudrun.core import rundir
from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    ConnectionLost,
    DeadlineReached,
    JobFailed,
    LedgerError,
    ManifestRefused,
    ProvisionError,
    TransferError,
    UsageError,
    mark_incomplete,
)
from cloudrun.core.events import Note, Observer, Progress
from cloudrun.core.ids import new_id
from cloudrun.core.records import Environment, JobStatus, RunRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import RunState
from cloudrun.homecoming import Homecoming
from cloudrun.ledger import Ledger, Run
from cloudrun.lifeline import LIFELINE
from cloudrun.phases import Phases
from cloudrun.plan.endings import interruption
from cloudrun.plan.fingerprint import code_digest
from cloudrun.plan.imports import scan_imports
from cloudrun.plan.quantities import size_text
from cloudrun.printed import Printed
from cloudrun.project import Shipment, shipment

if TYPE_CHECKING:
    from cloudrun.units import OpenUnit

# The client ends a job itself this long before the unit's deadline, so that what was written can still come home.
HOMEWARD_S = 60.0
# Less free space than this at home and nothing is launched: the ledger itself needs room to say how a run ended.
ROOM_BYTES = 100_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What the user wants run. `script` is a path on this computer."""

    script: Path
    arguments: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None


@dataclass(frozen=True)
class Prepared:
    """A job whose every input was checked, before anything was launched for it."""

    job: Job
    shipment: Shipment
    environment: Environment
    settings: Settings
    code_digest: str
    search_path: tuple[str, ...] = ()  # folders below the root, beside the script's own, that its modules come from


def prepare(job: Job, settings: Settings, ledger: Ledger, architecture: str, observe: Observer) -> Prepared:
    """Check the script, find its files and its environment. Raises UsageError for what cannot work on a unit."""
    from cloudrun.provisioning.environment import environment_for

    goods = inspect(job, settings, ledger, observe)
    environment = environment_for(
        goods.root / goods.script, goods.root, architecture=architecture, cache_dir=ledger.home / "cache"
    )
    digest, search_path = _local_code(goods)
    return Prepared(job, goods, environment, settings, digest, search_path)


def _local_code(goods: Shipment) -> tuple[str, tuple[str, ...]]:
    """The digest of the script and the local modules it can import (not of the whole tree: a note beside them changes
    nothing), and the folders of the project that they are imported from."""

    def read(path: str) -> bytes | None:
        file = goods.root / path
        return file.read_bytes() if file.is_file() else None

    scan = scan_imports(goods.script, read)
    return code_digest({path: read(path) or b"" for path in scan.local_files}), scan.search_path


def inspect(job: Job, settings: Settings, ledger: Ledger, observe: Observer) -> Shipment:
    """The part of `prepare` that needs nothing but the disk."""
    _checked_params(job.params)
    _checked_room(ledger)
    goods = shipment(job.script, warn_bytes=settings.ship_warn_bytes, refuse_bytes=settings.ship_refuse_bytes)
    for path, why in goods.left_out:
        observe(Note(f"{path!r} is not shipped: {why}" if path else why, "warning"))
    return goods


def _checked_params(params: Mapping[str, Any]) -> None:
    for name in params:
        if not name or name.startswith("-") or "=" in name or any(letter.isspace() for letter in name):
            raise UsageError(f"{name!r} cannot be a parameter's name", next_step="use letters, digits and _: alpha=0.1")
    try:
        json.dumps(dict(params))
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"the parameters are not JSON: {error}", next_step="use numbers, strings, lists and dicts"
        ) from error


def _checked_room(ledger: Ledger) -> None:
    _ = ledger.ledger_id  # makes the ledger, or says why it cannot be made
    free = shutil.disk_usage(ledger.project).free
    if free < ROOM_BYTES:
        raise UsageError(
            f"only {size_text(free)} are free under {ledger.project}, and results need some {size_text(ROOM_BYTES)}",
            next_step="free some space, then submit again",
        )


def command_line(plan: Prepared) -> list[str]:
    """What the unit runs: the environment's Python, the script, `--name value` for each parameter, the arguments."""
    script = posixpath.relpath(plan.shipment.script, plan.shipment.cwd)
    words = [rundir.env_python(plan.environment.fingerprint), script]
    for name, value in plan.job.params.items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return words + list(plan.job.arguments)


def job_environment(plan: Prepared, run_id: str) -> dict[str, str]:
    """The variables a job finds beside the machine's own."""
    variables = {"CLOUDRUN_PARAMS": json.dumps(dict(plan.job.params)), "CLOUDRUN_RUN_ID": run_id}
    if plan.search_path:
        # Relative to where the job starts; Python makes them absolute before the script's first line.
        folders = [posixpath.relpath(folder or ".", plan.shipment.cwd) for folder in plan.search_path]
        variables["PYTHONPATH"] = ":".join(folders)
    return variables


def execute(unit: OpenUnit, plan: Prepared, *, check: bool = True) -> Run:
    """Run it. Returns when everything is home and recorded; raises JobFailed (with `.run`) where `check` is true.

    Whatever interrupts this (Ctrl-C, SIGTERM, the deadline), the job is ended, what it wrote is brought home where the
    unit still answers, and the run says how far it came, before the interruption goes on its way.
    """
    unit.check_cancelled()
    execution = None
    unit.busy = True
    try:
        with LIFELINE.shield():
            execution = _begin(unit, plan)
        execution.go()
    except BaseException as error:
        if execution is not None:
            with LIFELINE.shield(drop=True):
                execution.rescue(error)
        raise
    finally:
        unit.busy = False
    run = unit.ledger.get(execution.run.run_id)
    if check and run.state is not RunState.SUCCEEDED:
        raise job_failed(run)
    return run


def _begin(unit: OpenUnit, plan: Prepared) -> Execution:
    """Write down the run and its attempt on this unit."""
    run_id = new_id("r")
    ledger = unit.ledger
    ledger.add_run(
        RunRecord(
            run_id=run_id,
            name=plan.job.name or Path(plan.shipment.script).stem,
            script=plan.shipment.script,
            state=RunState.QUEUED,
            created_at=unit.clock.now(),
            arguments=plan.job.arguments,
            params=dict(plan.job.params),
            metric=plan.settings.metric,
            minimize=plan.settings.minimize,
            code_digest=plan.code_digest,
            environment_digest=plan.environment.fingerprint,
        )
    )
    attempt = ledger.begin_attempt(run_id, unit.instance_id, unit.clock.now())
    unit.run_ids.append(run_id)
    return Execution(unit, plan, ledger.run(run_id), attempt.number)


def job_failed(run: Run) -> JobFailed:
    """The error for a run whose job did not end well; `error.run` is the run."""
    return JobFailed(
        f"{run.record.script} failed: {run.record.detail}", run=run, next_step=f"cloudrun show {run.run_id} --log"
    )


class Execution:
    """One attempt under way. Split from `execute` so that a rescue knows how far it came."""

    def __init__(self, unit: OpenUnit, plan: Prepared, run: RunRecord, number: int) -> None:
        self.unit = unit
        self.plan = plan
        self.run = run
        self.number = number
        self.place = rundir.run_dir(run.run_id, number)
        # Launch and boot count for the run they were done for, the first.
        self.phases = unit.phases if unit.run_ids == [run.run_id] else Phases(unit.observe, unit.clock)
        self.home = Homecoming(
            unit.ledger,
            run,
            self.place,
            self.phases,
            unit.observe,
            unit.clock,
            unit.settings.output_max_bytes,
            unit.settings.output_max_files,
        )
        self.folder = unit.ledger.home / "runs" / f"{run.run_id}.{number}"
        self.printed = Printed(self.folder, unit.observe)
        self.provision_log: Path | None = None
        self.started = False

    def go(self) -> None:
        self._provision()
        self._ship()
        status = self._follow()
        self._despite_cuts(lambda: self.home.bring(self.unit.agent, status, logs=self._logs()))
        self.printed.discard()

    def _provision(self) -> None:
        unit, environment = self.unit, self.plan.environment
        if unit.agent.has_environment(environment.fingerprint):
            return
        from cloudrun.provisioning.playbook import provision

        with self.phases.phase("provision", f"Python {environment.python}, {environment.source}"):
            try:
                self.provision_log = provision(
                    unit.target(),
                    environment,
                    private_dir=self.folder,
                    timeout_s=unit.settings.provision_timeout_s,
                    on_line=lambda line: unit.observe(Note(line, "verbose")),
                    cancelled=unit.stop,
                )
            except ProvisionError as error:
                self.provision_log = error.log_path
                raise

    def _ship(self) -> None:
        unit, goods = self.unit, self.plan.shipment
        with self.phases.phase("ship", f"{len(goods.entries)} files, {goods.total_bytes:,} bytes"):
            unit.agent.ship(
                self.place,
                goods.root,
                goods.entries,
                lambda done, total: unit.observe(Progress("ship", done, total)),
            )

    def _follow(self) -> JobStatus:
        unit, settings = self.unit, self.unit.settings
        spec = rundir.spec(
            run_id=self.run.run_id,
            attempt=self.number,
            argv=command_line(self.plan),
            cwd=self.plan.shipment.cwd,
            env=job_environment(self.plan, self.run.run_id),
            output_max_bytes=settings.output_max_bytes,
            output_max_files=settings.output_max_files,
            grace_s=settings.grace_s,
        )
        with self.phases.phase("run", " ".join(spec["argv"][1:])), self._in_time():
            unit.check_cancelled()
            self.started = True
            unit.agent.start(self.place, spec)
            unit.ledger.move_run(self.run.run_id, RunState.RUNNING)
            return self._despite_cuts(
                lambda: unit.agent.follow(self.place, self.printed, offsets=self.printed.offsets, cancelled=unit.stop)
            )

    def _despite_cuts(self, act: Callable[[], T]) -> T:
        """Do it, over a new connection where the old one is lost: the job does not depend on either."""
        unit = self.unit
        while True:
            try:
                return act()
            except ConnectionLost as lost:
                if unit.stop.is_set():
                    raise
                unit.observe(Note("the connection is lost; the job goes on, connecting again", "warning"))
                try:
                    unit.reconnect()
                except CloudrunError as failure:
                    raise lost from failure

    def _logs(self) -> dict[str, Path]:
        """Logs that are on this computer already, by name. The unit's own take their place where they come home."""
        logs = dict(self.printed.logs())
        if self.provision_log is not None and self.provision_log.exists():
            logs["provision.log"] = self.provision_log
        return logs

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Stop following a little before the unit's deadline, and say so rather than that the machine vanished."""
        unit = self.unit
        left_s = (unit.record.deadline - unit.clock.now()).total_seconds()
        timer = Timer(max(0.0, left_s - min(HOMEWARD_S, left_s / 10)), unit.stop.set)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (Cancelled, ConnectionLost) as error:
            if timer.finished.is_set() and not unit.cancelled.is_set():
                raise DeadlineReached(
                    f"{unit.instance_id} reached its deadline of {unit.record.deadline:%H:%M:%S} UTC",
                    next_step="submit again with a later --deadline",
                ) from error
            raise
        finally:
            timer.cancel()

    def rescue(self, error: BaseException) -> None:
        """Bring home what there is and record the end; failing at it is a note on `error`, which goes on its way."""
        unit, ending = self.unit, interruption(error, started=self.started)
        if isinstance(error, LedgerError | TransferError) and self._can_be_pulled_later(error):
            return
        try:
            if self.started and not unit.hurried.is_set():
                if not unit.session.is_alive:
                    unit.reconnect()
                status = unit.agent.cancel(self.place, unit.settings.grace_s)
                # A job that had ended by itself is what it was, whatever happened on its way home.
                forced = ending if status.reason else None
                self.home.bring(unit.agent, status, forced, logs=self._logs())
                self.printed.discard()
                state = unit.ledger.run(self.run.run_id).state
                error.add_note(f"{self.run.run_id} is recorded as {state}; what it had written is home")
                return
        except Exception as failure:  # noqa: BLE001 - whatever it is, it must not take the place of the first cause
            error.add_note(f"what the run had written could not be brought home: {failure}")
            if isinstance(failure, LedgerError | TransferError) and self._can_be_pulled_later(failure):
                error.add_note(f"next: {failure.next_step}")
                mark_incomplete(error)
                return
        try:
            self.home.end(ending, logs=self._logs())
            self.printed.discard()
            error.add_note(f"{self.run.run_id} is recorded as {ending.state}")
        except Exception as failure:  # noqa: BLE001
            error.add_note(f"the run's end could not be recorded: {failure}")

    def _can_be_pulled_later(self, error: LedgerError | TransferError) -> bool:
        """The work is done and does not fit, or did not arrive: the unit keeps it until its deadline."""
        unit, run_id = self.unit, self.run.run_id
        if isinstance(error, ManifestRefused):
            return False
        try:
            if unit.ledger.run(run_id).state is not RunState.PULLING:
                return False
            unit.ledger.move_run(run_id, RunState.PULL_PENDING, detail=str(error))
        except CloudrunError:
            pass  # the ledger cannot even write that; the unit is kept all the same
        unit.keep_until_deadline = True
        error.next_step = f"{error.next_step + ', then: ' if error.next_step else ''}cloudrun pull {run_id}"
        error.add_note(f"{unit.instance_id} keeps the outputs until {unit.record.deadline:%Y-%m-%d %H:%M} UTC")
        mark_incomplete(error)  # it is billing until then
        return True
