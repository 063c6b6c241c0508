"""The run directory: the protocol between a client and a unit. This module alone knows its file names and JSON.

It runs on both sides, so it uses the standard library only, in a subset that stays valid on Python 3.9.

    ~/.cloudrun/
      agent/<digest>.pyz            the agent, named by its content
      envs/<fingerprint>/           one environment; `.ready` inside it appears last
      runs/<run_id>.<attempt>/
        spec.json                   what to run            written by the client, before the start
        shipped.json                what code was shipped  written by the agent while it receives
        work/                       the project; the job's working directory is in it
        tmp/                        the job's TMPDIR
        stdout.log stderr.log       what the job printed, byte for byte
        status.json                 where the job is       written by the agent, always whole
        heartbeat                   touched by the agent while the job lives
        outputs.json                what the job made      written by the agent, before status says "exited"
        cancel.json                 a wish to end it       written by the agent for a client
        supervisor.lock             held by whoever supervises the job, free once nobody does
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional

SCHEMA_VERSION = 1
BASE = ".cloudrun"  # below the login user's home


class RunDir:
    """Paths and JSON of one attempt's directory. `root` may be absolute or relative to the home of the login user."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.spec = root / "spec.json"
        self.shipped = root / "shipped.json"
        self.work = root / "work"
        self.tmp = root / "tmp"
        self.stdout = root / "stdout.log"
        self.stderr = root / "stderr.log"
        self.status = root / "status.json"
        self.heartbeat = root / "heartbeat"
        self.outputs = root / "outputs.json"
        self.cancel = root / "cancel.json"
        self.lock = root / "supervisor.lock"


def run_dir(run_id: str, attempt: int) -> str:
    """The directory of an attempt, relative to the login user's home."""
    return "{}/runs/{}.{}".format(BASE, run_id, attempt)


def agent_path(digest: str) -> str:
    return "{}/agent/{}.pyz".format(BASE, digest)


def env_dir(fingerprint: str) -> str:
    return "{}/envs/{}".format(BASE, fingerprint)


def env_ready(fingerprint: str) -> str:
    """The marker whose presence means that the environment is complete."""
    return env_dir(fingerprint) + "/.ready"


def env_python(fingerprint: str) -> str:
    return env_dir(fingerprint) + "/bin/python"


def spec(
    run_id: str,
    attempt: int,
    argv: List[str],
    cwd: str,
    env: Dict[str, str],
    output_max_bytes: int,
    output_max_files: int,
    grace_s: float,
) -> Dict[str, Any]:
    """A job. `argv[0]` may be relative to the home; `cwd` is relative to work/; sizes in bytes, times in seconds."""
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
    }


def write_json(path: Path, value: Any) -> None:
    """Replace `path` at once and durably: a reader sees the old document or the new one, never half of one."""
    temporary = path.with_name(path.name + ".tmp{}.{}".format(os.getpid(), threading.get_ident()))
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, separators=(",", ":"), ensure_ascii=True)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Optional[Any]:
    """The document, or None where there is none yet. Raises ValueError where it is not JSON, a named pipe for one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, encoding="utf-8") as stream:
        return json.load(stream)


def read_object(path: Path) -> Optional[Dict[str, Any]]:
    """The JSON object, or None. For files that a job may have spoilt: what is none is taken for missing."""
    try:
        value = read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def safe_relative(path: str) -> bool:
    """Whether a path from the other side may be joined to a directory of ours: relative, below it, no tricks.

    Refused: empty, absolute, a `.` or `..` or empty component, NUL, backslash or another control character.
    """
    if not path or path.startswith("/") or "\\" in path:
        return False
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))
