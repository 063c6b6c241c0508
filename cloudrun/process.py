"""`process_unit`: a rented machine as a `with` block, and what can be done with it in there."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from os import PathLike, fspath
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from cloudrun import config, notebook, wiring
from cloudrun.core.errors import UsageError
from cloudrun.core.events import Event, Note, Observer, Output
from cloudrun.core.records import CommandResult, OnExit
from cloudrun.ledger import Ledger, Run
from cloudrun.runs import prepared, provenance
from cloudrun.runs.doubts import check_names
from cloudrun.runs.machine import Machine
from cloudrun.runs.submit import place_of, with_data
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.opening import open_unit
from cloudrun.units.purse import Purse
from cloudrun.units.unit import OpenUnit

Data = str | PathLike[str] | Sequence[str | PathLike[str]]


class Unit:
    """One open machine, for the thread that opened it."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._turn = Lock()  # one job at a time, whether sent or submitted
        self._submitted: list[Future[Run]] = []
        self._queue = ThreadPoolExecutor(1, thread_name_prefix="cloudrun-submit")  # starts no thread before it is used

    @property
    def _unit(self) -> OpenUnit:
        return self._machine.unit  # another one after the provider took the first one back

    def __repr__(self) -> str:
        return f"<Unit {self.instance_id} {self.instance_type} in {self._unit.record.place.region}>"

    @property
    def instance_id(self) -> str:
        return self._unit.record.instance_id

    @property
    def instance_type(self) -> str:
        return self._unit.record.instance_type

    @property
    def deadline(self) -> datetime:
        """When the machine powers itself off, whatever happens (UTC)."""
        return self._unit.record.deadline

    def send_run(
        self,
        script: str | Path,
        *arguments: str,
        params: Mapping[str, Any] | None = None,
        name: str | None = None,
        metric: str | None = None,
        minimize: bool | None = None,
        data: Data | None = None,
        wall_time: float | str | None = None,
        memory: int | str | None = None,
        disk: int | str | None = None,
        grace: float | str | None = None,
        fresh: bool | None = None,
        bucket: str | None = None,
        check: bool = True,
        **unknown: Any,
    ) -> Run:
        """Ship a script's project, run it and bring everything home. Blocks until then.

        `params` arrive as `--name value` arguments and as JSON in `CLOUDRUN_PARAMS`. What follows them are the settings
        of the block, for this run only; durations are seconds or text such as "90m", sizes bytes or text such as "6GB".

        Raises JobFailed (with the run as `error.run`) where the script failed, unless `check` is false; UsageError for
        a script that cannot be run, a keyword that is none of these, or a `metric` that is next to certainly mistyped.
        """
        unit = self._unit
        if unknown:
            raise _no_keyword(next(iter(unknown)))
        if not isinstance(params or {}, Mapping):
            raise UsageError(f"params is a {type(params).__name__}", next_step='write params={"alpha": 0.1}')
        job = prepared.Job(Path(script), tuple(arguments), dict(params or {}), name)
        given = {
            "metric": metric,
            "minimize": minimize,
            "data": data,
            "wall_time": wall_time,
            "memory": memory,
            "disk": disk,
            "grace": grace,
            "fresh": fresh,
            "bucket": bucket,
        }
        settings = config.changed(unit.settings, given_keywords(given))
        set_in = "" if metric is not None else "metric"
        check_names(job.script, (), settings.metric, unit.ledger, unit.observe, metric_set_in=set_in, is_keyword=True)
        plan = prepared.prepare(job, settings, unit.ledger, unit.image.architecture, unit.observe)
        plan = with_data(plan, unit.cloud, unit.observe)
        provenance.keep(plan, unit.ledger)
        with self._turn:
            return self._machine.carry_through(plan, check=check)

    def submit(self, script: str | Path, *arguments: str, **keywords: Any) -> Future[Run]:
        """The same as `send_run`, without blocking: scripts run one after the other, in the order of submission.

        The block waits for them at its end; an exception in the block cancels those that have not started.
        """
        future = self._queue.submit(self.send_run, script, *arguments, **keywords)
        self._submitted.append(future)
        return future

    def _finish_queue(self, *, cancel: bool) -> None:
        if cancel:
            self._machine.cancel()
            for future in self._submitted:
                future.cancel()
        self._queue.shutdown(wait=False)
        # Not the executor's own waiting: a signal that interrupts `Thread.join` makes Python take the thread for ended.
        # And not for those that were cancelled: nobody would say that they are done.
        wait([future for future in self._submitted if not future.cancelled()])

    def run(self, command: str | Sequence[str], *, timeout_s: float = 3600.0) -> CommandResult:
        """Run a shell command (or the words of one, quoted for it) on the unit, in the login user's home."""
        text = command if isinstance(command, str) else shlex.join(command)
        return self._unit.session.run(text, timeout_s=timeout_s)

    def put(self, local: str | Path, remote: str) -> None:
        """Copy a file or folder to the unit; `remote` is relative to the login user's home."""
        self._unit.session.put(Path(local), remote)

    def get(self, remote: str, local: str | Path) -> None:
        """Copy a file or folder from the unit."""
        self._unit.session.get(remote, Path(local))


class process_unit:  # noqa: N801 - used like a function: `with process_unit() as unit`
    """Rent one machine for the length of a `with` block.

    Keywords override what `cloudrun.toml` and `CLOUDRUN_*` say; the same names mean the same in all three. Durations
    are seconds or text such as "4h". `instance_id` joins a unit that was kept or stopped instead of launching one.
    `observe` is called with `cloudrun.core.events`; by default the job's output goes to `sys.stdout` and `sys.stderr`,
    and in a notebook one line says what the machine does.

    Whatever ends the block (its last line, an exception, Ctrl-C, SIGTERM) ends the machine, and surfaces unchanged.
    Raises UsageError before anything is launched, CredentialsError, CapacityError, LaunchError, CleanupIncomplete.
    """

    def __init__(
        self,
        *,
        provider: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        instance_type: str | None = None,
        image: str | None = None,
        spot: bool | None = None,
        deadline: float | str | None = None,
        on_exit: OnExit | None = None,
        instance_id: str | None = None,
        project: str | Path | None = None,
        observe: Observer | None = None,
        **settings: Any,
    ) -> None:
        given = {
            "provider": provider,
            "region": region,
            "profile": profile,
            "instance_type": instance_type,
            "image": image,
            "spot": spot,
            "deadline": deadline,
            "on_exit": on_exit,
            **settings,
        }
        self._given = given_keywords(given)
        self._instance_id = instance_id
        self._project = project
        self._observe = observe
        self._machine: Machine | None = None
        self._unit: Unit | None = None

    def __enter__(self) -> Unit:
        ledger = Ledger(self._project)
        settings = config.load(ledger.project, self._given, origin="keyword")
        observe = self._observe or (notebook.Watcher() if notebook.in_notebook() else write_output)
        if self._instance_id is not None:
            cloud = place_of(ledger, self._instance_id, settings.profile)
        else:
            cloud = wiring.connect(  # a warning is what the usual observer shows: it takes long
                settings.provider, settings.region, settings.profile, lambda words: observe(Note(words, "warning"))
            )
        purse = Purse(ledger)
        self._machine = Machine(
            lambda: open_unit(cloud, ledger, settings, observe, instance_id=self._instance_id, purse=purse),
            lambda: open_unit(cloud, ledger, settings, observe, purse=purse),
        )
        self._unit = Unit(self._machine.__enter__())
        return self._unit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._machine is None or self._unit is None:
            return
        try:
            self._unit._finish_queue(cancel=error is not None)  # noqa: SLF001 - the other half of this module's Unit
        except BaseException as interruption:
            with LIFELINE.shield(drop=True):
                self._unit._finish_queue(cancel=True)  # noqa: SLF001 - what is under way brings home what it has
            self._machine.__exit__(type(interruption), interruption, None)
            raise
        self._machine.__exit__(kind, error, trace)


def given_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given; a single path of data as a list of one."""
    given = {name: value for name, value in keywords.items() if value is not None}
    data = given.get("data")
    if isinstance(data, str | PathLike):
        given["data"] = [fspath(data)]
    elif isinstance(data, list | tuple):
        given["data"] = [fspath(each) if isinstance(each, PathLike) else each for each in data]
    return given


def _no_keyword(name: str) -> UsageError:
    if config.is_setting(name):
        return UsageError(
            f"{name} is a setting of the machine, not of one run", next_step=f"write process_unit({name}=...)"
        )
    return UsageError(f"send_run has no keyword {name}", next_step="help(unit.send_run) lists them")


def write_output(event: Event) -> None:
    """The observer of a plain script: the job's output, as it comes, and warnings."""
    if isinstance(event, Output):
        stream = sys.stdout if event.stream == "stdout" else sys.stderr
        stream.write(event.data.decode(errors="replace"))
        stream.flush()
    elif isinstance(event, Note) and event.level == "warning":
        print(f"cloudrun: {event.text}", file=sys.stderr)
