"""An account as it is before anything is launched in it: who asks, what is allowed, how much, and from what clock.

Nothing here changes anything: permissions are tried with EC2's `DryRun`, which says what would have been said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from botocore import xform_name
from botocore.exceptions import ClientError

from cloudrun.aws.actions import actions_of
from cloudrun.aws.errors import LIBRARY_ERRORS, code_of, is_denial, refused, translate, translated
from cloudrun.aws.network import LEDGER_TAG
from cloudrun.aws.session import Aws

# "Amazon EC2 service quotas" (Service Quotas console): vCPUs of all running machines of some families, on demand and
# on the spot market. A family that is not here has quotas too, under codes that nobody here knows for certain.
_STANDARD = ("L-1216C47A", "L-34B43A08")
_QUOTAS: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("a", "c", "d", "h", "i", "m", "r", "t", "z"), _STANDARD),
    **dict.fromkeys(("g", "gr", "vt"), ("L-DB2E81BA", "L-3819A6DF")),
    **dict.fromkeys(("p2", "p3", "p4"), ("L-417A185B", "L-7212CCBC")),
    "p5": ("L-417A185B", "L-C4BD4855"),
    "f": ("L-74FC7D96", "L-88CF9481"),
    "inf": ("L-1945791B", "L-B5D1601B"),
    "trn": ("L-2C3B7624", "L-6B0D517C"),
    "x": ("L-7295265B", "L-E3A00192"),
}
_UNLIKE_STANDARD = ("dl", "hpc", "mac", "u")  # families that begin like a standard one, or have no vCPU quota at all
_ASKERS = 8
# ids that nothing has, in the form that EC2 gives them
_NO_INSTANCE, _NO_GROUP, _NO_VOLUME = "i-00000000000000000", "sg-00000000000000000", "vol-00000000000000000"
_NAME = "cloudrun-doctor"
_PUBLIC_KEY = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f doctor"


@dataclass(frozen=True)
class Identity:
    """`skew_s`: by how much this computer's clock is ahead of AWS's; None where AWS did not say its own."""

    account: str
    arn: str
    skew_s: float | None


@dataclass(frozen=True)
class Permission:
    """What EC2 says to one action. "unknown": it refused for something that is not there, as it would where policies
    allow it only for what carries our tag. "refused": it is allowed, and would not do for another reason."""

    action: str
    verdict: Literal["allowed", "denied", "unknown", "refused"]
    detail: str = ""


@dataclass(frozen=True)
class Quota:
    code: str
    name: str
    vcpus: float


class Account:
    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self.region = aws.region
        self.region_guessed = aws.region_guessed

    def credentials(self) -> tuple[str, str, datetime | None]:
        """The profile, where its keys came from, and when they expire (None: they do not). Raises CredentialsError."""
        expires_at = self._aws.credentials_expire_at()
        return *self._aws.credentials_source(), expires_at

    def identity(self) -> Identity:
        """Who asks. Raises CredentialsError, and CloudrunError where AWS cannot be reached."""
        with translated(f"reach AWS in {self.region}"):
            answer = self._aws.client("sts").get_caller_identity()
        return Identity(answer["Account"], answer["Arn"], _skew_s(answer))

    def skew_s(self) -> float | None:
        """By how much this computer's clock is ahead, also where AWS refuses because of that; None: it is silent."""
        try:
            return _skew_s(self._aws.client("sts").get_caller_identity())
        except ClientError as error:
            return _skew_s(error.response)
        except LIBRARY_ERRORS:
            return None

    def default_vpc(self) -> str | None:
        with translated("look up the default VPC"):
            vpcs = self._aws.client("ec2").describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
        return vpcs[0]["VpcId"] if vpcs else None

    def vcpus(self, instance_type: str) -> int:
        """How many it has. Raises UsageError for a type that the region does not have."""
        with translated(f"look up the instance type {instance_type}"):
            answer = self._aws.client("ec2").describe_instance_types(InstanceTypes=[instance_type])  # type: ignore[list-item]
        return answer["InstanceTypes"][0]["VCpuInfo"]["DefaultVCpus"]

    def quota(self, instance_type: str, *, spot: bool) -> Quota | None:
        """How many vCPUs of machines like this one may run at once; None where its quota's code is not known.

        Raises CredentialsError where `servicequotas:GetServiceQuota` is not allowed, CloudrunError.
        """
        code = quota_code(instance_type, spot=spot)
        if code is None:
            return None
        with translated(f"ask for the quota of {instance_type}"):
            found = self._aws.client("service-quotas", self.region).get_service_quota(ServiceCode="ec2", QuotaCode=code)
        return Quota(code, str(found["Quota"].get("QuotaName", "")), float(found["Quota"]["Value"]))

    # -- permissions ---------------------------------------------------------------------------------------------------

    def permissions(
        self, *, instance_type: str, image_id: str, vpc_id: str, instance_id: str | None = None
    ) -> list[Permission]:
        """What EC2 says to each call that a run needs, without carrying it out. `instance_id`: a machine of ours.

        Raises what a refusal for another reason than a missing permission becomes (no network, expired credentials).
        """
        attempts = [
            *_looking(instance_type, image_id),
            *_making(instance_type, image_id, vpc_id),
            *_changing(instance_id),
        ]
        self._aws.client("ec2")  # made once, before several threads want it
        with ThreadPoolExecutor(_ASKERS, thread_name_prefix="cloudrun-doctor") as threads:
            return list(threads.map(self._try, attempts))

    def _try(self, attempt: _Attempt) -> Permission:
        action = actions_of(attempt.operation)[0]
        try:
            getattr(self._aws.client("ec2"), xform_name(attempt.operation))(**attempt.arguments, DryRun=True)
        except LIBRARY_ERRORS as error:
            code = code_of(error)
            if code == "DryRunOperation":
                return Permission(action, "allowed")
            if is_denial(error):
                error_of_ours = translate(error, f"call {attempt.operation}")
                return Permission(action, "denied" if attempt.real else "unknown", str(error_of_ours))
            if ".NotFound" in code or "NotExist" in code or ".Malformed" in code:
                return Permission(action, "allowed", f"as far as that can be seen without one of ours ({code})")
            trouble = translate(error, f"call {attempt.operation}")
            if refused(error):
                return Permission(action, "refused", f"{trouble}; {trouble.next_step}")
            raise trouble from error
        return Permission(action, "allowed")


@dataclass(frozen=True)
class _Attempt:
    """`real`: what it names is there, or is nothing in particular, so that a no is about the permission itself."""

    operation: str
    arguments: Mapping[str, Any]
    real: bool = True


def _looking(instance_type: str, image_id: str) -> Iterable[_Attempt]:
    """As little as can be asked for: an endpoint that knows no DryRun answers in full."""
    one_type = [{"Name": "instance-type", "Values": [instance_type]}]
    yield _Attempt("DescribeImages", {"ImageIds": [image_id]})
    yield _Attempt("DescribeInstanceTypeOfferings", {"Filters": one_type})
    yield _Attempt("DescribeInstanceTypes", {"InstanceTypes": [instance_type]})
    yield _Attempt("DescribeSpotPriceHistory", {"InstanceTypes": [instance_type], "MaxResults": 1})
    nobodys = [{"Name": f"tag:{LEDGER_TAG}", "Values": [_NAME]}]
    for operation in (
        "DescribeInstances", "DescribeKeyPairs", "DescribeSecurityGroups", "DescribeSubnets", "DescribeVolumes",
        "DescribeVpcs",
    ):  # fmt: skip
        yield _Attempt(operation, {"Filters": nobodys})


def _making(instance_type: str, image_id: str, vpc_id: str) -> Iterable[_Attempt]:
    def tagged(*kinds: str) -> list[dict[str, Any]]:
        return [{"ResourceType": kind, "Tags": [{"Key": LEDGER_TAG, "Value": _NAME}]} for kind in kinds]

    launch = {"ImageId": image_id, "InstanceType": instance_type, "MinCount": 1, "MaxCount": 1}
    yield _Attempt("RunInstances", {**launch, "TagSpecifications": tagged("instance", "volume")})
    key = {"KeyName": _NAME, "PublicKeyMaterial": _PUBLIC_KEY}
    yield _Attempt("ImportKeyPair", {**key, "TagSpecifications": tagged("key-pair")})
    group = {"GroupName": _NAME, "Description": "never made", "VpcId": vpc_id}
    yield _Attempt("CreateSecurityGroup", {**group, "TagSpecifications": tagged("security-group")})


def _changing(instance_id: str | None) -> Iterable[_Attempt]:
    ids = {"InstanceIds": [instance_id or _NO_INSTANCE]}
    for operation in ("TerminateInstances", "StopInstances", "StartInstances"):
        yield _Attempt(operation, ids, real=instance_id is not None)
    tag = {"Key": LEDGER_TAG, "Value": _NAME}
    yield _Attempt("CreateTags", {"Resources": ids["InstanceIds"], "Tags": [tag]}, real=instance_id is not None)
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.1/32"}]}
    for operation in ("AuthorizeSecurityGroupIngress", "RevokeSecurityGroupIngress"):
        yield _Attempt(operation, {"GroupId": _NO_GROUP, "IpPermissions": [ssh]}, real=False)
    yield _Attempt("DeleteSecurityGroup", {"GroupId": _NO_GROUP}, real=False)
    yield _Attempt("DeleteKeyPair", {"KeyName": _NAME}, real=False)
    yield _Attempt("DeleteVolume", {"VolumeId": _NO_VOLUME}, real=False)


def quota_code(instance_type: str, *, spot: bool) -> str | None:
    """Service Quotas' code for the vCPUs of machines like this one; None where that is not known for certain."""
    match = re.match(r"([a-z]+)(\d*)", instance_type)
    if match is None or match[1] in _UNLIKE_STANDARD:
        return None
    letters, generation = match[1], match[2]
    # "im4gn" is an I, "c7gn" a C: the letters before the generation name the family, and its first is the quota's
    codes = _QUOTAS.get(letters + generation) or _QUOTAS.get(letters)
    if codes is None and letters[0] in _QUOTAS and _QUOTAS[letters[0]] is _STANDARD:
        codes = _STANDARD
    return codes[spot] if codes else None


def _skew_s(answer: Mapping[str, Any]) -> float | None:
    """From the Date that every answer of AWS carries, to the second."""
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    except (TypeError, ValueError):
        return None
