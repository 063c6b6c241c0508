"""Every setting with its default. Where a value came from is `config`'s business; what it may be is said here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from cloudrun.core.records import OnExit

MEGABYTE = 1_000_000
GIGABYTE = 1_000_000_000


@dataclass(frozen=True)
class Settings:
    """Durations in seconds, sizes in bytes unless the name says GiB. None means "find out"."""

    provider: Literal["sandbox", "aws"] = "sandbox"  # nothing spends money until someone says `aws`
    region: str | None = None  # as AWS resolves it, else us-east-1
    profile: str | None = None  # a profile of ~/.aws
    instance_type: str = "m7i.large"
    fallback_types: tuple[str, ...] = ()  # in this order, where EC2 has none of `instance_type`
    image: str | None = None  # an AMI id; None is Canonical's current Ubuntu LTS
    user: str | None = None  # the image's login user; None is the image's own
    spot: bool = False
    max_price: float | None = None  # US dollars an hour that a spot machine may cost; None is the on-demand price
    budget: float | None = None  # US dollars that a run's machine, or a grid's machines, cannot cost more than
    zone: str | None = None  # an availability zone; None leaves it to EC2
    vpc: str | None = None  # None is the default VPC
    subnet: str | None = None
    security_group: str | None = None  # used as it is; None has one made for each launch
    address: Literal["public", "private"] | None = None  # which one to log in at; None: private behind a jump host
    ssh_from: str | None = None  # the network that may log in; None is this computer's address
    ssh_jump: str | None = None  # the host that machines are reached through: [user@]host[:port]
    volume_gib: int = 20
    volume_type: Literal["gp3", "gp2", "io2", "io1"] = "gp3"
    volume_iops: int | None = None  # None is the type's own
    volume_throughput: int | None = None  # MiB/s
    tags: tuple[str, ...] = ()  # "key=value", beside ours
    instance_profile: str | None = None  # the role that jobs have: its profile's name or ARN; None is none
    index_url: str | None = None  # a package index in place of PyPI, without credentials
    apt: tuple[str, ...] = ()  # Debian packages that jobs need on the machine
    playbook: str | None = None  # the user's own, run after ours: an absolute path once it was read
    deadline_s: float = 4 * 3600.0  # from the launch
    grace_s: float = 30.0  # between SIGTERM and SIGKILL
    idle_s: float | None = None  # with no run, no client and nothing to fetch; None: see `idle_limit_s`
    on_exit: OnExit = "terminate"
    wall_time_s: float | None = None  # limits of one run; None is none
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    fresh: bool = False  # a new interpreter for every job, instead of a fork of one that has imported what it needs
    bucket: str | None = None  # S3: where a unit puts outputs that nobody is there to fetch
    data: tuple[str, ...] = ()  # paths and s3:// addresses that a unit fetches once
    metric: str | None = None
    minimize: bool = False  # of `metric`, or without one of a run's first score; names like loss say it themselves
    ship_warn_bytes: int = 200 * MEGABYTE
    ship_refuse_bytes: int = 2 * GIGABYTE
    output_max_bytes: int = 10 * GIGABYTE
    output_max_files: int = 100_000
    boot_timeout_s: float = 600.0  # from `running` to a login
    provision_timeout_s: float = 1800.0
    terminate_timeout_s: float = 300.0


IDLE_S = 600.0
# Less free space than this at home and nothing is launched: the ledger itself needs room to say how a run ended.
LEAST_FREE_BYTES = 100 * MEGABYTE


def idle_limit_s(settings: Settings) -> float | None:
    """After how much idleness a unit powers itself off; a unit that is to be kept does so only where it is said."""
    if settings.idle_s is not None:
        return settings.idle_s
    return IDLE_S if settings.on_exit == "terminate" else None


NAMES = tuple(field.name for field in fields(Settings))
