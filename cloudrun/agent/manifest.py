"""What a job made: the manifest of its outputs, with a reason for everything that was left out."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import Any, Iterator

from cloudrun.core.rundir import LIST_MAX_BYTES, RunDir, never_waiting, read_object, safe_relative

CHUNK = 1024 * 1024
REASONS_KEPT = 1000  # how many left-out files are named one by one; the rest is counted
SETTLE_NS = 50_000_000  # a file system's clock ticks up to 10 ms apart: a change within this is not seen in the ctime
SKIPPED_FOLDERS = frozenset({"__pycache__"})  # Python's own cache is nobody's result
KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)


class LeftOut:
    """Names and reasons, in bounded memory."""

    def __init__(self) -> None:
        self.named: list[tuple[str, str]] = []
        self.unnamed = 0

    def add(self, name: str, reason: str) -> None:
        if len(self.named) < REASONS_KEPT:
            self.named.append((name, reason))
        else:
            self.unnamed += 1

    def as_json(self) -> list[tuple[str, str]]:
        more = [(f"({self.unnamed} more)", "not listed one by one")] if self.unnamed else []
        return self.named + more


def fingerprint(info: os.stat_result) -> list[int]:
    """What changes when a file does. The ctime is the kernel's: no program can set it back."""
    return [info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]


def _record(entry: Any) -> dict[str, Any] | None:
    """What shipped.json says of a file, unless a job has spoilt it."""
    is_one = isinstance(entry, dict) and isinstance(entry.get("stat"), list) and len(entry["stat"]) == 4
    return entry if is_one and isinstance(entry.get("sha256"), str) else None


def _written(before: list[int], info: os.stat_result) -> bool:
    """Whether a file was made anew, or written with the very bytes it had: a job's result all the same."""
    return [before[0], before[2]] != [info.st_ino, info.st_mtime_ns]


def file_digest(path: str, limit: int | None = None) -> tuple[int, str]:
    """Size and SHA-256 of a regular file, or of its first `limit` bytes. Raises OSError; never follows a link."""
    digest = hashlib.sha256()
    size = 0
    with open(path, "rb", buffering=0, opener=never_waiting) as stream:
        while limit is None or size < limit:
            chunk = stream.read(CHUNK if limit is None else min(CHUNK, limit - size))
            if not chunk:
                break
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def outputs(run: RunDir, max_bytes: int, max_files: int, since_ns: int) -> dict[str, Any]:
    """The manifest of everything below work/ that was not shipped, or was written since.

    `since_ns` is when the job started, by the file system's clock: what was shipped just before is compared by content.
    Files come in the order of their names. One that would pass `max_bytes`, or comes after `max_files`, is left out,
    and `refused` says so; smaller ones behind it still come.
    """
    shipped = read_object(run.shipped, LIST_MAX_BYTES) or {}
    data = (read_object(run.spec) or {}).get("data")
    data = data if isinstance(data, dict) else {}  # a job may have spoilt it
    left_out = LeftOut()
    entries: list[dict[str, Any]] = []
    total = 0
    refused = ""
    for name, path in _files(str(run.work), left_out):
        try:
            info = os.stat(path, follow_symlinks=False)
            if name in data and stat.S_ISLNK(info.st_mode) and _leads_to_data(run, path, data[name]):
                continue  # the agent made it, and what it leads to is nobody's output
            if not stat.S_ISREG(info.st_mode):
                left_out.add(name, _kind(path, info.st_mode))
                continue
            before = _record(shipped.get(name))
            settled = info.st_ctime_ns < since_ns - SETTLE_NS
            if before and settled and before["stat"] == fingerprint(info):
                continue
            if len(entries) >= max_files:
                refused = f"the job made more than {max_files} files"
                left_out.add(name, f"over the limit of {max_files} files")
                continue
            if total + info.st_size > max_bytes:
                refused = f"the job made more than {max_bytes} bytes"
                left_out.add(name, f"{info.st_size} bytes, over the limit of {max_bytes} bytes for all outputs")
                continue
            size, digest = file_digest(path, info.st_size)
        except OSError as error:
            left_out.add(name, error.strerror or "unreadable")
            continue
        if before and before["sha256"] == digest and not _written(before["stat"], info):
            continue
        total += size
        entries.append({"path": name, "size": size, "sha256": digest, "mode": stat.S_IMODE(info.st_mode)})
    return {"entries": entries, "left_out": left_out.as_json(), "refused": refused, "logs": logs(run)}


def remove_unchanged(run: RunDir, made: dict[str, Any]) -> None:
    """Remove what was shipped and is no output: nobody asks for it again."""
    outputs = {entry["path"] for entry in made["entries"]}
    for name in read_object(run.shipped, LIST_MAX_BYTES) or {}:
        if name not in outputs and safe_relative(name):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(run.work, name))


def _leads_to_data(run: RunDir, path: str, key: str) -> bool:
    folder = os.path.abspath(run.root.parent.parent / "data" / str(key))
    target = os.readlink(path)
    return target == folder or os.path.dirname(target) == folder


def logs(run: RunDir) -> list[dict[str, Any]]:
    """Entries of the job's logs, by their names in the run directory."""
    entries = []
    for path in (run.stdout, run.stderr):
        try:
            info = os.lstat(path)
            if not stat.S_ISREG(info.st_mode):
                continue
            size, digest = file_digest(str(path), info.st_size)  # nothing ends one that still grows
        except OSError:
            continue
        entries.append({"path": path.name, "size": size, "sha256": digest, "mode": 0o644})
    return entries


def _files(top: str, left_out: LeftOut) -> Iterator[tuple[str, str]]:
    """Every file below `top` as (name, path), in the order of names; names that could do harm are left out."""
    waiting = [""]  # not os.walk, which calls itself for each level: a job may make more of them than that can bear
    while waiting:
        prefix = waiting.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(os.path.join(top, prefix)) as listing:
                for entry in listing:
                    (folders if entry.is_dir(follow_symlinks=False) else files).append(entry.name)
        except OSError as error:
            left_out.add(ascii(prefix[:-1] or "."), error.strerror or "unreadable")
            continue
        below = []
        for name in sorted(folders):
            if name in SKIPPED_FOLDERS:
                continue
            if _writable_name(prefix + name):
                below.append(f"{prefix}{name}/")
            else:
                left_out.add(repr(prefix + name), "a folder whose name is not plain text")
        waiting += reversed(below)
        for name in sorted(files):
            if _writable_name(prefix + name):
                yield prefix + name, os.path.join(top, prefix + name)
            else:
                left_out.add(repr(prefix + name), "its name is not plain text")


def _writable_name(name: str) -> bool:
    try:
        name.encode("utf-8")  # a name that is not UTF-8 reaches us with surrogates in it
    except UnicodeEncodeError:
        return False
    return safe_relative(name)


def _kind(path: str, mode: int) -> str:
    for matches, words in KINDS:
        if matches(mode):
            return words + (f" to {os.readlink(path)!a}" if stat.S_ISLNK(mode) else "")
    return "not a regular file"
