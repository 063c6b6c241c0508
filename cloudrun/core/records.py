"""The frozen records that cross layers. No boto3 dict and no paramiko object does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from cloudrun.core.states import EndReason, GridState, LaunchState, RunState, UnitState

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
    private_address: str | None = None  # where other instances of the region reach it


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
    jump: str = ""  # the host to go through, as in `plan.jumping`


@dataclass(frozen=True)
class CommandResult:
    exit_code: int
    stdout: str
    stderr: str


# -- what runs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """What a unit is to have beside Python: Debian packages, sorted, and what a playbook of the user's own does."""

    apt: tuple[str, ...] = ()
    playbook: str = ""  # an absolute path here
    playbook_digest: str = ""  # of its content, with what belongs to it


@dataclass(frozen=True)
class Wheel:
    path: str  # absolute, here
    sha256: str


@dataclass(frozen=True)
class Environment:
    """The Python environment a run needs, fully pinned. `fingerprint` digests all the rest, architecture included."""

    python: str  # "3.11"
    architecture: str  # "x86_64" or "arm64"
    requirements: tuple[str, ...]  # exact lines for `uv pip install`, sorted
    source: str  # where they came from, for people: "the imports of train.py", "requirements.txt", ...
    fingerprint: str
    system: System = field(default_factory=System)
    wheels: tuple[Wheel, ...] = ()  # of this computer, that it is built from
    # who one is to the indexes that it is built from, as a netrc file: in memory only, and in no message
    logins: str = field(default="", repr=False, compare=False)


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
class Usage:
    """What a job and everything it started took of its unit, as the kernel counted it."""

    cpu_user_s: float = 0.0
    cpu_system_s: float = 0.0
    peak_memory_bytes: int = 0  # the most that all its processes had resident at once, as far as it was sampled
    read_bytes: int = 0  # from storage
    written_bytes: int = 0  # to storage


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
    outputs: tuple[Artifact, ...] = ()  # what it had written when it was interrupted: the next attempt finds it
    store: str = ""  # "s3://bucket/prefix/" where its outputs go when no client is there


@dataclass(frozen=True)
class RunRecord:
    run_id: str
    name: str
    script: str  # relative to its project's root
    state: RunState
    created_at: datetime
    cwd: str = "."  # where it started, relative to that root
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
    usage: Usage | None = None
    cost_usd: float | None = None
    detail: str = ""  # first cause, in words, where it did not succeed
    attempts: int = 0
    submission: Mapping[str, Any] = field(default_factory=_empty)  # its project's "root" and all "settings", as given
    grid_id: str | None = None  # the grid that made it; later ones may have it as a cell too
    cell_key: str = ""  # digest of all that decides what comes of it; "" for a function that was given no key


@dataclass(frozen=True)
class GridRecord:
    """A grid as one object. `identity` digests all that makes the same command find it again."""

    grid_id: str
    name: str
    script: str  # relative to its project's root
    state: GridState
    created_at: datetime
    identity: str
    cells: int  # how many it has, whether they are in the ledger yet or not
    spec: Mapping[str, Any] = field(default_factory=_empty)  # the project's root, working directory, arguments, tables
    settings: Mapping[str, Any] = field(default_factory=_empty)
    budget_usd: float | None = None
    client_id: str = ""  # whose it is to go on with; "" for nobody's
    ended_at: datetime | None = None
    detail: str = ""  # why it stopped


@dataclass(frozen=True)
class CellRecord:
    """A cell of a grid and the run that stands for it."""

    number: int  # from 0
    run_id: str
    state: RunState  # of that run


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

    state: Literal["queued", "starting", "running", "exited"]
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str = ""  # why the agent ended it (`rundir.REASONS`); "" where it ended by itself
    started_at: float | None = None
    ended_at: float | None = None
    error: str = ""  # why it could not be started or collected
    usage: Usage | None = None


@dataclass(frozen=True)
class RunOnUnit:
    """One attempt's directory on a unit. `home`: a client has it all; `stored`: its outputs are in the bucket."""

    run_dir: str
    status: JobStatus | None
    home: bool = False
    stored: bool = False


@dataclass(frozen=True)
class SealedEnvironment:
    """An environment as it was built on a unit. `digest` stands for every byte that a copy of it has."""

    fingerprint: str
    digest: str
    files: int
    total_bytes: int


@dataclass(frozen=True)
class CopySource:
    """Where a unit finds another one. `host_key` as in `UnitRecord`; `private_key` is good for one copy."""

    address: str
    port: int
    user: str
    host_key: str
    private_key: str = field(repr=False)


@dataclass(frozen=True)
class UnitOrders:
    """What a client tells a unit's agent. `deadline` in seconds since 1970; `idle_s` None is never.

    `power_off_when_done`: as soon as every run has ended and is home or in the bucket, and no client is there.
    `spot`: look for interruption notices. `slots`: how many of the runs that wait on the unit may go on at a time; None
    leaves that as it was.
    """

    deadline: float
    idle_s: float | None = None
    spot: bool = False
    power_off_when_done: bool = False
    slots: int | None = None


@dataclass(frozen=True)
class UnitNews:
    """What a unit's agent has seen of its machine. Times in seconds since 1970 by the unit's clock, None for never."""

    interruption_at: float | None = None  # when the provider takes it back
    rebalance_at: float | None = None  # when it was said to be at risk
    power_off_at: float | None = None  # when the agent decided that its time is over
    why: str = ""


# -- what goes to a unit beside code ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upload:
    """Leave to put objects below one prefix of a bucket, and nothing else: a presigned POST, so no credentials."""

    url: str
    fields: Mapping[str, str]  # to be sent with each object, in this order, before `key` is completed and the file
    prefix: str  # every key begins so
    max_bytes: int  # of one object


@dataclass(frozen=True)
class StoredObject:
    """An object of a bucket. `etag` is what S3 calls this content of it, without quotes."""

    key: str
    size: int  # bytes
    etag: str


@dataclass(frozen=True)
class RemoteFile:
    """An object that a unit may fetch by its presigned address. `path` is where it goes below its data set."""

    path: str
    url: str
    size: int
    etag: str


@dataclass(frozen=True)
class DataSet:
    """Data that runs of a unit share. `key` names its content (a digest); `link` is where a job finds it below work/.

    Either `remote` files, or local ones: `entries` below `root`.
    """

    key: str
    link: str
    source: str  # as the user said it
    single: str = ""  # the name of its only file, where the source is a file and not a folder
    remote: tuple[RemoteFile, ...] = ()
    root: Path | None = None
    entries: tuple[FileEntry, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(file.size for file in self.remote) + sum(entry.size for entry in self.entries)
