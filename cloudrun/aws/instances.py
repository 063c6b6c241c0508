"""EC2 instances: launched once for each token, described in batches, ended by id and never "all"."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from cloudrun.aws.errors import LIBRARY_ERRORS, answer_lost, code_of, outcome_unknown, refused, translate, translated
from cloudrun.aws.network import LEDGER_TAG, tag_specification, tagged_with
from cloudrun.aws.session import Aws
from cloudrun.core.errors import CloudrunError, LaunchError, UnresolvedLaunch
from cloudrun.core.records import Instance, LaunchRequest

if TYPE_CHECKING:
    from mypy_boto3_ec2.literals import ResourceTypeType
    from mypy_boto3_ec2.type_defs import (
        FilterTypeDef,
        InstanceTypeDef,
        ReservationResponseTypeDef,
        StateReasonTypeDef,
        TagTypeDef,
    )

LAUNCH_TAG = "cloudrun:launch"
SSH_PORT_TAG = "cloudrun:ssh-port"
_FILTER_VALUES = 200  # the most that one Describe filter takes
_IDS = 100  # for one Terminate, Stop or Start
_JUST_MADE = frozenset({"InvalidGroup.NotFound", "InvalidSecurityGroupID.NotFound", "InvalidKeyPair.NotFound"})
_JUST_MADE_S = 5.0
_OTHER_REQUEST = "IdempotentParameterMismatch"
_LAUNCHED_BEFORE = frozenset({_OTHER_REQUEST, "IdempotentInstanceTerminated"})
_UNKNOWN_ID = "InvalidInstanceID.NotFound"


class Instances:
    def __init__(self, aws: Aws) -> None:
        self._ec2 = aws.client("ec2")
        self._region = aws.region
        self._attempts = threading.local()
        # botocore retries by itself and tells only how the last attempt ended; whether an earlier one may have
        # arrived is seen here
        self._ec2.meta.events.register("needs-retry.ec2.RunInstances", self._watch)

    def run(self, request: LaunchRequest, *, asked_before: bool = False) -> tuple[Instance, ...]:
        """Launch all of `request.count` instances or none. The same token and request again return the same instances.

        Raises UnresolvedLaunch where nobody knows whether they were launched: call again with the same request and
        `asked_before`, so that a failure on the way (no network, expired credentials) is not taken for a refusal.
        Otherwise nothing was launched: CapacityError, QuotaError, UsageError, CredentialsError or another LaunchError.
        """
        action = f"launch {request.count} x {request.instance_type} in {request.zone or self._region}"
        self._attempts.one_was_lost = asked_before
        try:
            answer = self._run_when_known(_arguments(request))
            return tuple(_instance(each) for each in answer["Instances"])
        except LIBRARY_ERRORS as error:
            refusal = translate(error, action, otherwise=LaunchError)
            if answer_lost(error) or (self._attempts.one_was_lost and not refused(error)):
                raise _unresolved(refusal) from error
            if self._attempts.one_was_lost or code_of(error) in _LAUNCHED_BEFORE:
                return self._launched_before(request, error, refusal)
            raise refusal from error

    def _run_when_known(self, arguments: dict[str, Any]) -> ReservationResponseTypeDef:
        """Call `RunInstances`; a key pair or a group made a moment ago may not be known everywhere yet."""
        for attempt in Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, ClientError) and code_of(error) in _JUST_MADE),
            wait=wait_fixed(0.5),
            stop=stop_after_delay(_JUST_MADE_S),
            reraise=True,
        ):
            with attempt:
                answer = self._ec2.run_instances(**arguments)
        return answer

    def _watch(self, response: Any = None, caught_exception: Exception | None = None, **_: Any) -> None:
        """Note, for the thread that launches, an attempt that may have been carried out without our learning of it."""
        if caught_exception is not None:
            lost = answer_lost(caught_exception)
        else:
            http, parsed = response
            code = parsed.get("Error", {}).get("Code", "")
            lost = http.status_code >= 300 and outcome_unknown(code, http.status_code)
        if lost:
            self._attempts.one_was_lost = True

    def _launched_before(
        self, request: LaunchRequest, error: Exception, refusal: CloudrunError
    ) -> tuple[Instance, ...]:
        """What an earlier attempt has launched, found by its tags though this attempt was refused; else the refusal."""
        found = self.owned(request.tags[LEDGER_TAG], launch_id=request.tags[LAUNCH_TAG])
        if found:
            return tuple(found)
        if code_of(error) == _OTHER_REQUEST:  # something was launched with this token: it is only not seen yet
            raise _unresolved(refusal) from error
        raise refusal from error

    def zones(self, instance_type: str) -> list[str]:
        """The region's zones that offer the type, sorted; whether they have one now, only a launch tells."""
        with translated(f"list the zones of {self._region} that offer {instance_type}"):
            pages = self._ec2.get_paginator("describe_instance_type_offerings").paginate(
                LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [instance_type]}]
            )
            return sorted({each["Location"] for page in pages for each in page["InstanceTypeOfferings"]})

    def describe(self, instance_ids: Sequence[str]) -> dict[str, Instance]:
        """What EC2 knows of these instances, by id. An id that it does not know is absent; no ids, no call."""
        found: dict[str, Instance] = {}
        for ids in _batches(instance_ids, _FILTER_VALUES):
            # by filter: a list of ids is refused as a whole when one of them is unknown
            for instance in self._list([{"Name": "instance-id", "Values": ids}]):
                found[instance.instance_id] = instance
        return found

    def owned(self, ledger_id: str, *, launch_id: str | None = None) -> list[Instance]:
        """All instances with this ledger's tag (and this launch's), terminated ones too while EC2 remembers them."""
        filters = [tagged_with(LEDGER_TAG, ledger_id)]
        if launch_id is not None:
            filters.append(tagged_with(LAUNCH_TAG, launch_id))
        return list(self._list(filters))

    def _list(self, filters: list[FilterTypeDef]) -> Iterator[Instance]:
        with translated(f"list instances in {self._region}"):
            for page in self._ec2.get_paginator("describe_instances").paginate(
                Filters=filters, PaginationConfig={"PageSize": 1000}
            ):
                for reservation in page["Reservations"]:
                    for instance in reservation["Instances"]:
                        yield _instance(instance)

    def terminate(self, instance_ids: Sequence[str]) -> None:
        """Ask EC2 to end these instances: asking is not yet being ended. Ids that it no longer knows are fine."""
        self._each(instance_ids, "terminate", lambda ids: self._ec2.terminate_instances(InstanceIds=ids))

    def stop(self, instance_ids: Sequence[str]) -> None:
        """Ask EC2 to stop these instances and keep their disks. Ids that it no longer knows are fine."""
        self._each(instance_ids, "stop", lambda ids: self._ec2.stop_instances(InstanceIds=ids))

    def start(self, instance_ids: Sequence[str]) -> None:
        """Ask EC2 to start these stopped instances. Ids that it no longer knows are fine."""
        self._each(instance_ids, "start", lambda ids: self._ec2.start_instances(InstanceIds=ids))

    def tag(self, instance_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        """Give these instances tags, in place of older values. Ids that EC2 no longer knows are fine."""
        pairs: list[TagTypeDef] = [{"Key": key, "Value": value} for key, value in tags.items()]
        if pairs:
            self._each(instance_ids, "tag", lambda ids: self._ec2.create_tags(Resources=ids, Tags=pairs))

    def _each(self, instance_ids: Sequence[str], verb: str, call: Callable[[list[str]], object]) -> None:
        """Call with as many ids at once as go together; one that EC2 refuses must not save the others.

        Raises the first error when all have been tried.
        """
        first: CloudrunError | None = None
        for ids in _batches(instance_ids, _IDS):
            try:
                with translated(f"{verb} instances in {self._region}"):
                    call(ids)
            except CloudrunError as error:
                if not isinstance(error.__cause__, ClientError):
                    raise  # no answer at all: the next call would only wait as long again
                first = self._one_by_one(ids, verb, call) or first
        if first is not None:
            raise first

    def _one_by_one(self, ids: list[str], verb: str, call: Callable[[list[str]], object]) -> CloudrunError | None:
        first: CloudrunError | None = None
        for instance_id in ids:
            try:
                with translated(f"{verb} {instance_id} in {self._region}"):
                    call([instance_id])
            except CloudrunError as error:
                if isinstance(error.__cause__, ClientError) and code_of(error.__cause__) == _UNKNOWN_ID:
                    continue
                first = first or error
        return first


def _unresolved(refusal: CloudrunError) -> UnresolvedLaunch:
    return UnresolvedLaunch(
        f"{refusal}; nobody knows yet whether it was launched",
        next_step="run `cloudrun reap`: it asks again, and ends what was launched",
    )


def _batches(instance_ids: Sequence[str], size: int) -> Iterator[list[str]]:
    unique = list(dict.fromkeys(instance_ids))
    for start in range(0, len(unique), size):
        yield unique[start : start + size]


def _arguments(request: LaunchRequest) -> dict[str, Any]:
    """`RunInstances` in EC2's words: nothing that can fall behind, leak, be read by others or cost extra."""
    tagged: list[ResourceTypeType] = ["instance", "volume"]
    arguments: dict[str, Any] = {
        "ClientToken": request.client_token,
        "MinCount": request.count,
        "MaxCount": request.count,
        "InstanceType": request.instance_type,
        "ImageId": request.image_id,
        "KeyName": request.key_name,
        "UserData": request.user_data,
        "InstanceInitiatedShutdownBehavior": request.shutdown_behavior,
        # version 2 asks for a token, which a request forged through a job's web client has not; nor leaves it the unit
        "MetadataOptions": {"HttpEndpoint": "enabled", "HttpTokens": "required", "HttpPutResponseHopLimit": 1},
        "BlockDeviceMappings": [
            {
                "DeviceName": request.root_device,
                "Ebs": _volume(request),
            }
        ],
    }
    arguments |= _network(request)
    if request.instance_profile:
        kind = "Arn" if request.instance_profile.startswith("arn:") else "Name"
        arguments["IamInstanceProfile"] = {kind: request.instance_profile}
    if request.zone and not request.subnet_id:  # a subnet is in one zone
        arguments["Placement"] = {"AvailabilityZone": request.zone}
    if request.spot:
        tagged.append("spot-instances-request")
        options = {"SpotInstanceType": "one-time", "InstanceInterruptionBehavior": "terminate"}
        if request.max_price is not None:
            options["MaxPrice"] = f"{request.max_price:f}"  # a text to EC2, which knows no exponents
        arguments["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    arguments["TagSpecifications"] = [tag_specification(kind, request.tags) for kind in tagged]
    return arguments


def _volume(request: LaunchRequest) -> dict[str, Any]:
    volume: dict[str, Any] = {
        "VolumeSize": request.volume_gib,
        "VolumeType": request.volume_type,
        "Encrypted": True,
        "DeleteOnTermination": True,
    }
    if request.volume_iops is not None:
        volume["Iops"] = request.volume_iops
    if request.volume_throughput is not None:
        volume["Throughput"] = request.volume_throughput
    return volume


def _network(request: LaunchRequest) -> dict[str, Any]:
    """Where in the network; EC2 wants it in another form where a public address is to be asked for."""
    groups = [request.security_group_id]
    if request.public_address:
        interface = {"DeviceIndex": 0, "AssociatePublicIpAddress": True, "SubnetId": request.subnet_id}
        return {"NetworkInterfaces": [{**interface, "Groups": groups, "DeleteOnTermination": True}]}
    return {"SecurityGroupIds": groups} | ({"SubnetId": request.subnet_id} if request.subnet_id else {})


def _instance(raw: InstanceTypeDef) -> Instance:
    tags: Mapping[str, str] = MappingProxyType({tag["Key"]: tag["Value"] for tag in raw.get("Tags", [])})
    port = tags.get(SSH_PORT_TAG, "")
    launched_at = raw.get("LaunchTime")
    return Instance(
        instance_id=raw["InstanceId"],
        state=raw["State"]["Name"],
        instance_type=raw.get("InstanceType", ""),
        launched_at=launched_at.astimezone(UTC) if launched_at else None,
        address=raw.get("PublicIpAddress") or raw.get("PrivateIpAddress") or None,
        ssh_port=int(port) if port.isdecimal() else 22,
        tags=tags,
        state_reason=_reason(raw.get("StateReason", {})),
        zone=raw.get("Placement", {}).get("AvailabilityZone", ""),
        private_address=raw.get("PrivateIpAddress") or None,
    )


def _reason(raw: StateReasonTypeDef) -> str:
    """Why an instance is in its state: EC2's code first, since decisions hang on it, then its words.

    "Server.SpotInstanceTermination: Spot instance termination"; its message has the code in it, or has not.
    """
    code, words = raw.get("Code", ""), raw.get("Message", "")
    return words if not code or words.startswith(code) else ": ".join(filter(None, (code, words)))
