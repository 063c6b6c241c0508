"""EC2 as the region answers it, through boto3: what cloudrun depends on and moto alone does otherwise."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import asyncssh
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from cloudrun.sandbox.client import Region
from tests.waiting import until

UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/{}/hvm/ebs-gp3/ami-id"


class Ec2:
    """A boto3 client of the region, and the instances that a test launched with it."""

    def __init__(self, region: Region) -> None:
        self._region = region
        self.client = self.connect("ec2")
        self.image_id = self.image("amd64")
        self.launched: list[str] = []
        self.answered: dict[str, str] = {}  # the state of each in the answer to its launch

    def connect(self, service: str, **changes: str) -> Any:
        settings: dict[str, Any] = {
            "endpoint_url": self._region.endpoint_url,
            "region_name": self._region.region,
            "aws_access_key_id": self._region.access_key,
            "aws_secret_access_key": self._region.secret_key,
            "config": Config(retries={"total_max_attempts": 1}, proxies={}),
        }
        return boto3.client(service, **(settings | changes))

    def image(self, machine: str) -> str:
        answer = self.connect("ssm").get_parameter(Name=UBUNTU.format(machine))
        return str(answer["Parameter"]["Value"])

    def launch(self, count: int = 1, **wishes: Any) -> list[str]:
        request = {"ImageId": self.image_id, "InstanceType": "m7i.large", "MinCount": count, "MaxCount": count}
        answer = self.client.run_instances(**(request | wishes))
        self.answered.update({each["InstanceId"]: each["State"]["Name"] for each in answer["Instances"]})
        ids = [instance["InstanceId"] for instance in answer["Instances"]]
        self.launched += ids
        return ids

    def look(self, instance_id: str) -> dict[str, Any]:
        answer = self.client.describe_instances(InstanceIds=[instance_id])
        found: dict[str, Any] = answer["Reservations"][0]["Instances"][0]
        return found

    def state(self, instance_id: str) -> str:
        return str(self.look(instance_id)["State"]["Name"])

    def wait(self, instance_id: str, state: str) -> dict[str, Any]:
        end = time.monotonic() + 90
        while (now := self.state(instance_id)) != state:
            assert time.monotonic() < end, f"{instance_id} is {now} after 90 s, not {state}"
            time.sleep(0.05)
        return self.look(instance_id)


@pytest.fixture
def ec2(region: Region) -> Iterator[Ec2]:
    ec2 = Ec2(region)
    yield ec2
    if ec2.launched:
        ec2.client.terminate_instances(InstanceIds=ec2.launched)
        for instance_id in ec2.launched:
            ec2.wait(instance_id, "terminated")


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ClientError) as error:
        call()
    return str(error.value.response["Error"]["Code"])


@pytest.fixture
def key(ec2: Ec2) -> Iterator[tuple[str, asyncssh.SSHKey]]:
    own = asyncssh.generate_private_key("ssh-ed25519")
    name = f"test-{uuid.uuid4().hex}"
    ec2.client.import_key_pair(KeyName=name, PublicKeyMaterial=own.export_public_key())
    yield name, own
    ec2.client.delete_key_pair(KeyName=name)


def on_machine(instance: dict[str, Any], key: asyncssh.SSHKey, command: str) -> str:
    """What a command printed; "" where the machine went away while it ran."""
    port = next(int(tag["Value"]) for tag in instance["Tags"] if tag["Key"] == "cloudrun:ssh-port")

    async def run() -> str:
        options: dict[str, Any] = {"username": "ubuntu", "client_keys": [key], "known_hosts": None, "config": None}
        for _ in range(900):
            try:
                connection = await asyncssh.connect(instance["PublicIpAddress"], port, agent_path=None, **options)
            except (OSError, asyncssh.Error):
                await asyncio.sleep(0.1)
                continue
            async with connection:
                done = await connection.run(command)
                return str(done.stdout)
        raise AssertionError("the machine never answered")

    return asyncio.run(run())


# -- launching -------------------------------------------------------------------------------------------------------


def test_an_instance_is_pending_first_then_runs_at_a_loopback_address_and_ends_for_good(ec2: Ec2) -> None:
    (instance_id,) = ec2.launch()
    assert ec2.answered[instance_id] == "pending"
    running = ec2.wait(instance_id, "running")
    assert running["PublicIpAddress"].startswith("127.")
    assert running["PrivateIpAddress"] == running["PublicIpAddress"], "what other machines are told is where it is"
    assert running["Architecture"] == "x86_64"
    ec2.client.terminate_instances(InstanceIds=[instance_id])
    ended = ec2.wait(instance_id, "terminated")
    assert "PublicIpAddress" not in ended
    assert ended["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert code_of(lambda: ec2.client.start_instances(InstanceIds=[instance_id])) == "IncorrectInstanceState"
    assert code_of(lambda: ec2.client.stop_instances(InstanceIds=[instance_id])) == "IncorrectInstanceState"
    ec2.client.terminate_instances(InstanceIds=[instance_id])  # again: EC2 takes it


def test_the_same_token_is_the_same_launch(ec2: Ec2) -> None:
    token = uuid.uuid4().hex
    first = ec2.launch(count=2, ClientToken=token)
    assert ec2.launch(count=2, ClientToken=token) == first
    del ec2.launched[2:]
    assert code_of(lambda: ec2.launch(count=1, ClientToken=token)) == "IdempotentParameterMismatch"
    assert code_of(lambda: ec2.launch(2, ClientToken=token, UserData="x")) == "IdempotentParameterMismatch"


def test_launches_without_a_common_token_are_two(ec2: Ec2) -> None:
    assert ec2.launch() != ec2.launch()


@pytest.mark.parametrize(
    ("wishes", "code"),
    [
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"ImageId": "nonsense"}, "InvalidAMIID.Malformed"),
        ({"InstanceType": "m99.huge"}, "InvalidParameterValue"),
        ({"InstanceType": "m7g.large"}, "InvalidParameterValue"),  # arm64, and the image is not
        ({"KeyName": "nobody's"}, "InvalidKeyPair.NotFound"),
        ({"SecurityGroupIds": ["sg-0123456789abcdef0"]}, "InvalidGroup.NotFound"),
        ({"UserData": "x" * 16385}, "InvalidParameterValue"),
        ({"MinCount": 101, "MaxCount": 101}, "InstanceLimitExceeded"),
    ],
)
def test_what_ec2_refuses_is_refused(ec2: Ec2, wishes: dict[str, Any], code: str) -> None:
    assert code_of(lambda: ec2.launch(**wishes)) == code


def test_an_arm64_image_runs_on_an_arm64_type(ec2: Ec2) -> None:
    (instance_id,) = ec2.launch(ImageId=ec2.image("arm64"), InstanceType="m7g.large")
    assert ec2.wait(instance_id, "running")["Architecture"] == "arm64"


def test_canonicals_images_are_found_by_owner_too(ec2: Ec2) -> None:
    images = ec2.client.describe_images(
        Owners=["099720109477"],
        Filters=[
            {"Name": "name", "Values": ["ubuntu/images/hvm-ssd*/ubuntu-*-24.04-amd64-server-*"]},
            {"Name": "architecture", "Values": ["x86_64"]},
            {"Name": "state", "Values": ["available"]},
        ],
    )["Images"]
    assert [image["ImageId"] for image in images] == [ec2.image_id]
    assert images[0]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] == 8


# -- machines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("behavior", "state"), [("terminate", "terminated"), ("stop", "stopped")])
def test_a_machine_that_powers_itself_off_ends_as_it_was_told_to(
    ec2: Ec2, key: tuple[str, asyncssh.SSHKey], behavior: str, state: str
) -> None:
    name, own = key
    (instance_id,) = ec2.launch(KeyName=name, InstanceInitiatedShutdownBehavior=behavior)
    on_machine(ec2.wait(instance_id, "running"), own, "sudo shutdown -h now")
    ended = ec2.wait(instance_id, state)
    assert ended["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


def test_a_stopped_instance_keeps_its_disk_and_gets_another_address(ec2: Ec2, key: tuple[str, asyncssh.SSHKey]) -> None:
    name, own = key
    (instance_id,) = ec2.launch(KeyName=name)
    before = ec2.wait(instance_id, "running")
    on_machine(before, own, "echo kept > note; sync")
    ec2.client.stop_instances(InstanceIds=[instance_id])
    assert "PublicIpAddress" not in ec2.wait(instance_id, "stopped")
    ec2.client.start_instances(InstanceIds=[instance_id])
    after = ec2.wait(instance_id, "running")
    assert on_machine(after, own, "cat note") == "kept\n"
    assert (after["PublicIpAddress"], after["Tags"]) != (before["PublicIpAddress"], before["Tags"])


def test_a_reboot_keeps_instance_and_address(ec2: Ec2, key: tuple[str, asyncssh.SSHKey]) -> None:
    name, own = key
    (instance_id,) = ec2.launch(KeyName=name)
    running = ec2.wait(instance_id, "running")
    on_machine(running, own, "echo here > /run/note; echo kept > note")
    ec2.client.reboot_instances(InstanceIds=[instance_id])
    until(lambda: on_machine(running, own, "test -e /run/note || cat note") == "kept\n")
    assert ec2.state(instance_id) == "running"


def test_a_unit_reads_its_metadata_and_installs_from_the_mirror(ec2: Ec2, key: tuple[str, asyncssh.SSHKey]) -> None:
    name, own = key
    (instance_id,) = ec2.launch(KeyName=name)
    script = (
        "import os, urllib.request as r; base = os.environ['AWS_EC2_METADATA_SERVICE_ENDPOINT'] + '/latest/'; "
        "wish = {'X-aws-ec2-metadata-token-ttl-seconds': '60'}; "
        "t = r.urlopen(r.Request(base + 'api/token', headers=wish, method='PUT')).read().decode(); "
        "own = {'X-aws-ec2-metadata-token': t}; "
        "print(r.urlopen(r.Request(base + 'meta-data/instance-id', headers=own)).read().decode())"
    )
    running = ec2.wait(instance_id, "running")
    assert on_machine(running, own, f'python3 -c "{script}"') == f"{instance_id}\n"
    installed = on_machine(running, own, "uv venv -q v && uv pip install -q -p v threadpoolctl && ls v/lib/*/*")
    assert "threadpoolctl.py" in installed


# -- the rest --------------------------------------------------------------------------------------------------------


def test_a_security_group_in_use_is_not_deleted(ec2: Ec2) -> None:
    group = ec2.client.create_security_group(GroupName=f"test-{uuid.uuid4().hex}", Description="x")["GroupId"]
    (instance_id,) = ec2.launch(SecurityGroupIds=[group])
    assert code_of(lambda: ec2.client.delete_security_group(GroupId=group)) == "DependencyViolation"
    ec2.client.terminate_instances(InstanceIds=[instance_id])
    ec2.wait(instance_id, "terminated")
    ec2.client.delete_security_group(GroupId=group)


def test_another_secret_region_or_service_is_refused(ec2: Ec2) -> None:
    describe = "describe_instances"
    assert code_of(getattr(ec2.connect("ec2", aws_secret_access_key="guessed"), describe)) == "AuthFailure"
    assert code_of(getattr(ec2.connect("ec2", aws_access_key_id="SANDBOXGUESSED000000"), describe)) == "AuthFailure"
    assert code_of(getattr(ec2.connect("ec2", region_name="eu-west-1"), describe)) == "SignatureDoesNotMatch"
    assert code_of(ec2.connect("iam").list_users) == "AccessDenied"


def test_what_is_not_emulated_says_so(ec2: Ec2) -> None:
    assert (
        code_of(lambda: ec2.client.get_console_screenshot(InstanceId="i-0123456789abcdef0")) == "UnsupportedOperation"
    )


def test_objects_come_back_as_they_went(ec2: Ec2) -> None:
    s3 = ec2.connect("s3")
    bucket = f"test-{uuid.uuid4().hex}"
    s3.create_bucket(Bucket=bucket)
    content = bytes(range(256)) * 40_000
    s3.put_object(Bucket=bucket, Key="a b/ü+~.bin", Body=content)
    assert s3.get_object(Bucket=bucket, Key="a b/ü+~.bin")["Body"].read() == content
    s3.delete_object(Bucket=bucket, Key="a b/ü+~.bin")
    s3.delete_bucket(Bucket=bucket)
