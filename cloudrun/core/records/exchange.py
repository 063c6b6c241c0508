"""What a client and a unit tell each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cloudrun.core.records.work import Usage


@dataclass(frozen=True)
class CommandResult:
    exit_code: int
    stdout: str
    stderr: str


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
class ComingJobs:
    """What the jobs are like that a unit is about to get: their `environment`'s fingerprint, and one of them, as
    `rundir.spec` has it. A unit that has the environment makes ready for them."""

    environment: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class UnitNews:
    """What a unit's agent has seen of its machine. Times in seconds since 1970 by the unit's clock, None for never."""

    interruption_at: float | None = None  # when the provider takes it back
    rebalance_at: float | None = None  # when it was said to be at risk
    power_off_at: float | None = None  # when the agent decided that its time is over
    why: str = ""


@dataclass(frozen=True)
class Upload:
    """Leave to put objects below one prefix of a bucket, and nothing else: a presigned POST, so no credentials."""

    url: str
    fields: Mapping[str, str]  # to be sent with each object, in this order, before `key` is completed and the file
    prefix: str  # every key begins so
    max_bytes: int  # of one object
