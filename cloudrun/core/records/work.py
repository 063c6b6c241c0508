"""Runs: what they need, what they made, and what the ledger knows of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cloudrun.core.records.fleet import Place
from cloudrun.core.records.nothing import empty
from cloudrun.core.states import EndReason, GridState, RunState


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
    params: Mapping[str, Any] = field(default_factory=empty)
    end_reason: EndReason | None = None
    exit_code: int | None = None
    ended_at: datetime | None = None
    metric: str | None = None  # the primary score's name
    minimize: bool = False
    scores: Mapping[str, float] = field(default_factory=empty)
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
    submission: Mapping[str, Any] = field(default_factory=empty)  # its project's "root" and all "settings", as given
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
    spec: Mapping[str, Any] = field(default_factory=empty)  # the project's root, working directory, arguments, tables
    settings: Mapping[str, Any] = field(default_factory=empty)
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
