"""One script to its end, on as many machines as that takes: what `cloudrun submit` does."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cloudrun import wiring
from cloudrun.core.errors import UsageError, before_launch
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger, Run
from cloudrun.runs import bucket, datasets, prepared, provenance
from cloudrun.runs.machine import Machine
from cloudrun.runs.prepared import Job, Prepared
from cloudrun.units import launching
from cloudrun.units.connection import EarlyLogin, early_login
from cloudrun.units.joining import unit_to_join
from cloudrun.units.opening import open_unit
from cloudrun.units.purse import Purse
from cloudrun.wiring import Cloud

__all__ = ["Job", "resume", "submit"]


def submit(
    job: Job,
    settings: Settings,
    *,
    ledger: Ledger,
    observe: Observer,
    detach: bool = False,
    instance_id: str | None = None,
    early: EarlyLogin | None = None,
) -> Run:
    """Run `job` on a unit of its own, or on the kept one that `instance_id` names. Returns its run, also a failed one;
    everything else that goes wrong raises.

    Nothing is launched before the script, its parameters, its environment, its data, the region and the type have been
    checked. With `detach` it returns as soon as the job runs; the unit is left to it. `early` is a login to that unit
    which has begun already.
    """
    with ExitStack() as stack:
        with before_launch(instance_id):
            if instance_id is not None and (early := early or early_login(ledger, instance_id)) is not None:
                stack.enter_context(early)
            cloud, image, plan = checked(job, settings, ledger, observe, instance_id)
            provenance.keep(plan, ledger)
        purse = Purse(ledger)
        machine = Machine(
            lambda: open_unit(
                cloud, ledger, settings, observe, image=image, instance_id=instance_id, early=early, purse=purse
            ),
            lambda: open_unit(cloud, ledger, settings, observe, image=None if instance_id else image, purse=purse),
        )
        stack.enter_context(machine)
        run = machine.carry_through(plan, detach=detach)
    return ledger.get(run.run_id)  # how long the machine took to go is known only now


def resume(run_id: str, settings: Settings, *, ledger: Ledger, observe: Observer, detach: bool = False) -> Run:
    """Go on with a run whose machine was taken back, with what its last attempt had saved, on a new machine.

    The code is what the project holds now; where it is other code than the run's, that is said.
    """
    record = ledger.run(run_id)
    root = Path(record.submission.get("root", ledger.project))
    job = Job(root / record.script, record.arguments, dict(record.params), record.name, root / record.cwd)
    settings = replace(settings, metric=record.metric, minimize=record.minimize)
    cloud, image, plan = checked(job, settings, ledger, observe)
    if plan.code_digest != record.code_digest:
        observe(Note(f"{record.script} is not what it was when {run_id} was submitted: it goes on as it is", "warning"))
    if datasets.digest(plan.data) != record.data_digest:
        observe(
            Note(f"its data is not what it was when {run_id} was submitted: it goes on with what is there", "warning")
        )

    purse = Purse(ledger, run_id)
    machine = Machine(lambda: open_unit(cloud, ledger, settings, observe, image=image, purse=purse))
    with machine:
        run = machine.carry_through(plan, run_id, detach=detach)
    return ledger.get(run.run_id)


def checked(
    job: Job,
    settings: Settings,
    ledger: Ledger,
    observe: Observer,
    instance_id: str | None = None,
) -> tuple[Cloud, Image, Prepared]:
    """All that can be wrong with a job, looked at before anything is launched; a bucket that it needs is made. Raises
    UsageError, CredentialsError."""
    goods = prepared.inspect(job, settings, ledger, observe)
    cloud, image = where_to(settings, ledger, observe, instance_id)
    plan = prepared.prepare(job, settings, ledger, image.architecture, observe, goods)
    return cloud, image, with_data(plan, cloud, observe)


def where_to(
    settings: Settings, ledger: Ledger, observe: Observer, instance_id: str | None = None
) -> tuple[Cloud, Image]:
    """The place, and what a machine there is booted from. Raises UsageError, CredentialsError."""
    if instance_id is None:
        cloud = wiring.connect(settings.provider, settings.region, settings.profile, lambda words: observe(Note(words)))
        return cloud, launching.find_image(cloud, settings)
    cloud = place_of(ledger, instance_id, settings.profile)
    return cloud, launching.image_of(cloud, ledger, ledger.unit(instance_id))


def place_of(ledger: Ledger, instance_id: str, profile: str | None) -> Cloud:
    """The adapters for where a unit of this ledger is. Raises NotFound, UsageError where its sandbox has ended."""
    cloud = wiring.reconnect(unit_to_join(ledger, instance_id).place, profile)
    if cloud is None:
        raise UsageError(f"{instance_id} went away with its sandbox", next_step="cloudrun reap")
    return cloud


def with_data(plan: Prepared, cloud: Cloud, observe: Observer, *, make: bool = True) -> Prepared:
    """The plan with its data sets found, and (`make`) its bucket there. Raises UsageError, CredentialsError."""
    settings = plan.settings
    if settings.bucket and make:
        bucket.check(cloud, settings.bucket, settings.deadline_s, observe)
    if not settings.data:
        return plan
    data = datasets.resolve(settings.data, plan.shipment, cloud)
    return replace(plan, data=data, shipment=datasets.without(plan.shipment, data))
