"""What a unit says that a job has made and how it went, distrusted: the same checks whichever way it came home."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from cloudrun.core import rundir
from cloudrun.core.errors import ManifestRefused
from cloudrun.core.records import FileEntry, JobStatus, Usage

_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHAPELESS = (AttributeError, KeyError, TypeError, ValueError, OverflowError)
_STATES = ("queued", "starting", "running", "exited")


@dataclass(frozen=True)
class Outputs:
    """The manifest of a finished job. `left_out` are (name, reason); `refused` says which limit it passed, or "".

    `versions`, `python` and `platform` are of the job's own environment, for the passport; empty where unknown.
    """

    entries: tuple[FileEntry, ...]
    logs: tuple[FileEntry, ...]  # "stdout.log" and "stderr.log"
    left_out: tuple[tuple[str, str], ...]
    refused: str
    versions: Mapping[str, str]
    python: str
    platform: str


def parse_outputs(manifest: Mapping[str, Any]) -> Outputs:
    """A unit's outputs.json. Raises ManifestRefused where it makes no sense or names a path that could do harm."""
    try:
        return Outputs(
            entries=_entries(manifest["entries"]),
            logs=_entries(manifest["logs"]),
            left_out=tuple((str(name), str(reason)) for name, reason in manifest["left_out"]),
            refused=str(manifest["refused"]),
            versions={str(name): str(version) for name, version in manifest.get("versions", {}).items()},
            python=str(manifest.get("python", "")),
            platform=str(manifest.get("platform", "")),
        )
    except _SHAPELESS as error:
        raise ManifestRefused(f"the unit's manifest has a shape nobody knows: {error!r}") from error


def parse_status(status: Mapping[str, Any]) -> JobStatus:
    """A unit's status.json; what a newer agent adds is left out. Raises ManifestRefused where it makes no sense."""
    try:
        if status["state"] not in _STATES:
            raise ValueError(status["state"])
        usage = status.get("usage")
        return JobStatus(
            state=cast("Literal['queued', 'starting', 'running', 'exited']", status["state"]),
            pid=_whole(status.get("pid")),
            exit_code=_whole(status.get("exit_code")),
            signal=_whole(status.get("signal")),
            reason=str(status.get("reason") or ""),
            started_at=_moment(status.get("started_at")),
            ended_at=_moment(status.get("ended_at")),
            error=str(status.get("error") or ""),
            usage=None if usage is None else _usage(usage),
        )
    except _SHAPELESS as error:
        raise ManifestRefused(f"the unit's word on a job has a shape nobody knows: {error!r}") from error


def _usage(told: Mapping[str, Any]) -> Usage:
    return Usage(
        cpu_user_s=float(told.get("cpu_user_s", 0.0)),
        cpu_system_s=float(told.get("cpu_system_s", 0.0)),
        peak_memory_bytes=int(told.get("peak_memory_bytes", 0)),
        read_bytes=int(told.get("read_bytes", 0)),
        written_bytes=int(told.get("written_bytes", 0)),
    )


def _whole(value: Any) -> int | None:
    return None if value is None else int(value)


def _moment(value: Any) -> float | None:
    return None if value is None else float(value)


def _entries(listed: Sequence[Mapping[str, Any]]) -> tuple[FileEntry, ...]:
    """Entries as the unit lists them. Raises ManifestRefused for one that could do harm."""
    entries = {}
    for item in listed:
        entry = FileEntry(str(item["path"]), int(item["size"]), str(item["sha256"]), int(item["mode"]) & 0o777)
        if not rundir.safe_relative(entry.path) or entry.size < 0 or not _SHA256.fullmatch(entry.sha256):
            raise ManifestRefused(f"the unit's manifest names {entry.path!r}, which is refused")
        entries[entry.path] = entry
    return tuple(entries.values())
