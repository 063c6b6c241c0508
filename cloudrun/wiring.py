"""The composition root: settings in, adapters out, one set for each (provider, region)."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, cast

from cloudrun.core.errors import CredentialsError, UsageError
from cloudrun.core.records import Image, Place
from cloudrun.core.settings import Settings

if TYPE_CHECKING:
    from cloudrun.aws.account import Account
    from cloudrun.aws.images import Images
    from cloudrun.aws.instances import Instances
    from cloudrun.aws.network import Network
    from cloudrun.aws.prices import Prices
    from cloudrun.aws.session import Aws
    from cloudrun.aws.storage import Storage
    from cloudrun.sandbox import client


@dataclass(frozen=True)
class Cloud:
    """The adapters for one place. `caller_cidr` tells from where SSH is let in; `exists` is false where the place has
    gone with all that was in it; `credentials_expire_at` is None for those that do not; `prices` is None where there is
    no price list. `refuses`: settings that it cannot honour, and why; `differs` tells in a sentence what of them will
    not be as it was asked for."""

    place: Place
    instances: Instances
    images: Images
    network: Network
    caller_cidr: Callable[[], str]
    storage: Callable[[], Storage]
    credentials_expire_at: Callable[[], datetime | None]
    exists: Callable[[], bool] = lambda: True
    notes: tuple[str, ...] = ()
    prices: Callable[[], Prices] | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    differs: Callable[[Settings, Image], str] = lambda _settings, _image: ""


def connect(
    provider: str,
    region: str | None = None,
    profile: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Cloud:
    """The place that settings name; a sandbox is started where none runs, and `say` told so.

    Raises UsageError (unknown provider or region), CredentialsError, SandboxError.
    """
    if provider == "sandbox":
        from cloudrun.sandbox import client

        return _sandbox(client.ensure(say=say), region)
    if provider == "aws":
        return _aws(region, profile)
    raise UsageError(f"there is no provider {provider!r}", next_step="use sandbox or aws")


def account(region: str | None, profile: str | None) -> Account:
    """The AWS account that settings name, to be looked at. No request is made yet; raises as `connect` does."""
    from cloudrun.aws.account import Account
    from cloudrun.aws.session import connect as aws_connect

    return Account(aws_connect(region=region, profile=profile))


def aws_region(region: str | None, profile: str | None) -> tuple[str, tuple[str, ...]]:
    """The region of AWS that settings name, and what is to be said of it; needs no credentials. Raises UsageError."""
    from cloudrun.aws.session import region_of

    name, guessed = region_of(region, profile)
    return name, _guess(name) if guessed else ()


def _guess(region: str) -> tuple[str, ...]:
    return (f"no region is set anywhere: using {region}",)


def sandbox_machines() -> tuple[str, tuple[str, ...]]:
    """What machines of a sandbox would be on this computer ("namespaces", "plain"), and what is weaker then."""
    from cloudrun.sandbox import machine

    driver = machine.driver()
    return driver, machine.weaker(driver)


def reconnect(place: Place, profile: str | None = None) -> Cloud | None:
    """The place a unit was launched in; None where it has gone with all that was in it (a sandbox that ended).

    Raises CredentialsError for those of another account: there every machine would look gone.
    """
    if place.provider != "sandbox":
        cloud = connect(place.provider, place.region, profile)
        if cloud.place != place:
            raise CredentialsError(
                f"the machines are in the AWS account {place.generation}, these credentials are of"
                f" {cloud.place.generation}",
                next_step="name the profile they were launched with: --profile NAME, or AWS_PROFILE",
            )
        return cloud
    from cloudrun.sandbox import client

    region = client.current()
    return _sandbox(region, place.region) if region and region.generation == place.generation else None


def _sandbox(region: client.Region, wanted: str | None) -> Cloud:
    from cloudrun.sandbox.shortcomings import REFUSED, differs

    if wanted is not None and wanted != region.region:
        raise UsageError(
            f"the sandbox is one region, {region.region}, not {wanted}",
            next_step="leave out --region, or add --provider aws",
        )

    def aws() -> Aws:
        from cloudrun.aws.session import connect as aws_connect

        return aws_connect(
            region=region.region,
            endpoint_url=region.endpoint_url,
            access_key=region.access_key,
            secret_key=region.secret_key,
        )

    place = Place("sandbox", region.region, region.generation)
    notes: tuple[str, ...] = ()
    if region.driver == "plain":
        notes = (
            "this system has no user namespaces: machines are plain processes; sandbox status says what is weaker",
        )

    def exists() -> bool:
        from cloudrun.sandbox import client

        now = client.current()
        return now is not None and now.generation == region.generation

    booted = region.driver == "nspawn"
    cloud = _bundle(aws, place, lambda: "127.0.0.1/32", notes)
    return replace(
        cloud,
        exists=exists,
        credentials_expire_at=lambda: None,
        refuses=REFUSED,
        differs=partial(differs, booted=booted),
    )


def _aws(region: str | None, profile: str | None) -> Cloud:
    from cloudrun.aws.session import connect as aws_connect

    aws = aws_connect(region=region, profile=profile)
    account = aws.account_id()  # credentials that do not work are told now, before anything else is asked
    notes = _guess(aws.region) if aws.region_guessed else ()
    for variable in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_EC2"):
        if url := os.environ.get(variable):
            notes += (f"{variable} is set: this is not AWS but {url}",)
    if "https" in urllib.request.getproxies():
        notes += (
            "HTTPS_PROXY is set: machines let in the address that AWS sees; if SSH leaves by another, say --ssh-from",
        )
    cloud = _bundle(lambda: aws, Place("aws", aws.region, account), None, notes)

    def prices() -> Prices:
        from cloudrun.aws.prices import Prices

        return Prices(aws)

    return replace(cloud, prices=prices)


def _bundle(
    connect_aws: Callable[[], Aws], place: Place, caller_cidr: Callable[[], str] | None, notes: tuple[str, ...] = ()
) -> Cloud:
    aws = cache(connect_aws)

    def instances() -> Instances:
        from cloudrun.aws.instances import Instances

        return Instances(aws())

    def images() -> Images:
        from cloudrun.aws.images import Images

        return Images(aws())

    @cache
    def network() -> Network:
        from cloudrun.aws.network import Network

        return Network(aws())

    @cache
    def storage() -> Storage:
        from cloudrun.aws.storage import Storage

        return Storage(aws())

    return Cloud(
        place,
        cast("Instances", _Later(instances)),
        cast("Images", _Later(images)),
        cast("Network", _Later(network)),
        caller_cidr or (lambda: f"{network().caller_address()}/32"),
        storage,
        lambda: aws().credentials_expire_at(),
        notes=notes,
    )


class _Later:
    """An adapter that is made when it is first used: boto3 and a client of EC2's take longer than a whole run on a unit
    that is open, which needs neither."""

    def __init__(self, make: Callable[[], object]) -> None:
        self._make = cache(make)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._make(), name)
