"""What a launch needs beside instances: a key pair, a security group that lets one address in, and their removal."""

from __future__ import annotations

import ipaddress
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_fixed

from cloudrun.aws.errors import code_of, translated
from cloudrun.aws.session import Aws
from cloudrun.aws.site import SSH_PORT, Wanted, default_vpc, find_site
from cloudrun.core.errors import CloudrunError, LaunchError, UsageError
from cloudrun.core.records import Leftovers, Site

if TYPE_CHECKING:
    from mypy_boto3_ec2.literals import ResourceTypeType
    from mypy_boto3_ec2.type_defs import (
        FilterTypeDef,
        IpPermissionTypeDef,
        SecurityGroupTypeDef,
        TagSpecificationTypeDef,
    )

LEDGER_TAG = "cloudrun:ledger"
LAUNCH_TAG = "cloudrun:launch"
_RULE = "cloudrun"  # the description of every rule of ours
_IN_USE = frozenset({"DependencyViolation", "InvalidGroup.InUse", "VolumeInUse", "IncorrectState"})
_NO_GROUP = frozenset({"InvalidGroup.NotFound", "InvalidGroupId.NotFound", "InvalidSecurityGroupID.NotFound"})
_WHO_AM_I = "https://checkip.amazonaws.com"
_WHO_AM_I_TIMEOUT_S = 5.0


class Network:
    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._ec2 = aws.client("ec2")
        self._looking = threading.Lock()
        self._sites: dict[Wanted, Site] = {}

    def import_key_pair(self, name: str, public_key: str, tags: Mapping[str, str]) -> None:
        """Make a public key known under a name. The same key under the same name a second time is fine."""
        with translated(f"import the key pair {name}", otherwise=LaunchError):
            try:
                self._ec2.import_key_pair(
                    KeyName=name,
                    PublicKeyMaterial=public_key.encode(),
                    TagSpecifications=[tag_specification("key-pair", tags)],
                )
            except ClientError as error:
                # a first try whose answer was lost has done it already
                if code_of(error) != "InvalidKeyPair.Duplicate" or not self._is_same_key(name, public_key):
                    raise

    def _is_same_key(self, name: str, public_key: str) -> bool:
        pairs = self._ec2.describe_key_pairs(KeyNames=[name], IncludePublicKey=True)["KeyPairs"]
        return any(pair.get("PublicKey", "").split()[:2] == public_key.split()[:2] for pair in pairs)

    def site(
        self,
        vpc: str = "",
        subnet: str = "",
        group: str = "",
        zone: str = "",
        address: str = "",
        admitted: str = "",
        *,
        jump: bool = False,
    ) -> Site:
        """Where machines go that are wanted there, "" being left open; looked up once. `address`: "public" or
        "private"; `admitted`: the network that may log in; `jump`: whether they are reached through another host.

        Raises UsageError for what does not exist, does not go together, or leads to machines nobody can reach.
        """
        wanted = Wanted(vpc, subnet, group, zone, address, admitted, jump)
        with self._looking:
            if wanted not in self._sites:
                self._sites[wanted] = find_site(self._ec2, self._aws.region, wanted)
            return self._sites[wanted]

    def create_security_group(self, name: str, cidr: str, tags: Mapping[str, str], *, vpc_id: str = "") -> str:
        """A group in that VPC, or the default one, that lets `cidr` in on tcp/22 and nobody else. Returns its id.

        Raises UsageError where there is no default VPC or `cidr` is not a network. Leaves nothing behind when it fails.
        """
        permission = _ssh_from(cidr)
        vpc_id = vpc_id or default_vpc(self._ec2, self._aws.region)
        with translated(f"create the security group {name}", otherwise=LaunchError):
            group_id = self._create_group(name, vpc_id, tags)
            try:
                # EC2 forgets for a moment what it has just made
                for attempt in Retrying(
                    retry=retry_if_exception(lambda error: code_of(error) == "InvalidGroup.NotFound"),
                    wait=wait_fixed(0.5),
                    stop=stop_after_delay(10),
                    reraise=True,
                ):
                    with attempt:
                        self._authorize(group_id, permission)
            except BaseException as error:
                try:
                    self.delete_security_group(group_id)
                except CloudrunError as left:
                    error.add_note(f"and then: {left}")  # it has our tags: the reaper finds it
                raise
        return group_id

    def _create_group(self, name: str, vpc_id: str, tags: Mapping[str, str]) -> str:
        try:
            return self._ec2.create_security_group(
                GroupName=name,
                Description="cloudrun: SSH from the computer that launched",
                VpcId=vpc_id,
                TagSpecifications=[tag_specification("security-group", tags)],
            )["GroupId"]
        except ClientError as error:
            if code_of(error) != "InvalidGroup.Duplicate":
                raise
            # a first try whose answer was lost has made it; a group of somebody else's has not our tags
            wanted: list[FilterTypeDef] = [{"Name": f"tag:{key}", "Values": [value]} for key, value in tags.items()]
            wanted += [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc_id]}]
            groups = self._ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]
            if not groups:
                raise
            return groups[0]["GroupId"]

    def _authorize(self, group_id: str, permission: IpPermissionTypeDef) -> None:
        try:
            self._ec2.authorize_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
        except ClientError as error:
            if code_of(error) != "InvalidPermission.Duplicate":
                raise

    def admit(self, group_id: str, cidr: str) -> None:
        """Let `cidr` in on tcp/22 too: the caller has another address now. One that is let in already is fine.

        Raises UsageError where `cidr` is not a network or the group is gone.
        """
        permission = _ssh_from(cidr)
        with translated(f"let {cidr} in through {group_id}"):
            self._authorize(group_id, permission)

    def admit_each_other(self, group_id: str) -> None:
        """Let the machines of a group in on each other's tcp/22. Asked again it is fine.

        The rule names the group itself, which keeps nobody from deleting it. Raises as `admit` does.
        """
        permission: IpPermissionTypeDef = {
            "IpProtocol": "tcp",
            "FromPort": SSH_PORT,
            "ToPort": SSH_PORT,
            "UserIdGroupPairs": [{"GroupId": group_id, "Description": _RULE}],
        }
        with translated(f"let the machines of {group_id} reach each other"):
            self._authorize(group_id, permission)

    def withdraw(self, group_id: str, keep: str) -> tuple[str, ...]:
        """Let nobody in any more but `keep`, of those whom `create_security_group` and `admit` have let in.

        Returns the networks that were withdrawn. What others have put into the group stays. Raises as `admit` does.
        """
        _ssh_from(keep)
        kept = str(ipaddress.ip_network(keep))
        withdrawn: list[str] = []
        with translated(f"withdraw what else {group_id} lets in"):
            for group in self._ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"]:
                for cidr in _let_in(group):
                    if cidr != kept:
                        self._revoke(group_id, _ssh_from(cidr))
                        withdrawn.append(cidr)
        return tuple(withdrawn)

    def _revoke(self, group_id: str, permission: IpPermissionTypeDef) -> None:
        try:
            self._ec2.revoke_security_group_ingress(GroupId=group_id, IpPermissions=[permission])
        except ClientError as error:
            if code_of(error) != "InvalidPermission.NotFound":
                raise

    def delete_key_pair(self, name: str) -> None:
        """Forget a key pair. One that is not there is fine."""
        with translated(f"delete the key pair {name}"):
            try:
                self._ec2.delete_key_pair(KeyName=name)
            except ClientError as error:
                if code_of(error) != "InvalidKeyPair.NotFound":
                    raise

    def delete_security_group(self, group_id: str) -> bool:
        """Delete a group; one that is not there is fine. False while a machine that still ends is in it: try later."""
        with translated(f"delete the security group {group_id}"):
            try:
                self._ec2.delete_security_group(GroupId=group_id)
            except ClientError as error:
                if code_of(error) in _IN_USE:
                    return False
                if code_of(error) not in _NO_GROUP:
                    raise
        return True

    def delete_volume(self, volume_id: str) -> bool:
        """Delete a volume; one that is not there is fine. False while it is attached: try later."""
        with translated(f"delete the volume {volume_id}"):
            try:
                self._ec2.delete_volume(VolumeId=volume_id)
            except ClientError as error:
                if code_of(error) in _IN_USE:
                    return False
                if code_of(error) != "InvalidVolume.NotFound":
                    raise
        return True

    def leftovers(self, ledger_id: str, *, launch_id: str | None = None) -> Leftovers:
        """Key pairs, security groups and volumes with this ledger's tag; no volume that an instance still uses."""
        ours = [tagged_with(LEDGER_TAG, ledger_id)]
        if launch_id is not None:
            ours.append(tagged_with(LAUNCH_TAG, launch_id))
        loose: FilterTypeDef = {"Name": "status", "Values": ["creating", "available", "error"]}
        with translated(f"list what is left over in {self._aws.region}"):
            pairs = self._ec2.describe_key_pairs(Filters=ours)["KeyPairs"]  # this call has no pages
            groups = self._ec2.get_paginator("describe_security_groups").paginate(Filters=ours)
            volumes = self._ec2.get_paginator("describe_volumes").paginate(Filters=[*ours, loose])
            return Leftovers(
                key_names=tuple(pair["KeyName"] for pair in pairs),
                security_group_ids=tuple(group["GroupId"] for page in groups for group in page["SecurityGroups"]),
                volume_ids=tuple(volume["VolumeId"] for page in volumes for volume in page["Volumes"]),
            )

    @staticmethod
    def caller_address() -> str:
        """The public IPv4 address of this computer, as AWS sees it. Bounded by some seconds."""
        try:
            with urllib.request.urlopen(_WHO_AM_I, timeout=_WHO_AM_I_TIMEOUT_S) as answer:
                text = answer.read(100).decode("ascii", "replace").strip()
            return str(ipaddress.IPv4Address(text))
        except (OSError, HTTPException, ValueError) as error:
            raise CloudrunError(
                f"could not find out this computer's public address from {_WHO_AM_I}: {error}",
                next_step="check the network (and HTTPS_PROXY if there is one), then repeat",
            ) from error


def tagged_with(key: str, value: str) -> FilterTypeDef:
    """A filter on one tag. An empty value is refused: it would choose what is not ours."""
    if not value:
        raise ValueError(f"no value for the tag {key}")
    return {"Name": f"tag:{key}", "Values": [value]}


def tag_specification(resource_type: ResourceTypeType, tags: Mapping[str, str]) -> TagSpecificationTypeDef:
    return {"ResourceType": resource_type, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}


def _ssh_from(cidr: str) -> IpPermissionTypeDef:
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as error:
        raise UsageError(
            f"{cidr!r} is not a network that may log in", next_step="write it like 203.0.113.7/32"
        ) from error
    permission: IpPermissionTypeDef = {"IpProtocol": "tcp", "FromPort": SSH_PORT, "ToPort": SSH_PORT}
    if isinstance(network, ipaddress.IPv6Network):
        return {**permission, "Ipv6Ranges": [{"CidrIpv6": str(network), "Description": _RULE}]}
    return {**permission, "IpRanges": [{"CidrIp": str(network), "Description": _RULE}]}


def _let_in(group: SecurityGroupTypeDef) -> Iterator[str]:
    """The networks of the rules that `_ssh_from` makes."""
    for rule in group["IpPermissions"]:
        if (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort")) == ("tcp", SSH_PORT, SSH_PORT):
            yield from (each["CidrIp"] for each in rule.get("IpRanges", []) if each.get("Description") == _RULE)
            yield from (each["CidrIpv6"] for each in rule.get("Ipv6Ranges", []) if each.get("Description") == _RULE)
