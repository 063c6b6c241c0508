"""Key pairs and security groups: made, found again by tag, and gone."""

from __future__ import annotations

import socket
import uuid

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloudrun.aws.network import Network
from cloudrun.aws.session import Aws
from cloudrun.core.errors import CloudrunError, LaunchError, UsageError
from cloudrun.core.records import Leftovers

from .conftest import Endpoint


@pytest.fixture
def name() -> str:
    return f"cloudrun-{uuid.uuid4()}"


def public_key() -> str:
    key = Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode() + " cloudrun"


def test_a_key_pair_is_found_by_its_ledger_and_deleted(aws: Aws, name: str, tags: dict[str, str]) -> None:
    network = Network(aws)
    network.import_key_pair(name, public_key(), tags)
    assert network.leftovers(tags["cloudrun:ledger"]) == Leftovers(key_names=(name,))
    network.delete_key_pair(name)
    network.delete_key_pair(name)
    assert network.leftovers(tags["cloudrun:ledger"]) == Leftovers()


def test_importing_the_same_key_again_is_fine_and_another_one_is_not(aws: Aws, name: str, tags: dict[str, str]) -> None:
    network, key = Network(aws), public_key()
    network.import_key_pair(name, key, tags)
    network.import_key_pair(name, key, tags)
    with pytest.raises(LaunchError, match="already exists"):
        network.import_key_pair(name, public_key(), tags)
    network.delete_key_pair(name)


def test_a_security_group_lets_one_address_in_on_ssh_and_nobody_else(aws: Aws, name: str, tags: dict[str, str]) -> None:
    network = Network(aws)
    group_id = network.create_security_group(name, "203.0.113.7/32", tags)
    group = aws.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
    (rule,) = group["IpPermissions"]
    assert (rule["IpProtocol"], rule["FromPort"], rule["ToPort"]) == ("tcp", 22, 22)
    assert [each["CidrIp"] for each in rule["IpRanges"]] == ["203.0.113.7/32"]
    assert not rule["Ipv6Ranges"]
    assert not rule["UserIdGroupPairs"]
    assert network.leftovers(tags["cloudrun:ledger"]) == Leftovers(security_group_ids=(group_id,))
    assert network.delete_security_group(group_id)
    assert network.delete_security_group(group_id)
    assert network.leftovers(tags["cloudrun:ledger"]) == Leftovers()


def admitted(aws: Aws, group_id: str) -> set[str]:
    group = aws.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
    return {
        each.get("CidrIp") or each["CidrIpv6"]  # type: ignore[misc]
        for rule in group["IpPermissions"]
        for each in (*rule["IpRanges"], *rule["Ipv6Ranges"])
    }


def test_a_caller_whose_address_changed_is_let_in_too(aws: Aws, name: str, tags: dict[str, str]) -> None:
    network = Network(aws)
    group_id = network.create_security_group(name, "203.0.113.7/32", tags)
    for _ in range(2):
        network.admit(group_id, "198.51.100.9/32")
    network.admit(group_id, "2001:db8::7/128")
    assert admitted(aws, group_id) == {"203.0.113.7/32", "198.51.100.9/32", "2001:db8::7/128"}
    with pytest.raises(UsageError, match="is not a network"):
        network.admit(group_id, "everybody")
    network.delete_security_group(group_id)
    with pytest.raises(UsageError, match=f"could not let 198.51.100.9/32 in through {group_id}"):
        network.admit(group_id, "198.51.100.9/32")


def test_the_machines_of_a_group_may_reach_each_other_and_it_can_be_deleted_all_the_same(
    aws: Aws, name: str, tags: dict[str, str]
) -> None:
    network = Network(aws)
    group_id = network.create_security_group(name, "203.0.113.7/32", tags)
    for _ in range(2):
        network.admit_each_other(group_id)
    group = aws.client("ec2").describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]
    among = [
        (rule["IpProtocol"], rule["FromPort"], rule["ToPort"], pair["GroupId"])
        for rule in group["IpPermissions"]
        for pair in rule["UserIdGroupPairs"]
    ]
    assert among == [("tcp", 22, 22, group_id)]
    assert admitted(aws, group_id) == {"203.0.113.7/32"}
    assert network.delete_security_group(group_id)
    with pytest.raises(UsageError, match="could not let the machines of"):
        network.admit_each_other(group_id)


def test_older_addresses_of_ours_are_withdrawn_and_rules_of_others_stay(
    aws: Aws, name: str, tags: dict[str, str]
) -> None:
    network = Network(aws)
    group_id = network.create_security_group(name, "203.0.113.7/32", tags)
    network.admit(group_id, "198.51.100.9/32")
    network.admit(group_id, "2001:db8::7/128")
    aws.client("ec2").authorize_security_group_ingress(
        GroupId=group_id,
        IpPermissions=[{"IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "IpRanges": [{"CidrIp": "192.0.2.1/32"}]}],
    )
    assert set(network.withdraw(group_id, "198.51.100.9/32")) == {"203.0.113.7/32", "2001:db8::7/128"}
    assert admitted(aws, group_id) == {"198.51.100.9/32", "192.0.2.1/32"}
    assert network.withdraw(group_id, "198.51.100.9/32") == ()
    network.delete_security_group(group_id)


def test_making_the_same_group_again_finds_it(aws: Aws, name: str, tags: dict[str, str]) -> None:
    network = Network(aws)
    first = network.create_security_group(name, "203.0.113.7/32", tags)
    assert network.create_security_group(name, "203.0.113.7/32", tags) == first
    network.delete_security_group(first)


def test_a_group_of_somebody_else_is_not_taken_over(aws: Aws, name: str, tags: dict[str, str], ledger_id: str) -> None:
    network = Network(aws)
    theirs = network.create_security_group(name, "203.0.113.7/32", {"cloudrun:ledger": f"{ledger_id}-theirs"})
    with pytest.raises(LaunchError, match=r"InvalidGroup\.Duplicate"):
        network.create_security_group(name, "203.0.113.7/32", tags)
    network.delete_security_group(theirs)


def test_a_group_whose_rule_is_refused_is_not_left_behind(aws: Aws, name: str, tags: dict[str, str]) -> None:
    network = Network(aws)
    with pytest.raises(UsageError, match=r"203\.0\.113\.7/99"):
        network.create_security_group(name, "203.0.113.7/99", tags)
    assert network.leftovers(tags["cloudrun:ledger"]) == Leftovers()


def test_a_region_without_a_default_vpc_says_how_to_make_one(
    aws: Aws, endpoint: Endpoint, tags: dict[str, str]
) -> None:
    from cloudrun.aws.session import connect

    elsewhere = connect(region="eu-north-1", endpoint_url=endpoint.url, access_key="AKIDEXAMPLE", secret_key="secret")
    ec2 = elsewhere.client("ec2")
    for vpc in ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]:
        for subnet in ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["Subnets"]:
            ec2.delete_subnet(SubnetId=subnet["SubnetId"])
        ec2.delete_vpc(VpcId=vpc["VpcId"])
    with pytest.raises(UsageError, match="no default VPC") as caught:
        Network(elsewhere).create_security_group("any", "203.0.113.7/32", tags)
    assert "aws ec2 create-default-vpc --region eu-north-1" in caught.value.next_step


def test_a_volume_that_nobody_uses_is_left_over_until_it_is_deleted(aws: Aws, tags: dict[str, str]) -> None:
    network, ec2 = Network(aws), aws.client("ec2")
    specification = {"ResourceType": "volume", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=1, TagSpecifications=[specification])  # type: ignore[list-item]
    assert network.leftovers(tags["cloudrun:ledger"]).volume_ids == (volume["VolumeId"],)
    assert network.delete_volume(volume["VolumeId"])
    assert network.delete_volume(volume["VolumeId"])
    assert network.leftovers(tags["cloudrun:ledger"]) == Leftovers()


def test_only_what_a_launch_made_is_left_over_from_it(aws: Aws, name: str, tags: dict[str, str]) -> None:
    network, ledger = Network(aws), tags["cloudrun:ledger"]
    network.import_key_pair(name, public_key(), tags)
    assert network.leftovers(ledger, launch_id=tags["cloudrun:launch"]).key_names == (name,)
    assert network.leftovers(ledger, launch_id="another") == Leftovers()
    network.delete_key_pair(name)


def test_an_address_that_cannot_be_found_out_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{taken.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(CloudrunError, match="public address") as caught:
            Network.caller_address()
    assert "HTTPS_PROXY" in caught.value.next_step


def test_what_is_left_over_is_never_asked_for_without_a_ledger(aws: Aws) -> None:
    with pytest.raises(ValueError, match="no value for the tag"):
        Network(aws).leftovers("")
