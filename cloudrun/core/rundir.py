"""The run directory: the protocol between a client and a unit. This module alone knows its file names and JSON.

It runs on both sides, so it uses the standard library only, in a subset that stays valid on Python 3.9.

    ~/.cloudrun/
      agent/<digest>.pyz            the agent, named by its content
      envs/<fingerprint>/           one environment; `.ready` inside it appears last
      envs/<fingerprint>.seal       what it was when it was built, for copies of it (`agent.environments`)
      data/<key>/                   data that runs share; `data/<key>.ready` appears last
      trees/<key>/                  a project that waiting runs share: work/ and shipped.json, as in a run's own
      orders.json                   deadline and idleness   written by the agent for its unit's owner
      news.json                     what became of the unit written by the warden
      warden.lock warden.sock       held and served by the warden, the one process that outlives all connections
      keeper.lock                   held by whoever starts another warden should it be killed while runs wait
      clients.lock                  held, shared, by every channel whose client does more than look
      runs/<run_id>.<attempt>/
        spec.json                   what to run            written by the client, before the start
        queued.json                 it waits for its turn  written by the client, in place of a start
        shipped.json                what code was shipped  written by the agent while it receives
        work/                       the project; the job's working directory is in it
        tmp/                        the job's TMPDIR
        stdout.log stderr.log       what the job printed, byte for byte
        status.json                 where the job is       written by the agent, always whole
        heartbeat                   touched by the agent while the job lives
        outputs.json                what the job made      written by the agent, before status says "exited"
        ended.json                  how its process ended  written by whoever was its parent, for whoever was not
        cancel.json                 a wish to end it       written by the agent for a client, or by the warden
        stored.json                 it is in the bucket    written by the warden
        home.json                   a client has it all    written by the agent for a client: the directory may go
        incoming/                   files on their way, by digest: a transfer that was cut goes on from here
        supervisor.lock             held by whoever supervises the job, free once nobody does
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional

SCHEMA_VERSION = 1
DOCUMENT_MAX_BYTES = 16 * 1024 * 1024  # what a job has put in a document's place may be endless
LIST_MAX_BYTES = 512 * 1024 * 1024  # of one that names files: 400,000 have 100 MB of names
BASE = ".cloudrun"  # below the login user's home
RUNS = BASE + "/runs"
ORDERS = BASE + "/orders.json"
NEWS = BASE + "/news.json"
INDEX_LOGINS = BASE + "/netrc"  # while an environment is built from a private index
WARDEN_LOCK = BASE + "/warden.lock"
WARDEN_SOCKET = BASE + "/warden.sock"
KEEPER_LOCK = BASE + "/keeper.lock"
CLIENTS_LOCK = BASE + "/clients.lock"
ENVIRONMENTS_TOLD = 100  # of those that a unit has, as an agent greets its client
# Why the agent ended a job, as `status.json` says it; a job that ended by itself has none.
REASONS = ("cancelled", "deadline", "interrupted", "wall_time", "memory", "disk")


_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]|(?:^|/)\.{0,2}(?:/|\Z)")  # asked of 100,000 names at a time


class RunDir:
    """Paths and JSON of one attempt's directory. `root` may be absolute or relative to the home of the login user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec = root / "spec.json"
        self.queued = root / "queued.json"
        self.shipped = root / "shipped.json"
        self.work = root / "work"
        self.tmp = root / "tmp"
        self.stdout = root / "stdout.log"
        self.stderr = root / "stderr.log"
        self.status = root / "status.json"
        self.heartbeat = root / "heartbeat"
        self.outputs = root / "outputs.json"
        self.ended = root / "ended.json"
        self.cancel = root / "cancel.json"
        self.stored = root / "stored.json"
        self.home = root / "home.json"
        self.incoming = root / "incoming"
        self.lock = root / "supervisor.lock"


def run_dir(run_id: str, attempt: int) -> str:
    """The directory of an attempt, relative to the login user's home."""
    return "{}/{}.{}".format(RUNS, run_id, attempt)


def agent_path(digest: str) -> str:
    return "{}/agent/{}.pyz".format(BASE, digest)


def env_dir(fingerprint: str) -> str:
    return "{}/envs/{}".format(BASE, fingerprint)


def env_ready(fingerprint: str) -> str:
    """The marker whose presence means that the environment is complete."""
    return env_dir(fingerprint) + "/.ready"


def environments_ready() -> List[str]:
    """The fingerprints of complete environments below the working directory; where there are many, of some."""
    try:
        return [name for name in os.listdir(BASE + "/envs")[:ENVIRONMENTS_TOLD] if os.path.lexists(env_ready(name))]
    except OSError:
        return []


def env_python(fingerprint: str) -> str:
    return env_dir(fingerprint) + "/bin/python"


def data_dir(key: str) -> str:
    """The folder of a data set on a unit, relative to the login user's home."""
    return "{}/data/{}".format(BASE, key)


def tree_dir(key: str) -> str:
    """Where a project is that many waiting runs share, relative to the login user's home: a run directory of no run."""
    return "{}/trees/{}".format(BASE, key)


def wheel_path(sha256: str, name: str) -> str:
    """Where a wheel of the client's computer is while environments are built from it."""
    return "{}/wheels/{}/{}".format(BASE, sha256, name)


def data_ready(key: str) -> str:
    """The marker whose presence means that the data set is complete."""
    return data_dir(key) + ".ready"


def spec(
    run_id: str,
    attempt: int,
    argv: List[str],
    cwd: str,
    env: Dict[str, str],
    output_max_bytes: int,
    output_max_files: int,
    grace_s: float,
    *,
    wall_time_s: Optional[float] = None,
    memory_bytes: Optional[int] = None,
    disk_bytes: Optional[int] = None,
    fresh: bool = False,
    preload: Optional[List[str]] = None,
    more: bool = False,
    data: Optional[Dict[str, str]] = None,
    upload: Optional[Dict[str, Any]] = None,
) -> Dict[str, Any]:
    """A job. `argv[0]` may be relative to the home; `cwd` is relative to work/; sizes in bytes, times in seconds.

    `wall_time_s`, `memory_bytes`, `disk_bytes`: limits; None is none. `fresh`: never a fork. `preload`: modules that
    the job will import, for a parent of later jobs; `more`: such jobs follow, so that it is worth waiting for. `data`:
    link below work/ -> what it leads to, below data/ (a data set's key, or a file in it). `upload`: the fields of
    `core.records.Upload`, or None where there is no bucket.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "attempt": attempt,
        "argv": argv,
        "cwd": cwd,
        "env": env,
        "output_max_bytes": output_max_bytes,
        "output_max_files": output_max_files,
        "grace_s": grace_s,
        "wall_time_s": wall_time_s,
        "memory_bytes": memory_bytes,
        "disk_bytes": disk_bytes,
        "fresh": fresh,
        "preload": preload or [],
        "more": more,
        "data": data or {},
        "upload": upload,
    }


def write_json(path: Path, value: Any, *, durably: bool = True) -> None:
    """Replace `path` at once and durably: a reader sees the old document or the new one, never half of one.

    What says how far a job is that no machine's power loss leaves alive need not be `durably` written.
    """
    temporary = path.with_name(path.name + ".tmp{}.{}".format(os.getpid(), threading.get_ident()))
    try:
        with open(temporary, "w", encoding="utf-8", opener=never_waiting) as stream:
            json.dump(value, stream, separators=(",", ":"), ensure_ascii=True)
            if durably:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def never_waiting(path: str, flags: int) -> int:
    """An opener for files in whose place a job may have put a pipe that nobody reads, or a link."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def read_json(path: Path, most_bytes: int = LIST_MAX_BYTES) -> Optional[Any]:
    """The document, or None where there is none yet. Raises ValueError where it is not JSON, a named pipe for one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size > most_bytes:
            raise ValueError("{} is no document".format(path))
        stream = os.fdopen(descriptor, encoding="utf-8")
    except BaseException:
        os.close(descriptor)
        raise
    with stream:
        return json.load(stream)


def read_object(path: Path, most_bytes: int = DOCUMENT_MAX_BYTES) -> Optional[Dict[str, Any]]:
    """The JSON object, or None. For files that a job may have spoilt: what is none is taken for missing."""
    try:
        value = read_json(path, most_bytes)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def safe_relative(path: str) -> bool:
    """Whether a path from the other side may be joined to a directory of ours: relative, below it, no tricks.

    Refused: empty, absolute, a `.` or `..` or empty component, NUL, backslash or another control character.
    """
    return _UNSAFE.search(path) is None
