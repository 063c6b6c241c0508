"""What a job prints, as it comes: handed on, counted, and kept on disk until the unit's own logs are home."""

from __future__ import annotations

from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from cloudrun.core.events import Observer, Output
from cloudrun.plan.scores import scores_from

Stream = Literal["stdout", "stderr"]

SCORES_TAIL_BYTES = 1_000_000  # of stdout, where scores are looked for


def logs_in(folder: Path) -> dict[str, Path]:
    """The logs that a client keeps of an attempt in its folder, by name."""
    return {path.name: path for path in sorted(folder.glob("*.log"))}


def scores_tail(path: Path) -> str:
    """The last whole lines of a file: half a line could read as a score that nobody printed."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - SCORES_TAIL_BYTES))
        if size > SCORES_TAIL_BYTES:
            stream.readline(SCORES_TAIL_BYTES)
        return stream.read().decode(errors="replace")


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

    def has_scores(self) -> bool:
        """Whether what it has printed so far would give it scores."""
        with suppress(OSError):
            return bool(scores_from(scores_tail(self._path("stdout")), None))
        return False

    def discard(self, names: Container[str] | None = None) -> None:
        """Delete the copies of these logs, or all."""
        for name, path in self.logs().items():
            if names is None or name in names:
                path.unlink(missing_ok=True)

    def _path(self, stream: str) -> Path:
        return self._folder / f"{stream}.log"
