"""Where in an account's network machines go: VPC, subnets, security group and addresses, checked before a launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from cloudrun.aws.errors import code_of, translated
from cloudrun.core.errors import UsageError
from cloudrun.core.records import Site, Subnet

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_ec2.type_defs import IpPermissionOutputTypeDef, SubnetTypeDef

SSH_PORT = 22


@dataclass(frozen=True)
class Wanted:
    """What the user says of it; see `Network.site`."""

    vpc: str = ""
    subnet: str = ""
    group: str = ""
    zone: str = ""
    address: str = ""
    admitted: str = ""
    jump: bool = False


def find_site(ec2: EC2Client, region: str, wanted: Wanted) -> Site:
    """Raises UsageError for what does not exist, does not go together, or leads to machines nobody can reach."""
    subnets = _subnets(ec2, region, wanted)
    vpc_id = subnets[0]["VpcId"]
    if wanted.group:
        _check_group(ec2, region, wanted.group, vpc_id)
    private = wanted.address == "private" or (not wanted.address and wanted.jump)
    if not private and wanted.address != "public":
        subnets = _reachable(subnets, wanted)
    # of several in a zone: one that gives the addresses that are needed, then the one with the most left
    subnets.sort(key=lambda each: (each["MapPublicIpOnLaunch"] == private, -each["AvailableIpAddressCount"]))
    found = tuple(Subnet(each["SubnetId"], each["AvailabilityZone"], each["MapPublicIpOnLaunch"]) for each in subnets)
    by_zone = {subnet.zone: subnet for subnet in reversed(found)}
    preferred = tuple(subnet for subnet in found if by_zone[subnet.zone] is subnet)
    admitted: tuple[str, ...] = (wanted.admitted,) if wanted.admitted else ()
    if private and not admitted and not wanted.group:
        admitted = _networks_of(ec2, vpc_id)
    return Site(vpc_id, preferred, wanted.group, private, wanted.address == "public", admitted)


def default_vpc(ec2: EC2Client, region: str) -> str:
    """Raises UsageError where the account has none there."""
    with translated("look up the default VPC"):
        vpcs = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    if not vpcs:
        raise UsageError(
            f"{region} has no default VPC in this account",
            next_step=f"run `aws ec2 create-default-vpc --region {region}`, name a subnet of another VPC with "
            "--subnet, or name another --region",
        )
    return vpcs[0]["VpcId"]


def _subnets(ec2: EC2Client, region: str, wanted: Wanted) -> list[SubnetTypeDef]:
    """At least one, all of one VPC."""
    if wanted.subnet:
        with _known(f"subnet {wanted.subnet}", region, "subnets", "InvalidSubnetID"):
            found = ec2.describe_subnets(SubnetIds=[wanted.subnet])["Subnets"]
        for what, given, is_in in (
            ("VPC", wanted.vpc, found[0]["VpcId"]),
            ("zone", wanted.zone, found[0]["AvailabilityZone"]),
        ):
            if given and given != is_in:
                raise UsageError(
                    f"{wanted.subnet} is in the {what} {is_in}, not in {given}",
                    next_step=f"leave one of the two out: the subnet says which {what} it is",
                )
        return found
    vpc_id = wanted.vpc
    if vpc_id:
        with _known(f"VPC {vpc_id}", region, "vpcs", "InvalidVpcID"):
            ec2.describe_vpcs(VpcIds=[vpc_id])
    elif wanted.group:
        vpc_id = _vpc_of_group(ec2, region, wanted.group)
    else:
        vpc_id = default_vpc(ec2, region)
    with translated(f"list the subnets of {vpc_id}"):
        pages = ec2.get_paginator("describe_subnets").paginate(
            Filters=[{"Name": "vpc-id", "Values": [vpc_id]}, {"Name": "state", "Values": ["available"]}]
        )
        every = [subnet for page in pages for subnet in page["Subnets"]]
    found = [subnet for subnet in every if wanted.zone in ("", subnet["AvailabilityZone"])]
    if not found:
        zones = ", ".join(sorted({subnet["AvailabilityZone"] for subnet in every}))
        raise UsageError(
            f"{vpc_id} has no subnet in {wanted.zone}" if zones else f"{vpc_id} has no subnet",
            next_step=f"name one of its zones with --zone: {zones}"
            if zones
            else f"run `aws ec2 create-subnet --region {region} --vpc-id {vpc_id} --cidr-block ...`, or name another",
        )
    return found


def _reachable(subnets: list[SubnetTypeDef], wanted: Wanted) -> list[SubnetTypeDef]:
    """Those whose machines have an address that can be reached from here, as far as anybody said."""
    public = [subnet for subnet in subnets if subnet["MapPublicIpOnLaunch"]]
    if not public:
        where = wanted.subnet or f"no subnet of {subnets[0]['VpcId']}"
        raise UsageError(
            f"{where} gives machines {'no' if wanted.subnet else 'a'} public address, and nobody said how else to "
            "reach them",
            next_step="say --ssh-jump user@bastion, --address private (where this computer reaches the VPC, as over a "
            "VPN), or --address public (to ask for one)",
        )
    return public


def _check_group(ec2: EC2Client, region: str, group_id: str, vpc_id: str) -> None:
    with _known(f"security group {group_id}", region, "security-groups", "InvalidGroup"):
        group = ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
    if group.get("VpcId") != vpc_id:
        raise UsageError(
            f"the security group {group_id} is in {group.get('VpcId')}, the machine would be in {vpc_id}",
            next_step=f"name another group, or a subnet of {group.get('VpcId')}",
        )
    if any(tag["Key"].startswith("cloudrun:") for tag in group.get("Tags", [])):
        raise UsageError(
            f"the security group {group_id} is one that cloudrun has made for a launch, and deletes with it",
            next_step="name one of your own, or leave it out",
        )
    if not any(_admits_ssh(rule) for rule in group["IpPermissions"]):
        raise UsageError(
            f"the security group {group_id} lets nobody in on tcp/{SSH_PORT}, and it is used as it is",
            next_step=f"run `aws ec2 authorize-security-group-ingress --region {region} --group-id {group_id}"
            f" --protocol tcp --port {SSH_PORT} --cidr YOUR_ADDRESS/32`, or leave it out",
        )


def _admits_ssh(rule: IpPermissionOutputTypeDef) -> bool:
    if rule["IpProtocol"] == "-1":
        return True
    return rule["IpProtocol"] == "tcp" and rule.get("FromPort", 0) <= SSH_PORT <= rule.get("ToPort", 65535)


def _vpc_of_group(ec2: EC2Client, region: str, group_id: str) -> str:
    with _known(f"security group {group_id}", region, "security-groups", "InvalidGroup"):
        return ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0].get("VpcId", "")


def _networks_of(ec2: EC2Client, vpc_id: str) -> tuple[str, ...]:
    """The addresses of a VPC: a jump host or a VPN's end has one of them."""
    with translated(f"look up the addresses of {vpc_id}"):
        vpc = ec2.describe_vpcs(VpcIds=[vpc_id])["Vpcs"][0]
    blocks = [
        each["CidrBlock"]
        for each in vpc.get("CidrBlockAssociationSet", [])
        if each.get("CidrBlockState", {}).get("State") == "associated"
    ]
    return tuple(dict.fromkeys([*blocks, vpc["CidrBlock"]]))


@contextmanager
def _known(what: str, region: str, kind: str, codes: str) -> Iterator[None]:
    """Raises UsageError where EC2 answers that there is no such thing; `kind` as the AWS CLI calls many of them."""
    with translated(f"look up the {what}"):
        try:
            yield
        except ClientError as error:
            if not code_of(error).startswith(codes):
                raise
            raise UsageError(
                f"{region} has no {what} that this account may use",
                next_step=f"`aws ec2 describe-{kind} --region {region}` lists what there is",
            ) from error
