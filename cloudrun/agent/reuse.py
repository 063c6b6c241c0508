"""What a unit has already of a project: its own first try, the tree of a run that is home, files of other runs.

Nothing is taken on trust that may have changed. A file's stat fingerprint holds the ctime, which no program can set
back, and counts only where that ctime is clearly older than the record of it (the file system's clock ticks; git calls
such entries racy). Everything else is digested again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Callable, Iterator, Optional, Tuple

from cloudrun.agent import durable
from cloudrun.agent.manifest import SETTLE_NS, fingerprint
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir

Entry = Tuple[str, int, str, int]  # path, size, sha256, mode
Known = Tuple[str, Any]  # sha256, stat fingerprint

CHUNK = 1024 * 1024
RUNS_SEARCHED = 32  # how many earlier runs are asked for files, the newest first
TREES_WEIGHED = 4  # and how many of those that are home whether their whole tree is worth taking
WHOLE_MAX_BYTES = 64 * 1024 * 1024  # of a shipped.json that is read as a whole: some 300,000 files
LINE_MAX_BYTES = 64 * 1024  # of one file's: its name has 4096 bytes at most, which JSON makes six times as long
FOLDER_MODE = 0o700
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')


def write_shipped(run: RunDir, entries: list[Entry], stats: dict[int, list[int]]) -> None:
    """shipped.json, a line per file, so that a reader may take it line by line.

    Not synced: a machine that goes down before the job starts has lost the run's work/ too.
    """
    temporary = f"{run.shipped}.tmp{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        before = "{\n"
        for index, (path, _size, sha256, _mode) in enumerate(entries):
            file.write(f'{before}{json.dumps(path)}:{{"sha256":"{sha256}","stat":{json.dumps(stats[index])}}}')
            before = ",\n"
        file.write("{}" if before == "{\n" else "\n}")
    os.replace(temporary, run.shipped)


def take_tree(run: RunDir, entries: list[Entry]) -> dict[str, Known]:
    """Make the work/ of a run that is home ours, where it is much the same tree; returns what was recorded of it.

    Two thousand files are looked at in a tenth of the time in which they are copied, and more is not needed: a run that
    is home needs its directory no more. The rename is one step, so two takers, or whoever removes it, do not meet.
    """
    for _, old in _runs(run, lambda other: other.home)[:TREES_WEIGHED]:
        known = recorded(old)
        if not entries or 2 * sum(1 for path, _, sha, _ in entries if known.get(path, ("",))[0] == sha) < len(entries):
            continue
        with contextlib.suppress(OSError):
            os.rename(old.work, run.work)
            with contextlib.suppress(OSError):
                os.unlink(old.shipped)
            return known
    return {}


def recorded(run: RunDir) -> dict[str, Known]:
    """What shipped.json says, without the entries whose fingerprints say nothing."""
    try:
        with open(run.shipped, "rb") as file:
            info = os.fstat(file.fileno())
            whole = json.load(file) if info.st_size <= WHOLE_MAX_BYTES else {}
        settled_ns = info.st_mtime_ns - SETTLE_NS
        return {
            path: (entry["sha256"], entry["stat"] if entry["stat"][3] < settled_ns else None)
            for path, entry in whole.items()
        }
    except (OSError, ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError):
        return {}  # a job has spoilt it


def sift(folder: str, entries: list[Entry], known: dict[str, Known], alive: Callable[[], None]) -> dict[int, list[int]]:
    """Leave in `folder` only what `entries` say; returns the fingerprints of what is there, by index. Raises OSError.

    Files of an unchanged fingerprint stay as they are, others of the right size are digested.
    """
    wanted = {entry[0]: index for index, entry in enumerate(entries)}
    folders = set()
    for path in wanted:
        while path := path.rpartition("/")[0]:
            if path in folders:
                break
            folders.add(path)
    there: dict[int, list[int]] = {}
    waiting = [(folder, "")]
    while waiting:
        here, prefix = waiting.pop()
        with os.scandir(here) as listing:
            for item in listing:
                name = prefix + item.name
                info = item.stat(follow_symlinks=False)
                if stat.S_ISDIR(info.st_mode):
                    if name not in folders:
                        _remove_tree(item.path)
                        continue
                    if stat.S_IMODE(info.st_mode) != FOLDER_MODE:
                        os.chmod(item.path, FOLDER_MODE)
                    waiting.append((item.path, name + "/"))
                    continue
                index = wanted.get(name)
                kept = None if index is None else _kept(item.path, info, entries[index], known.get(name), alive)
                if index is None or kept is None:
                    os.unlink(item.path)
                else:
                    there[index] = kept
    return there


def _kept(
    path: str, info: os.stat_result, entry: Entry, known: Optional[Known], alive: Callable[[], None]
) -> Optional[list[int]]:
    """The fingerprint of a file that is what its entry says; None where it is not, or has another name somewhere."""
    _, size, sha256, mode = entry
    if not stat.S_ISREG(info.st_mode) or info.st_size != size or info.st_nlink != 1:
        return None
    before = fingerprint(info)
    trusted = known == (sha256, before)
    if not trusted and (digest_of(path, alive).hexdigest() != sha256 or fingerprint(os.lstat(path)) != before):
        return None
    if stat.S_IMODE(info.st_mode) != file_mode(mode):
        os.chmod(path, file_mode(mode))
        before = fingerprint(os.lstat(path))
    return before


def file_mode(mode: int) -> int:
    return mode & 0o777 | 0o600


def digest_of(path: str, alive: Callable[[], None]) -> Any:
    """The SHA-256, still open for more, of a file. Raises OSError; never follows a link."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0, opener=rundir.never_waiting) as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            alive()
    return digest


def find(run: RunDir, digests: set[str]) -> Iterator[tuple[str, str, Any]]:
    """Files of earlier runs with these digests, as (sha256, path, trusted fingerprint or None), the newest first."""
    for _, old in _runs(run, lambda other: other.shipped)[:RUNS_SEARCHED]:
        if not digests:
            return
        try:
            with open(old.shipped, "rb", opener=rundir.never_waiting) as file:
                settled_ns = os.fstat(file.fileno()).st_mtime_ns - SETTLE_NS
                for line in iter(lambda: file.readline(LINE_MAX_BYTES), b""):
                    match = _DIGEST.search(line)
                    if match is None or match.group(1).decode() not in digests:
                        continue
                    ((path, entry),) = json.loads(b"{" + line.rstrip(b",\n") + b"}").items()
                    if rundir.safe_relative(path):
                        trusted = entry["stat"] if entry["stat"][3] < settled_ns else None
                        yield entry["sha256"], str(old.work / path), trusted
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue  # gone meanwhile, or spoilt by its job


def copy(source: str, target: int, entry: Entry, trusted: Any, alive: Callable[[], None]) -> bool:
    """Copy a file of this unit into the open, empty `target`. False where it is not, or no longer, what it was."""
    _, size, sha256, _ = entry
    try:
        file = open(source, "rb", buffering=0, opener=rundir.never_waiting)  # noqa: SIM115  # closed below
    except OSError:
        return False
    with file:
        descriptor = file.fileno()
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size != size:
            return False
        if trusted == fingerprint(info) and hasattr(os, "copy_file_range"):
            try:
                left = size
                while left and (done := os.copy_file_range(descriptor, target, min(left, 64 * CHUNK))):
                    left -= done
                    alive()
                return not left and fingerprint(os.fstat(descriptor)) == trusted
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):  # another way would not help
                    raise
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.lseek(target, 0, os.SEEK_SET)
                os.ftruncate(target, 0)
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            write_all(target, chunk)
            alive()
        return digest.hexdigest() == sha256


def write_all(descriptor: int, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _runs(run: RunDir, document: Callable[[RunDir], Path]) -> list[tuple[float, RunDir]]:
    """The unit's other runs that have a certain document, the latest written first."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(run.root.parent):
            other = RunDir(run.root.parent / name)
            if name != run.root.name:
                with contextlib.suppress(OSError):
                    found.append((os.stat(document(other)).st_mtime, other))
    return sorted(found, key=lambda pair: pair[0], reverse=True)


def _remove_tree(path: str) -> None:
    durable.remove_tree(path)
    if os.path.lexists(path):
        raise OSError(errno.ENOTEMPTY, "cannot be removed", path)
