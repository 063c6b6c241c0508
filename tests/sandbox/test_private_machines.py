"""A machine without a public address, behind a jump host, in a subnet and a security group of the user's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloudrun import process_unit
from cloudrun.core.errors import UsageError
from tests.jump_host import JumpHost, jump_host
from tests.sandbox.conftest import Aws, Project


@dataclass(frozen=True)
class Own:
    subnet: str
    group: str


@pytest.fixture
def own(aws: Aws) -> Iterator[Own]:
    """A private subnet, and a group that lets SSH in."""
    vpc = aws("ec2", "create-vpc", "--cidr-block", "10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = aws("ec2", "create-subnet", "--vpc-id", vpc, "--cidr-block", "10.9.1.0/24")["Subnet"]["SubnetId"]
    group = aws("ec2", "create-security-group", "--group-name", "own", "--description", "x", "--vpc-id", vpc)["GroupId"]
    rule = ["--protocol", "tcp", "--port", "22", "--cidr", "10.9.0.0/16"]
    aws("ec2", "authorize-security-group-ingress", "--group-id", group, *rule)
    yield Own(subnet, group)
    aws("ec2", "delete-security-group", "--group-id", group)
    aws("ec2", "delete-subnet", "--subnet-id", subnet)
    aws("ec2", "delete-vpc", "--vpc-id", vpc)


@pytest.fixture
def jump(tmp_path: Path, project: Project) -> Iterator[JumpHost]:
    folder = tmp_path / "jump host"
    folder.mkdir()
    with jump_host(folder) as running:
        project.env["PATH"] = f"{running.tools}{os.pathsep}{os.environ['PATH']}"
        yield running


def test_a_run_goes_through_the_jump_host_and_leaves_the_users_group_as_it_was(
    project: Project, own: Own, jump: JumpHost, aws: Aws, nothing_left: Callable[[Project], None]
) -> None:
    project.write("cloudrun.toml", f'subnet = "{own.subnet}"\nsecurity_group = "{own.group}"\n')
    project.write("hello.py", "print('n: 1')")
    before = aws("ec2", "describe-security-groups", "--group-ids", own.group)
    done = project.cloudrun("submit", "hello.py", "--ssh-jump", jump.name)
    assert done.returncode == 0, done.stderr
    (unit,) = project.ledger.units(live=False)
    assert unit.ssh_jump == jump.name
    here = f"{unit.address}:{unit.ssh_port}"
    # the check, our own connection, and Ansible's
    assert jump.connections()[0].startswith("localhost:")
    assert jump.connections()[1:].count(here) == len(jump.connections()) - 1 >= 2
    (instance,) = aws("ec2", "describe-instances", "--instance-ids", unit.instance_id)["Reservations"][0]["Instances"]
    assert "PublicIpAddress" not in instance
    assert instance["SubnetId"] == own.subnet
    assert aws("ec2", "describe-security-groups", "--group-ids", own.group) == before
    nothing_left(project)


def test_a_jump_host_whose_key_nobody_has_accepted_is_refused_before_anything_is_launched(
    project: Project, own: Own, jump: JumpHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    jump.forget()
    monkeypatch.setenv("PATH", project.env["PATH"])
    with (
        pytest.raises(UsageError, match="no way through the jump host") as caught,
        process_unit(project=project.root, subnet=own.subnet, ssh_jump=jump.name),
    ):
        raise AssertionError("nothing may be launched")
    assert "Host key verification failed" in str(caught.value)
    assert f"ssh -p {jump.port} jumper@127.0.0.1" in caught.value.next_step
    assert project.ledger.launches() == []
    assert jump.connections() == []
