"""Where in an account's network machines go: what is found, what does not go together, what nobody could reach."""

from __future__ import annotations

import dataclasses
import uuid
from dataclasses import dataclass

import pytest

from cloudrun.aws.instances import Instances
from cloudrun.aws.network import Network
from cloudrun.aws.session import Aws
from cloudrun.core.errors import UsageError
from cloudrun.core.records import LaunchRequest, Site

from .conftest import Endpoint


@dataclass(frozen=True)
class Vpc:
    vpc_id: str
    hidden: str  # a subnet in us-east-1b whose machines get no public address
    shown: str  # one in us-east-1a whose do
    group: str  # lets somebody in on tcp/22
    shut: str  # a group that lets nobody in


@pytest.fixture(scope="module")
def vpc(shared_aws: Aws) -> Vpc:
    ec2 = shared_aws.client("ec2")
    vpc_id = ec2.create_vpc(CidrBlock="10.42.0.0/16")["Vpc"]["VpcId"]

    def subnet(number: int, zone: str) -> str:
        made = ec2.create_subnet(VpcId=vpc_id, CidrBlock=f"10.42.{number}.0/24", AvailabilityZone=zone)
        return made["Subnet"]["SubnetId"]

    def group() -> str:
        return ec2.create_security_group(GroupName=f"own-{uuid.uuid4()}", Description="x", VpcId=vpc_id)["GroupId"]

    hidden, shown, open_group = subnet(1, "us-east-1b"), subnet(2, "us-east-1a"), group()
    ec2.modify_subnet_attribute(SubnetId=shown, MapPublicIpOnLaunch={"Value": True})
    ec2.authorize_security_group_ingress(
        GroupId=open_group, IpProtocol="tcp", FromPort=20, ToPort=30, CidrIp="10.0.0.0/8"
    )
    return Vpc(vpc_id, hidden, shown, open_group, group())


@pytest.fixture
def network(aws: Aws) -> Network:
    return Network(aws)  # a new one looks again


def ids(site: Site) -> list[str]:
    return [subnet.subnet_id for subnet in site.subnets]


def test_a_subnet_says_its_vpc_and_its_zone(network: Network, vpc: Vpc) -> None:
    site = network.site(subnet=vpc.shown)
    assert (site.vpc_id, ids(site), site.private, site.ask_public, site.admitted) == (
        vpc.vpc_id, [vpc.shown], False, False, (),
    )  # fmt: skip
    assert site.subnet_in("us-east-1a") == site.subnet_in("") == site.subnets[0]
    assert site.subnet_in("us-east-1b") is None


def test_what_is_looked_up_once_is_not_looked_up_again(network: Network, vpc: Vpc, endpoint: Endpoint) -> None:
    first = network.site(subnet=vpc.shown)
    asked = len(endpoint.calls)
    assert network.site(subnet=vpc.shown) is first
    assert len(endpoint.calls) == asked


def test_a_subnet_without_public_addresses_needs_a_way_to_its_machines(network: Network, vpc: Vpc) -> None:
    with pytest.raises(UsageError, match="gives machines no public address") as caught:
        network.site(subnet=vpc.hidden)
    for way in ("--ssh-jump", "--address private", "--address public"):
        assert way in caught.value.next_step


def test_behind_a_jump_host_machines_are_reached_at_their_private_address(network: Network, vpc: Vpc) -> None:
    site = network.site(subnet=vpc.hidden, jump=True)
    assert (site.private, site.ask_public, site.admitted) == (True, False, ("10.42.0.0/16",))
    assert network.site(subnet=vpc.hidden, address="private") == site
    assert network.site(subnet=vpc.hidden, address="private", admitted="10.42.9.0/24").admitted == ("10.42.9.0/24",)


def test_a_public_address_is_asked_for_where_the_subnet_gives_none(network: Network, vpc: Vpc) -> None:
    site = network.site(subnet=vpc.hidden, address="public")
    assert (site.private, site.ask_public, site.subnets[0].public) == (False, True, False)


def test_of_a_vpc_the_subnets_that_can_be_reached_are_taken(network: Network, vpc: Vpc) -> None:
    assert ids(network.site(vpc=vpc.vpc_id)) == [vpc.shown]
    assert ids(network.site(vpc=vpc.vpc_id, jump=True)) == [vpc.hidden, vpc.shown]
    assert ids(network.site(vpc=vpc.vpc_id, jump=True, zone="us-east-1a")) == [vpc.shown]


def test_a_group_of_ones_own_says_the_vpc(network: Network, vpc: Vpc) -> None:
    site = network.site(group=vpc.group)
    assert (site.vpc_id, site.group_id, site.admitted) == (vpc.vpc_id, vpc.group, ())


def test_a_zone_of_the_default_vpc_is_one_of_its_subnets(network: Network) -> None:
    (subnet,) = network.site(zone="us-east-1c").subnets
    assert (subnet.zone, subnet.public) == ("us-east-1c", True)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"subnet": "subnet-0123456789abcdef0"}, "has no subnet subnet-0123456789abcdef0"),
        ({"vpc": "vpc-0123456789abcdef0"}, "has no VPC vpc-0123456789abcdef0"),
        ({"group": "sg-0123456789abcdef0"}, "has no security group sg-0123456789abcdef0"),
        ({"zone": "us-east-1z"}, "has no subnet in us-east-1z"),
        ({"subnet": "hidden", "zone": "us-east-1a", "address": "private"}, "is in the zone us-east-1b"),
        ({"subnet": "hidden", "vpc": "vpc-0123456789abcdef0"}, "is in the VPC vpc-"),
        ({"subnet": "shown", "group": "shut"}, "lets nobody in on tcp/22"),
        ({"zone": "us-east-1a", "subnet": "default", "group": "group"}, "the machine would be in vpc-"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_next_step(
    network: Network, aws: Aws, vpc: Vpc, wanted: dict[str, str], words: str
) -> None:
    names = {**dataclasses.asdict(vpc), "default": network.site(zone="us-east-1a").subnets[0].subnet_id}
    with pytest.raises(UsageError) as caught:
        network.site(**{what: names.get(value, value) for what, value in wanted.items()})  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert caught.value.next_step


def test_a_group_that_was_made_for_a_launch_is_nobodys_own(network: Network, tags: dict[str, str]) -> None:
    group = network.create_security_group(f"cloudrun-{uuid.uuid4()}", "203.0.113.7/32", tags)
    with pytest.raises(UsageError, match="deletes with it"):
        network.site(group=group)
    network.delete_security_group(group)


def test_a_group_of_ours_is_made_in_the_vpc_of_the_machines(network: Network, vpc: Vpc, tags: dict[str, str]) -> None:
    name = f"cloudrun-{uuid.uuid4()}"
    group = network.create_security_group(name, "203.0.113.7/32", tags, vpc_id=vpc.vpc_id)
    assert network.site(subnet=vpc.shown).vpc_id == vpc.vpc_id
    found = network._ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]
    assert found["VpcId"] == vpc.vpc_id
    network.delete_security_group(group)


def test_a_machine_is_launched_into_its_subnet(
    aws: Aws, endpoint: Endpoint, vpc: Vpc, request_for_two: LaunchRequest
) -> None:
    request = dataclasses.replace(
        request_for_two, count=1, security_group_id=vpc.group, subnet_id=vpc.hidden, zone="us-east-1b"
    )
    (one,) = Instances(aws).run(request)
    call = endpoint.calls[-1]
    assert (call["SubnetId"], call["SecurityGroupId.1"]) == (vpc.hidden, vpc.group)
    assert "Placement.AvailabilityZone" not in call
    assert one.private_address is not None
    assert one.private_address.startswith("10.42.1.")
    Instances(aws).terminate([one.instance_id])


def test_a_public_address_is_asked_for_with_the_interface(
    aws: Aws, endpoint: Endpoint, vpc: Vpc, request_for_two: LaunchRequest
) -> None:
    request = dataclasses.replace(
        request_for_two, count=1, security_group_id=vpc.group, subnet_id=vpc.hidden, public_address=True
    )
    (one,) = Instances(aws).run(request)
    call = endpoint.calls[-1]
    assert call["NetworkInterface.1.AssociatePublicIpAddress"] == "true"
    assert call["NetworkInterface.1.SubnetId"] == vpc.hidden
    assert call["NetworkInterface.1.SecurityGroupId.1"] == vpc.group
    assert {"SubnetId", "SecurityGroupId.1"}.isdisjoint(call)
    Instances(aws).terminate([one.instance_id])
