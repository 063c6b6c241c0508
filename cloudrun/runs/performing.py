"""The steps of an attempt on its unit: environment, data and project there, its job begun, followed, brought home."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudrun.core import rundir
from cloudrun.core.errors import CloudrunError, ProvisionError
from cloudrun.core.events import Note, Progress
from cloudrun.core.records import FileEntry, JobStatus, System
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
from cloudrun.plan.quantities import counted
from cloudrun.runs import bucket
from cloudrun.runs.attempt import Attempt
from cloudrun.runs.furnishing import furnished
from cloudrun.runs.prepared import Prepared, job_spec
from cloudrun.runs.slots import Turn
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.phases import together

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Finished
    from cloudrun.units.unit import OpenUnit


AHEAD_BYTES = 4_000_000  # a project that is larger is shipped when its turn has come: most of it is there by then


def ship_ahead(unit: OpenUnit, plan: Prepared, run_id: str) -> str:
    """The project to where the run's next attempt will look for it, while it waits; returns that place. "" where that
    failed: whatever is wrong, the attempt is what meets it."""
    with suppress(CloudrunError):
        run = unit.ledger.run(run_id)
        small = plan.shipment.total_bytes <= AHEAD_BYTES
        if small and run.state is RunState.QUEUED and not run.attempts and unit.agent.has_room:
            place = rundir.run_dir(run_id, 1)
            unit.agent.ship(place, plan.shipment.root, plan.shipment.entries)
            unit.say_what_is_home()
            return place
    return ""


def carry_out(attempt: Attempt, plan: Prepared, turn: Turn, shipped: str) -> None:
    furnish(attempt, plan)
    finished = _perform(attempt, plan, _spec(attempt, plan), shipped)
    conclude(attempt, finished, turn)


def conclude(attempt: Attempt, finished: Finished, turn: Turn) -> None:
    """The next job does not wait until one that ended well is home. After one that did not, it is to be decided first
    whether there shall be another."""
    if finished.status.exit_code == 0 and not finished.status.reason:
        turn.end()
    attempt.conclude(finished.status, finished)


def start(attempt: Attempt, plan: Prepared) -> None:
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
            with attempt.phases.phase("ship", f"{data.source}, {counted(data.total_bytes, 'byte')}"):
                attempt.despite_cuts(partial(unit.bring_data, data, _progress(attempt)))
    unit.begins_jobs = True


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
    return f"{counted(len(plan.shipment.entries), 'file')}, {counted(plan.shipment.total_bytes, 'byte')}"


def store_of(ledger: Ledger, plan: Prepared, run_id: str, number: int) -> str:
    """Where in S3 an attempt's outputs go; "" for nowhere."""
    name = plan.settings.bucket
    return bucket.store_uri(name, ledger.ledger_id, run_id, number) if name else ""
