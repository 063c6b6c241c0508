"""Instances: launched as asked for, described, found by tag, ended, and never anybody else's."""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import pytest

from cloudrun.aws.instances import Instances, _instance
from cloudrun.aws.session import Aws
from cloudrun.core.errors import CloudrunError, UsageError
from cloudrun.core.records import LaunchRequest
from cloudrun.plan.interruptions import was_interrupted

from .conftest import Endpoint

NOBODY = "i-0123456789abcdef0"


def test_a_launch_returns_all_its_instances_with_their_tags(aws: Aws, request_for_two: LaunchRequest) -> None:
    launched = Instances(aws).run(request_for_two)
    assert len({instance.instance_id for instance in launched}) == 2
    for instance in launched:
        assert instance.tags == request_for_two.tags
        assert (instance.instance_type, instance.ssh_port) == ("m7i.large", 22)
        assert instance.launched_at is not None
        assert instance.launched_at.utcoffset() is not None


def test_the_call_leaves_nothing_behind_and_nothing_open(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest
) -> None:
    Instances(aws).run(request_for_two)
    call = next(call for call in endpoint.calls if call["Action"] == "RunInstances")
    assert (call["MinCount"], call["MaxCount"]) == ("2", "2")
    assert call["ClientToken"] == request_for_two.client_token
    assert call["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert base64.b64decode(call["UserData"]).decode() == request_for_two.user_data
    assert (call["MetadataOptions.HttpTokens"], call["MetadataOptions.HttpPutResponseHopLimit"]) == ("required", "1")
    assert call["BlockDeviceMapping.1.DeviceName"] == "/dev/sda1"
    assert call["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert call["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert call["BlockDeviceMapping.1.Ebs.VolumeSize"] == "20"
    assert [call["TagSpecification.1.ResourceType"], call["TagSpecification.2.ResourceType"]] == ["instance", "volume"]
    assert not [name for name in call if name.startswith(("IamInstanceProfile", "InstanceMarketOptions"))]


def test_a_spot_launch_asks_once_and_tags_its_request(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest
) -> None:
    Instances(aws).run(dataclasses.replace(request_for_two, spot=True))
    call = next(call for call in endpoint.calls if call["Action"] == "RunInstances")
    assert call["InstanceMarketOptions.MarketType"] == "spot"
    assert call["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert call["TagSpecification.3.ResourceType"] == "spot-instances-request"


def test_an_image_that_is_not_there_is_a_usage_error(aws: Aws, request_for_two: LaunchRequest) -> None:
    with pytest.raises(UsageError, match=r"could not launch 2 x m7i\.large in us-east-1"):
        Instances(aws).run(dataclasses.replace(request_for_two, image_id="ami-0ffffffffffffffff"))


def test_the_tag_says_where_sshd_listens(aws: Aws, request_for_two: LaunchRequest) -> None:
    tags = {**request_for_two.tags, "cloudrun:ssh-port": "2222"}
    launched = Instances(aws).run(dataclasses.replace(request_for_two, tags=tags, count=1))
    assert launched[0].ssh_port == 2222


def test_unknown_ids_are_absent_from_a_description(aws: Aws, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    ids = [instance.instance_id for instance in instances.run(request_for_two)]
    found = instances.describe([*ids, NOBODY, "not an id"])
    assert set(found) == set(ids)
    assert all(instance.state == "running" and instance.address for instance in found.values())
    assert len({instance.private_address for instance in found.values()} - {None}) == 2


def test_many_ids_are_described_in_few_calls(aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    ids = [instance.instance_id for instance in instances.run(request_for_two)]
    strangers = [f"i-{number:017x}" for number in range(449)]
    assert set(instances.describe([*strangers, *ids])) == set(ids)
    assert endpoint.actions().count("DescribeInstances") == 3


def test_no_ids_are_never_all(aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    launched = instances.run(request_for_two)
    endpoint.calls.clear()
    assert instances.describe([]) == {}
    instances.terminate([])
    instances.stop([])
    instances.start([])
    instances.tag([], {"a": "b"})
    instances.tag([launched[0].instance_id], {})
    assert endpoint.calls == []
    assert {each.state for each in instances.describe([each.instance_id for each in launched]).values()} == {"running"}


def test_only_what_carries_the_ledgers_tag_is_owned(aws: Aws, request_for_two: LaunchRequest, ledger_id: str) -> None:
    instances = Instances(aws)
    ours = {instance.instance_id for instance in instances.run(request_for_two)}
    second = dataclasses.replace(
        request_for_two, client_token="second", tags={**request_for_two.tags, "cloudrun:launch": "launch-2"}
    )
    later = {instance.instance_id for instance in instances.run(second)}
    theirs = dataclasses.replace(request_for_two, client_token="other", tags={"cloudrun:ledger": f"{ledger_id}-2"})
    instances.run(theirs)
    assert {instance.instance_id for instance in instances.owned(ledger_id)} == ours | later
    assert {instance.instance_id for instance in instances.owned(ledger_id, launch_id="launch-2")} == later


@pytest.mark.parametrize(("ledger", "launch"), [("", None), ("some", ""), ("", "")])
def test_an_empty_owner_is_refused(aws: Aws, ledger: str, launch: str | None) -> None:
    with pytest.raises(ValueError, match="no value for the tag"):
        Instances(aws).owned(ledger, launch_id=launch)


def test_terminating_ends_what_is_named_even_among_strangers(aws: Aws, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    first, second = (instance.instance_id for instance in instances.run(request_for_two))
    instances.terminate([NOBODY, first])
    instances.terminate([first])
    states = instances.describe([first, second])
    assert (states[first].state, states[second].state) == ("terminated", "running")


def test_a_protected_instance_does_not_save_the_others(aws: Aws, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    first, second = (instance.instance_id for instance in instances.run(request_for_two))
    aws.client("ec2").modify_instance_attribute(InstanceId=first, DisableApiTermination={"Value": True})
    with pytest.raises(CloudrunError, match=f"could not terminate {first}") as caught:
        instances.terminate([first, second])
    assert caught.value.next_step
    states = instances.describe([first, second])
    assert (states[first].state, states[second].state) == ("running", "terminated")


def test_a_unit_stops_and_starts_again(aws: Aws, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    instance_id = instances.run(request_for_two)[0].instance_id
    instances.stop([instance_id, NOBODY])
    assert instances.describe([instance_id])[instance_id].state == "stopped"
    instances.start([instance_id])
    assert instances.describe([instance_id])[instance_id].state == "running"


def test_a_tag_is_replaced_even_among_strangers(aws: Aws, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    first, second = (instance.instance_id for instance in instances.run(request_for_two))
    for moment in ("2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z"):
        instances.tag([NOBODY, first, second], {"cloudrun:expires-at": moment})
    for instance in instances.describe([first, second]).values():
        assert instance.tags == {**request_for_two.tags, "cloudrun:expires-at": "2030-01-02T00:00:00Z"}


def test_why_an_instance_ended_begins_with_its_code(aws: Aws, request_for_two: LaunchRequest) -> None:
    instances = Instances(aws)
    first = instances.run(request_for_two)[0].instance_id
    instances.terminate([first])
    ended = instances.describe([first])[first]
    assert ended.state_reason.startswith("Client.UserInitiatedShutdown")
    assert not was_interrupted(ended)


@pytest.mark.parametrize(
    ("raw", "reason", "interrupted"),
    [
        (("Server.SpotInstanceTermination", "Spot instance termination"), None, True),
        (("Server.SpotInstanceShutdown", ""), "Server.SpotInstanceShutdown", True),
        (("Server.SpotInstanceTermination", "Server.SpotInstanceTermination: taken"), None, True),
        (("", "Spot"), "Spot", False),
        (("Client.InstanceInitiatedShutdown", "Client.InstanceInitiatedShutdown: Instance initiated shutdown"), None,
         False),
        (("", ""), "", False),
    ],
)  # fmt: skip
def test_an_interruption_is_told_by_its_code(raw: tuple[str, str], reason: str | None, interrupted: bool) -> None:
    answer: Any = {
        "InstanceId": "i-1",
        "State": {"Name": "terminated"},
        "StateReason": dict(zip(("Code", "Message"), raw, strict=True)),
    }
    instance = _instance(answer)
    if reason is not None:
        assert instance.state_reason == reason
    assert instance.state_reason.count(raw[0]) == 1 or not raw[0]
    assert was_interrupted(instance) is interrupted


def test_a_disk_and_a_role_are_asked_for_as_they_were_wished(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest
) -> None:
    request = dataclasses.replace(
        request_for_two,
        count=1,
        volume_type="gp3",
        volume_iops=6000,
        volume_throughput=500,
        instance_profile="none-such",
    )
    with pytest.raises(CloudrunError, match="none-such"):
        Instances(aws).run(request)
    call = endpoint.calls[-1]
    assert call["IamInstanceProfile.Name"] == "none-such"
    disk = {name.rpartition(".")[2]: value for name, value in call.items() if ".Ebs." in name}
    assert disk == {
        "VolumeSize": "20", "VolumeType": "gp3", "Iops": "6000", "Throughput": "500",
        "Encrypted": "true", "DeleteOnTermination": "true",
    }  # fmt: skip


def test_without_a_word_there_is_no_role_and_nothing_about_speed(
    aws: Aws, endpoint: Endpoint, request_for_two: LaunchRequest
) -> None:
    launched = Instances(aws).run(request_for_two)
    call = endpoint.calls[-1]
    assert not any(name.startswith("IamInstanceProfile") or name.endswith((".Iops", ".Throughput")) for name in call)
    Instances(aws).terminate([one.instance_id for one in launched])
