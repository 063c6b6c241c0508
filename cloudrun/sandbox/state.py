"""Where a sandbox keeps itself: its directory, locks and `region.json`, shared by the daemon and its clients.

region.json    how to reach the region that runs, in a form of its version's; removed first when it stops
daemon.lock    held (flock) by the daemon for its life, the one proof that a region is there; names the process
start.lock     held by whoever starts a region, or decides that it has been idle long enough
daemon.log     what the daemon printed
units/         one directory per instance
cache/         the package mirror's
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cloudrun.core.errors import SandboxError

Driver = Literal["namespaces", "plain", "nspawn"]
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Region:
    """A region on localhost that runs, and what a client presents to it. Holds a secret: never print it unasked."""

    endpoint_url: str
    region: str
    access_key: str
    secret_key: str
    generation: str  # a new one each time a region is started: units of another generation are gone
    pid: int
    version: str  # of the cloudrun that it is
    python: str  # the program it runs with, and starts machines with
    driver: Driver
    weaker: tuple[str, ...]  # what the driver cannot promise on this computer, as sentences


class StateDir:
    """The paths below a sandbox's directory, made with mode 0700 where they are missing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.region = root / "region.json"
        self.daemon_lock = root / "daemon.lock"
        self.start_lock = root / "start.lock"
        self.log = root / "daemon.log"
        self.units = root / "units"
        self.cache = root / "cache"

    def create(self) -> None:
        """Raises SandboxError where the directory cannot be made or belongs to somebody else."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self.root.stat().st_uid != os.getuid():
                raise SandboxError(
                    f"{self.root} belongs to another user, so a sandbox in it could be somebody else's.",
                    next_step="Set CLOUDRUN_SANDBOX_DIR to a directory of your own.",
                )
            self.root.chmod(0o700)
            self.units.mkdir(exist_ok=True, mode=0o700)
            self.cache.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise SandboxError(
                f"The sandbox's directory {self.root} cannot be made: {error.strerror}.",
                next_step="Set CLOUDRUN_SANDBOX_DIR to a directory you may write to.",
            ) from error

    def read_region(self) -> Region | None:
        """What `region.json` says, or None where there is none that can be read; it may be of a region long gone."""
        try:
            document = json.loads(self.region.read_text(encoding="utf-8"))
            if document.pop("schema_version") != SCHEMA_VERSION:
                return None
            return Region(**{**document, "weaker": tuple(document["weaker"])})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write_region(self, region: Region) -> None:
        """Whole or not at all, readable by the user alone."""
        document = {"schema_version": SCHEMA_VERSION, **asdict(region)}
        temporary = self.region.with_name("region.json.tmp")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(document, stream, indent=1)
        temporary.replace(self.region)

    def sign_lock(self) -> None:
        """The daemon says who holds its lock; whoever reads it must see that it is held."""
        self.daemon_lock.write_text(f"{os.getpid()} {process_started(os.getpid())}", encoding="utf-8")

    def daemon_pid(self) -> int | None:
        """The process that holds the daemon's lock, or None where it is not sure to be that one and may not be ended.

        A pid is believed together with the time that its process was started at, because pids are used again.
        """
        if not self.daemon_runs():
            return None
        pid, _, started = self.daemon_lock.read_text(encoding="utf-8").partition(" ")
        return int(pid) if pid.isdigit() and started and process_started(int(pid)) == started else None

    def daemon_runs(self) -> bool:
        """Whether a daemon holds its lock now. A kill -9 releases it, and a reused pid does not hold it."""
        try:
            with locked(self.daemon_lock, timeout_s=0.0, shared=True):
                return False
        except Locked:
            return True


class Locked(Exception):
    """Somebody else holds the lock, and held it for the whole of the time allowed."""


def state_dir() -> StateDir:
    """$CLOUDRUN_SANDBOX_DIR, else `cloudrun/sandbox` in the XDG state directory."""
    if explicit := os.environ.get("CLOUDRUN_SANDBOX_DIR"):
        return StateDir(Path(explicit).absolute())
    state_home = os.environ.get("XDG_STATE_HOME") or ""
    if Path(state_home).is_absolute():
        return StateDir(Path(state_home) / "cloudrun" / "sandbox")
    try:
        return StateDir(Path.home() / ".local" / "state" / "cloudrun" / "sandbox")
    except RuntimeError as error:
        raise SandboxError(
            "This user has no home, where a sandbox would be kept.",
            next_step="Set CLOUDRUN_SANDBOX_DIR to a directory of your own.",
        ) from error


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float, shared: bool = False) -> Iterator[None]:
    """Hold a lock file for the block. Raises Locked where it was not to be had within `timeout_s` seconds.

    The file is never removed: two processes would then lock two files of one name.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise Locked(path) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


def process_started(pid: int) -> str:
    """The system's start time of a process as text, which tells it from a later one of the same pid; "" if it is gone.

    Field 22 of /proc/PID/stat (proc_pid_stat(5)), counted behind the command's name, which may hold anything;
    where there is no /proc (macOS), what ps says.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        state, *fields = stat.rpartition(")")[2].split()
        return "" if state in ("Z", "X") else fields[18]
    told = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=10, check=False
    )
    return told.stdout.strip()
