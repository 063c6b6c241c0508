"""What the jobs of these tests have in common: how they are started, what they print, which files they leave."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

from cloudrun.core import rundir
from cloudrun.core.records import FileEntry


class Printed:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.stdout = b""
        self.stderr = b""

    def __call__(self, stream: str, data: bytes) -> None:
        setattr(self, stream, getattr(self, stream) + data)


def spec(code: str, *, env: dict[str, str] | None = None, cwd: str = ".", argv: list[str] | None = None) -> Any:
    argv = argv or [sys.executable, "-S", "-c", code]  # not -I, which would ignore PYTHONUNBUFFERED
    return rundir.spec("run", 1, argv, cwd, env or {}, 1_000_000, 100, 1.0)


def entry_of(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(path.name, len(data), hashlib.sha256(data).hexdigest())
