"""The frozen records that cross layers. No boto3 dict and no paramiko object does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState

OnExit = Literal["terminate", "stop", "keep"]
EMPTY: Mapping[str, Any] = MappingProxyType({})


def _empty() -> Mapping[str, Any]:
    return EMPTY  # as a plain default it is refused on Python 3.11, where a mapping proxy has no hash


# -- the cloud -------------------------------------------------------------------------------------------------------


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


@dataclass(frozen=True)
class Instance:
    """One EC2 instance as `DescribeInstances` last told it. `state` is EC2's own word."""

    instance_id: str
    state: str  # pending | running | shutting-down | terminated | stopping | stopped
    instance_type: str
    launched_at: datetime | None
    address: str | None  # public, else private; None until there is one
    ssh_port: int = 22
    tags: Mapping[str, str] = field(default_factory=_empty)
    state_reason: str = ""
    zone: str = ""


@dataclass(frozen=True)
class Leftovers:
    """What is ours in a region beside instances."""

    key_names: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    volume_ids: tuple[str, ...] = ()


# -- the way to a unit -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SshTarget:
    """How to reach a unit and whom to believe. `host_key` is one OpenSSH public key line: "ssh-ed25519 AAAA..."."""

    host: str
    port: int
    user: str
    key_path: Path
    host_key: str


@dataclass(frozen=True)
class CommandResult:
    exit_code: int
    stdout: str
    stderr: str


# -- what runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """The Python environment a run needs, fully pinned. `fingerprint` digests all the rest, architecture included."""

    python: str  # "3.11"
    architecture: str  # "x86_64" or "arm64"
    requirements: tuple[str, ...]  # exact lines for `uv pip install`, sorted
    source: str  # where they came from, for people: "the imports of train.py", "requirements.txt", ...
    fingerprint: str


@dataclass(frozen=True)
class FileEntry:
    """A file by content. `path` is relative, with forward slashes; `sha256` is hexadecimal."""

    path: str
    size: int
    sha256: str
    mode: int = 0o644


@dataclass(frozen=True)
class Artifact:
    path: str
    size: int  # bytes
    sha256: str
    kind: str = "output"  # "output" | "log"


@dataclass(frozen=True)
class Passport:
    """What a model was made with. Versions as in `1.9.1`; an absent package has none."""

    python: str
    packages: Mapping[str, str]  # numpy, scipy, scikit-learn, joblib
    platform: str
    code_digest: str = ""
    data_digest: str = ""
    environment_digest: str = ""


@dataclass(frozen=True)
class Timings:
    """Seconds by phase. What did not happen is 0."""

    launch_s: float = 0.0
    boot_s: float = 0.0
    provision_s: float = 0.0
    ship_s: float = 0.0
    run_s: float = 0.0
    pull_s: float = 0.0
    terminate_s: float = 0.0
    total_s: float = 0.0


# -- rows of the ledger ----------------------------------------------------------------------------------------------


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
    detail: str = ""  # why it was refused or is unresolved


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


@dataclass(frozen=True)
class AttemptRecord:
    run_id: str
    number: int  # from 1
    instance_id: str
    state: RunState
    started_at: datetime
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    exit_code: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class RunRecord:
    run_id: str
    name: str
    script: str
    state: RunState
    created_at: datetime
    arguments: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=_empty)
    end_reason: EndReason | None = None
    exit_code: int | None = None
    ended_at: datetime | None = None
    metric: str | None = None  # the primary score's name
    minimize: bool = False
    scores: Mapping[str, float] = field(default_factory=_empty)
    artifacts: tuple[Artifact, ...] = ()
    passport: Passport | None = None
    code_digest: str = ""
    data_digest: str = ""
    environment_digest: str = ""
    instance_id: str | None = None
    instance_type: str | None = None
    place: Place | None = None
    timings: Timings = field(default_factory=Timings)
    cost_usd: float | None = None
    detail: str = ""  # first cause, in words, where it did not succeed
    attempts: int = 0


@dataclass(frozen=True)
class ClientRecord:
    """A process that acts on units: enough to tell, on the same computer, whether it still lives."""

    client_id: str
    host: str
    boot_id: str
    pid: int
    pid_started: str  # the kernel's start time of that pid, against reuse
    heartbeat_at: datetime


# -- what the job's machine tells ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobStatus:
    """`status.json` of a run directory. Times are seconds since 1970 by the unit's clock."""

    state: Literal["starting", "running", "exited"]
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""  # why the agent ended it: "cancelled", "wall_time", ...; "" where it ended by itself
    started_at: float | None = None
    ended_at: float | None = None
    error: str = ""  # why it could not be started or collected
