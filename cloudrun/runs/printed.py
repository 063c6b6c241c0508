"""What a job prints, as it comes: handed on, counted, and kept on disk until the unit's own logs are home."""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cloudrun.core.events import Observer, Output

Stream = Literal["stdout", "stderr"]


def logs_in(folder: Path) -> dict[str, Path]:
    """The logs that a client keeps of an attempt in its folder, by name."""
    return {path.name: path for path in sorted(folder.glob("*.log"))}


class Printed:
    """The sink of `Agent.follow`. `offsets` says where another connection has to go on."""

    def __init__(self, folder: Path, observe: Observer) -> None:
        self._folder = folder
        self._observe = observe
        self.offsets: dict[str, int] = {"stdout": 0, "stderr": 0}

    def __call__(self, stream: Stream, data: bytes) -> None:
        self.offsets[stream] += len(data)
        with suppress(OSError):  # a full disk at home must not end the job; its unit has the log
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._path(stream).open("ab") as file:
                file.write(data)
        self._observe(Output(stream, data))

    def logs(self) -> Mapping[str, Path]:
        """Copies by the name of the log they are the beginning of."""
        return {path.name: path for path in map(self._path, self.offsets) if path.exists()}

    def discard(self, names: Container[str] | None = None) -> None:
        """Delete the copies of these logs, or all."""
        for name, path in self.logs().items():
            if names is None or name in names:
                path.unlink(missing_ok=True)

    def _path(self, stream: str) -> Path:
        return self._folder / f"{stream}.log"
