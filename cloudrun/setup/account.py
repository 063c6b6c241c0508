"""What cloudrun needs of an AWS account: credentials, permissions, a network to launch in, and enough of a quota."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from cloudrun import prices, wiring
from cloudrun.core.errors import CloudrunError, CredentialsError
from cloudrun.core.settings import Settings
from cloudrun.plan.quantities import duration_text
from cloudrun.setup.checks import Check, Verdict, from_error, side_by_side
from cloudrun.units.launching import find_site

if TYPE_CHECKING:
    from cloudrun.aws.account import Account
    from cloudrun.wiring import Cloud

SKEW_LIMIT_S = 300.0  # older or newer than that and AWS refuses a request ("Signature Version 4", IAM user guide)
SKEW_WARNING_S = 60.0
_SOURCES = {  # botocore's words for where keys came from
    "env": "AWS_* variables",
    "shared-credentials-file": "~/.aws/credentials",
    "config-file": "~/.aws/config",
    "sso": "IAM Identity Center (aws sso login)",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "a role assumed with a web identity",
    "iam-role": "this machine's role",
    "container-role": "this container's role",
    "custom-process": "a program named in ~/.aws/config",
    "login": "aws login",
}


def checks(settings: Settings, now: Callable[[], datetime], instance_id: str | None = None) -> list[Check]:
    """Everything, in the order in which a launch needs it; what cannot be looked at without what failed is left out.

    `instance_id`: a machine of this ledger that is alive, to try permissions on.
    """
    try:
        account = wiring.account(settings.region, settings.profile)
        first = [_credentials(account, settings, now())]
    except CloudrunError as error:
        return [from_error("credentials", error)]
    try:
        identity = account.identity()
    except CloudrunError as error:
        return [*first, *_clock(account.skew_s()), from_error("identity", error)]
    first.append(Check("identity", "ok", f"{identity.arn} (account {identity.account})"))
    first += _clock(identity.skew_s)
    first.append(_region(account))
    return first + _rest(account, settings, now, instance_id)


def _rest(account: Account, settings: Settings, now: Callable[[], datetime], instance_id: str | None) -> list[Check]:
    try:
        cloud = wiring.connect("aws", settings.region, settings.profile)
    except CloudrunError as error:
        return [from_error("region", error)]
    found: dict[str, str] = {}  # what the permissions are tried with

    def network() -> Check:
        site = find_site(cloud, settings)
        vpc_id = site.vpc_id or account.default_vpc()
        found["vpc"] = vpc_id or ""
        if vpc_id is None:
            how = f"aws ec2 create-default-vpc --region {account.region}, or name a --subnet of another VPC"
            words = f"{account.region} has no default VPC: machines have no network there"
            return Check("network", "problem", words, how)
        if not site.vpc_id:
            return Check("network", "ok", f"the default VPC, {vpc_id}")
        subnets = ", ".join(f"{subnet.subnet_id} in {subnet.zone}" for subnet in site.subnets)
        return Check("network", "ok", f"{vpc_id}: {subnets}, at {'private' if site.private else 'public'} addresses")

    def image() -> Check:
        chosen = cloud.images.find(settings.instance_type, image_id=settings.image, user=settings.user)
        found["image"] = chosen.image_id
        return Check("image", "ok", f"{chosen.image_id} ({chosen.name}, {chosen.architecture})")

    checks = side_by_side(
        [
            ("network", network),
            ("image", image),
            ("quota", lambda: _quota(account, settings)),
            ("price", lambda: _price(cloud, settings, now())),
            ("address", lambda: _address(cloud, settings)),
        ]
    )
    if found.get("vpc") and found.get("image"):
        checks += _permissions(account, settings, found["image"], found["vpc"], instance_id)
    else:
        checks.append(Check("permissions", "unknown", "they are tried once there are an image and a VPC"))
    return checks


def _credentials(account: Account, settings: Settings, now: datetime) -> Check:
    profile, source, expires_at = account.credentials()
    words = f"profile {profile}, from {_SOURCES.get(source, source)}"
    if expires_at is None:
        return Check("credentials", "ok", f"{words}; they do not expire, or nobody says when")
    left_s = (expires_at - now).total_seconds()
    words += f"; good until {expires_at:%Y-%m-%d %H:%M} UTC"
    if left_s < settings.deadline_s:
        words += f", for {duration_text(max(0.0, left_s))}: less than a machine's {duration_text(settings.deadline_s)}"
        return Check("credentials", "warning", words, "log in anew before a long run: aws sso login")
    return Check("credentials", "ok", words)


def _clock(skew_s: float | None) -> list[Check]:
    if skew_s is None:
        return []
    off = abs(skew_s)
    words = f"{duration_text(off)} {'ahead of' if skew_s > 0 else 'behind'} AWS's"
    verdict: Verdict = "problem" if off > SKEW_LIMIT_S else "warning" if off > SKEW_WARNING_S else "ok"
    return [Check("clock", verdict, words, "" if verdict == "ok" else "sudo timedatectl set-ntp true")]


def _region(account: Account) -> Check:
    if account.region_guessed:
        return Check("region", "warning", f"{account.region}: nobody named one", "export AWS_REGION=us-east-1")
    return Check("region", "ok", account.region)


def _quota(account: Account, settings: Settings) -> Check:
    market = "spot" if settings.spot else "on demand"
    console = f"https://{account.region}.console.aws.amazon.com/servicequotas/home/services/ec2/quotas"
    try:
        quota = account.quota(settings.instance_type, spot=settings.spot)
    except CredentialsError as error:
        return Check("quota", "unknown", str(error), f"look at {console}, or {error.next_step}")
    except CloudrunError as error:
        return Check("quota", "unknown", str(error), f"look at {console}")
    if quota is None:
        return Check("quota", "unknown", f"which one {settings.instance_type} counts against", f"look at {console}")
    needed = account.vcpus(settings.instance_type)
    words = f"{quota.vcpus:g} vCPUs at once {market} ({quota.code}); {settings.instance_type} has {needed}"
    if quota.vcpus < needed:
        how = f"aws service-quotas request-service-quota-increase --service-code ec2 --quota-code {quota.code}"
        return Check("quota", "problem", words, f"{how} --desired-value {needed} --region {account.region}")
    return Check("quota", "ok", words)


def _price(cloud: Cloud, settings: Settings, now: datetime) -> Check:
    """Of each type that may be rented: known, and since when; why AWS was not asked, or did not say."""
    types = (settings.instance_type, *settings.fallback_types)
    why = prices.refresh(cloud, types, now)
    known = [(name, prices.usd_per_hour(name, cloud.place.region)) for name in types]
    words = ", ".join(
        f"{name} ${price.usd_per_hour:g} an hour (list price of {price.as_of})"
        if price
        else f"{name} of no known price"
        for name, price in known
    )
    if settings.spot and cloud.prices is not None:
        words += f"; {_spot(cloud, settings.instance_type)}"
    if why:
        words += f"; AWS's price list was not to be had: {why}"
    unknown = [name for name, price in known if price is None]
    if unknown:
        return Check(
            "price", "warning", words, f"allow pricing:GetProducts, or no --budget can be kept for {unknown[0]}"
        )
    return Check("price", "ok", words)


def _spot(cloud: Cloud, instance_type: str) -> str:
    try:
        by_zone = cloud.prices().spot(instance_type) if cloud.prices else {}
    except CloudrunError as error:
        return str(error)
    if not by_zone:
        return "no spot price: it is not to be had there"
    zone = min(by_zone, key=lambda each: by_zone[each])
    return f"spot from ${by_zone[zone]:g} in {zone} now"


def _address(cloud: Cloud, settings: Settings) -> Check:
    if settings.ssh_from:
        return Check("address", "ok", f"{settings.ssh_from}: only from there may anybody log in to a machine")
    try:
        return Check("address", "ok", f"{cloud.caller_cidr()}: only from there may anybody log in to a machine")
    except CloudrunError as error:
        return from_error("address", error, "warning")


def _permissions(
    account: Account, settings: Settings, image_id: str, vpc_id: str, instance_id: str | None
) -> list[Check]:
    try:
        tried = account.permissions(
            instance_type=settings.instance_type, image_id=image_id, vpc_id=vpc_id, instance_id=instance_id
        )
    except CloudrunError as error:
        return [from_error("permissions", error)]
    allowed = [each.action for each in tried if each.verdict == "allowed"]
    unknown = [each.action for each in tried if each.verdict == "unknown"]
    checks = [Check("permissions", "ok", f"{len(allowed)} of {len(tried)} are there: {', '.join(allowed)}")]
    if unknown:
        words = f"allowed for our own machines at most, and there is none to try it on: {', '.join(unknown)}"
        checks.append(Check("permissions", "unknown", words, "cloudrun doctor, once more while a machine is alive"))
    step = "cloudrun init --iam-policy prints what to allow"
    checks += [Check(each.action, "problem", each.detail, step, True) for each in tried if each.verdict == "denied"]
    step = "correct what is named here, then look again"
    checks += [Check(each.action, "problem", each.detail, step) for each in tried if each.verdict == "refused"]
    return checks
