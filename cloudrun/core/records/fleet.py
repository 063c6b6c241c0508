"""Machines: where they are, what was asked of EC2, and what the ledger knows of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from cloudrun.core.records.nothing import empty
from cloudrun.core.states import EndReason, LaunchState, UnitState

OnExit = Literal["terminate", "stop", "keep"]


@dataclass(frozen=True)
class Place:
    """Where a unit lives. `generation` is the account on AWS; a sandbox that was started anew has a new one."""

    provider: str
    region: str
    generation: str = ""


@dataclass(frozen=True)
class Image:
    image_id: str
    name: str
    architecture: str  # "x86_64" or "arm64"
    root_device: str  # as in /dev/sda1
    user: str  # who may log in
    root_gib: int  # the smallest root volume it boots from
    gpu: bool = False  # it was chosen for a type with one


@dataclass(frozen=True)
class Subnet:
    subnet_id: str
    zone: str
    public: bool  # whether machines in it get a public address without being asked


@dataclass(frozen=True)
class Site:
    """Where in an account's network machines go, looked up before a launch. By default EC2 chooses among the default
    VPC's subnets."""

    vpc_id: str = ""
    subnets: tuple[Subnet, ...] = ()  # the preferred one of each zone; none leaves it to EC2
    group_id: str = ""  # a security group of the user's own; "" has one made for the launch
    private: bool = False  # machines are reached at their private address
    ask_public: bool = False  # for a public address, where a subnet does not give one by itself
    admitted: tuple[str, ...] = ()  # networks that may log in; none is this computer's address

    def subnet_in(self, zone: str) -> Subnet | None:
        """In that zone; for "" the preferred one. None leaves it to EC2."""
        return next((subnet for subnet in self.subnets if zone in ("", subnet.zone)), None)


@dataclass(frozen=True)
class LaunchRequest:
    """All that `RunInstances` is told; kept in the ledger word for word, so that the same call can be made again."""

    client_token: str
    count: int
    instance_type: str
    image_id: str
    root_device: str
    volume_gib: int
    key_name: str
    security_group_id: str
    user_data: str
    tags: Mapping[str, str]
    spot: bool = False
    shutdown_behavior: Literal["terminate", "stop"] = "terminate"
    zone: str = ""  # "" leaves it to EC2
    max_price: float | None = None  # USD an hour, for spot
    subnet_id: str = ""  # "" leaves it to EC2
    public_address: bool = False  # ask for one; else the subnet decides
    volume_type: str = "gp3"
    volume_iops: int | None = None
    volume_throughput: int | None = None  # MiB/s
    instance_profile: str = ""  # name or ARN; "" is none
    # of the client, not told to EC2
    private: bool = False  # the machines are reached at their private address
    group_is_given: bool = False  # the security group is the user's own: it is neither changed nor deleted
    admits_caller: bool = True  # it lets this computer's address in, which may change
    overdue_grace_s: float = 300.0  # for its owner, where it is started after its deadline; 0: it never is


@dataclass(frozen=True)
class Instance:
    """One EC2 instance as `DescribeInstances` last told it. `state` is EC2's own word."""

    instance_id: str
    state: str  # pending | running | shutting-down | terminated | stopping | stopped
    instance_type: str
    launched_at: datetime | None
    address: str | None  # public, else private; None until there is one
    ssh_port: int = 22
    tags: Mapping[str, str] = field(default_factory=empty)
    state_reason: str = ""
    zone: str = ""
    private_address: str | None = None  # where other instances of the region reach it


@dataclass(frozen=True)
class Leftovers:
    """What is ours in a region beside instances."""

    key_names: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    volume_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class SshTarget:
    """How to reach a unit and whom to believe. `host_key` is one OpenSSH public key line: "ssh-ed25519 AAAA..."."""

    host: str
    port: int
    user: str
    key_path: Path
    host_key: str
    jump: str = ""  # the host to go through, as in `plan.jumping`


@dataclass(frozen=True)
class LaunchRecord:
    launch_id: str
    place: Place
    state: LaunchState
    request: LaunchRequest
    user: str  # login user of the image
    client_id: str  # which client process launched it
    deadline: datetime
    on_exit: OnExit
    host_key: str  # public half of the key in user-data
    created_at: datetime
    architecture: str = ""  # of the image; "" where an older cloudrun launched it
    detail: str = ""  # why it was refused or is unresolved
    ssh_jump: str = ""  # the host that its machines are reached through


@dataclass(frozen=True)
class UnitRecord:
    instance_id: str
    launch_id: str
    place: Place
    state: UnitState
    instance_type: str
    user: str
    address: str | None
    ssh_port: int
    host_key: str  # what is pinned now
    deadline: datetime
    on_exit: OnExit
    client_id: str
    created_at: datetime
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    ssh_jump: str = ""  # as in its launch
    stopped_at: datetime | None = None  # since when it is stopped, where it is
    stopped_s: float = 0.0  # how long it was stopped before


@dataclass(frozen=True)
class MachineTimes:
    """Of a machine that is over, beside its work, in seconds: from asking for it to its first run, what the environment
    of that took, and from its last run's end to its own. `environment`: the fingerprint of the first run's."""

    boot_s: float
    provision_s: float
    end_s: float
    environment: str = ""


@dataclass(frozen=True)
class ClientRecord:
    """A process that acts on units: enough to tell, on the same computer, whether it still lives."""

    client_id: str
    host: str
    boot_id: str
    pid: int
    pid_started: str  # the kernel's start time of that pid, against reuse
    heartbeat_at: datetime
