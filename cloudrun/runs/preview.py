"""What a submission would do, found out without doing any of it: EC2 is asked only what it has and what it says."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from cloudrun import prices, wiring
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError, CredentialsError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import DataSet, Environment, FileEntry, Image
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.pricing import architecture
from cloudrun.runs import prepared
from cloudrun.runs.prepared import Job, Prepared, command_line
from cloudrun.runs.project import Shipment
from cloudrun.runs.submit import where_to, with_data
from cloudrun.units.beforehand import check_budget, say_beforehand, say_what_differs
from cloudrun.wiring import Cloud

LARGEST = 5


@dataclass(frozen=True)
class Rent:
    """What one machine of a type costs. `usd_per_hour` is what is counted with, on demand or the most that a spot
    machine may cost; None where nobody knows. `spot_usd`: the market's price by zone now. `as_of`: of the list."""

    instance_type: str
    zones: tuple[str, ...]
    usd_per_hour: float | None
    as_of: date | None
    spot_usd: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Preview:
    """`rents` are the types in the order in which EC2 would be asked for them, none where a kept machine is used
    (`instance_id`). `most_usd` is what one machine of the dearest may cost until its deadline.

    `problem`: why AWS could not be asked. Then nobody knows the image and the zones, nor what S3 has of the data;
    prices are those known here, and the environment is for the architecture that the type's name tells.
    """

    provider: str
    region: str
    instance_id: str | None
    image: Image | None
    rents: tuple[Rent, ...]
    settings: Settings
    plan: Prepared
    environment_known: bool
    bucket_is_there: bool | None  # None: none is used
    price_problem: str = ""
    problem: CredentialsError | None = None

    @property
    def most_usd(self) -> float | None:
        known = [rent.usd_per_hour for rent in self.rents]
        if not known or None in known:
            return None
        return max(budget.least_usd(usd or 0.0, self.settings.deadline_s) for usd in known)

    @property
    def largest(self) -> list[FileEntry]:
        return heapq.nlargest(LARGEST, self.plan.shipment.entries, key=lambda entry: entry.size)


def preview(
    job: Job,
    settings: Settings,
    *,
    ledger: Ledger,
    observe: Observer,
    instance_id: str | None = None,
    whole: bool = True,
) -> Preview:
    """All that `submit` would check, and what it would do then. Raises what `submit` raises before it launches; without
    credentials it is what can be said without them.

    `whole`: it is all of a submission, and not a cell of a grid, whose budget is the grid's. The ledger's folder is
    made where it is missing, and remembers the environment that was found.
    """
    goods = prepared.inspect(job, settings, ledger, observe)
    types = () if instance_id else tuple(dict.fromkeys((settings.instance_type, *settings.fallback_types)))
    try:
        cloud, image = where_to(settings, ledger, observe, instance_id)
    except CredentialsError as error:
        return _without_aws(job, settings, ledger, observe, instance_id, goods, types, error, whole=whole)
    plan = with_data(
        prepared.prepare(job, settings, ledger, image.architecture, observe, goods), cloud, observe, make=False
    )
    problem = prices.refresh(cloud, types, SystemClock().now())
    if problem:
        observe(Note(f"AWS's price list was not to be had, so the snapshot's prices hold: {problem}"))
    say_beforehand(cloud, settings, SystemClock().now(), observe)
    say_what_differs(cloud, settings, image, observe)
    if whole and instance_id is None:
        check_budget(settings, cloud.place.region)
    return Preview(
        provider=cloud.place.provider,
        region=cloud.place.region,
        instance_id=instance_id,
        image=image,
        rents=tuple(_rent(cloud.place.region, settings, name, cloud) for name in types),
        settings=settings,
        plan=plan,
        environment_known=ledger.knows_environment(plan.environment.fingerprint),
        bucket_is_there=cloud.storage().has_bucket(settings.bucket) if settings.bucket else None,
        price_problem=problem,
    )


def _without_aws(
    job: Job,
    settings: Settings,
    ledger: Ledger,
    observe: Observer,
    instance_id: str | None,
    goods: Shipment,
    types: Sequence[str],
    problem: CredentialsError,
    *,
    whole: bool,
) -> Preview:
    """What is known here: list prices in the region that would be taken, what would be shipped and built."""
    region, notes = wiring.aws_region(settings.region, settings.profile)
    if instance_id is not None:
        region, notes = ledger.unit(instance_id).place.region, ()
    for note in notes:
        observe(Note(note))
    rents = tuple(_rent(region, settings, name) for name in types)
    if whole and rents and all(rent.usd_per_hour is not None for rent in rents):
        check_budget(settings, region)
    plan = prepared.prepare(job, settings, ledger, architecture(settings.instance_type), observe, goods)
    known = ledger.knows_environment(plan.environment.fingerprint)
    return Preview(settings.provider, region, instance_id, None, rents, settings, plan, known, None, problem=problem)


def _rent(region: str, settings: Settings, instance_type: str, cloud: Cloud | None = None) -> Rent:
    """Without a `cloud` nobody is asked: zones and the spot market are not known then."""
    listed = prices.usd_per_hour(instance_type, region)
    usd = listed.usd_per_hour if listed else None
    if settings.spot and settings.max_price is not None:
        usd = settings.max_price
    spot = _spot(cloud, instance_type) if settings.spot and cloud else {}
    zones = (settings.zone,) if settings.zone else tuple(cloud.instances.zones(instance_type)) if cloud else ()
    return Rent(instance_type, zones, usd, listed.as_of if listed else None, spot)


def _spot(cloud: Cloud, instance_type: str) -> Mapping[str, float]:
    """What is only good to know: where it cannot be had, the list price says enough."""
    try:
        return cloud.prices().spot(instance_type) if cloud.prices else {}
    except CloudrunError:
        return {}


def document(seen: Preview) -> dict[str, Any]:
    """For programs. `problem`: why what is null or empty under `launch` is not known. `largest` and `requirements` as
    they would travel; sizes in bytes, durations in seconds."""
    goods, environment = seen.plan.shipment, seen.plan.environment
    return {
        "dry_run": True,
        "problem": str(seen.problem) if seen.problem else None,
        "launch": {
            "provider": seen.provider,
            "region": seen.region,
            "instance_id": seen.instance_id,
            "types": [_rent_document(rent) for rent in seen.rents],
            "spot": seen.settings.spot,
            "image": _image_document(seen.image, seen.settings) if seen.image else None,
            "volume_gib": max(seen.settings.volume_gib, seen.image.root_gib if seen.image else 0),
            "apt": list(seen.settings.apt),
            "playbook": seen.settings.playbook,
            "deadline_s": seen.settings.deadline_s,
            "most_usd": seen.most_usd,
            "price_problem": seen.price_problem or None,
        },
        "ship": {
            "root": str(goods.root),
            "cwd": goods.cwd,
            "script": goods.script,
            "files": len(goods.entries),
            "bytes": goods.total_bytes,
            "largest": [{"path": entry.path, "size": entry.size} for entry in seen.largest],
            "left_out": [{"path": path, "why": why} for path, why in goods.left_out if path],
        },
        "data": [_data_document(data) for data in seen.plan.data],
        "bucket": {"name": seen.settings.bucket, "is_there": seen.bucket_is_there} if seen.settings.bucket else None,
        "environment": _environment_document(environment, known=seen.environment_known),
        "command": command_line(seen.plan),
    }


def _image_document(image: Image, settings: Settings) -> dict[str, Any]:
    return {
        "image_id": image.image_id,
        "name": image.name,
        "architecture": image.architecture,
        "user": settings.user or image.user,
    }


def _rent_document(rent: Rent) -> dict[str, Any]:
    return {
        "instance_type": rent.instance_type,
        "zones": list(rent.zones),
        "usd_per_hour": rent.usd_per_hour,
        "price_as_of": str(rent.as_of) if rent.as_of else None,
        "spot_usd_per_hour": dict(rent.spot_usd),
    }


def _data_document(data: DataSet) -> dict[str, Any]:
    files = len(data.remote) + len(data.entries)
    return {"source": data.source, "path": data.link, "files": files, "bytes": data.total_bytes}


def _environment_document(environment: Environment, *, known: bool) -> dict[str, Any]:
    return {
        "python": environment.python,
        "source": environment.source,
        "fingerprint": environment.fingerprint,
        "requirements": list(environment.requirements),
        "known": known,
    }
