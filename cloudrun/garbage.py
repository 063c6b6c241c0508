"""What takes room and is of no use to anybody: files that no run refers to, what ended processes have left behind.

Nothing is deleted that an open process may be writing: artifacts only while nobody brings files home, and everything
only when it has been left alone for a while. While a client lives, that is an hour for files and code, whatever the
user says: they may be of a run that is in no row yet, since its machine is still on its way. Each thing is looked at
again when its turn comes; a process that is killed in the middle has deleted some of it, and nothing else.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import LedgerError, NotFound
from cloudrun.core.states import is_terminal
from cloudrun.ledger import Ledger
from cloudrun.runs.homecoming import logs_at_home
from cloudrun.runs.printed import logs_in
from cloudrun.units.clients import is_alive

ALONE_S = 3600.0  # how long a thing was left alone before it is garbage, unless the user says another time
PART_S = 7 * 86400.0  # the same for what an interrupted transfer has left: it goes on from there when it is tried again
RUNS, CALLS = "runs", "calls"  # folders below `.cloudrun/`
BATCH = 500

Kind = Literal["artifact", "code", "part", "log", "call", "sandbox"]


@dataclass(frozen=True)
class Garbage:
    """`name`: a digest (an artifact's, that of a version of code), else a path. `size` in bytes."""

    kind: Kind
    name: str
    size: int
    why: str


@dataclass
class Freed:
    count: int = 0
    size: int = 0  # bytes
    problems: dict[str, None] = field(default_factory=dict)  # what kept the rest from it, in words


def find(ledger: Ledger, *, alone_s: float = ALONE_S) -> Iterator[Garbage]:
    """All that can go now. Raises LedgerError."""
    now = time.time()
    yield from _artifacts(ledger, now - _patience_s(ledger, alone_s))
    yield from _parts(ledger, now - max(alone_s, PART_S))
    yield from _logs(ledger, now - alone_s)
    yield from _calls(ledger, now - alone_s)


def free(
    ledger: Ledger,
    found: Iterable[Garbage],
    *,
    alone_s: float = ALONE_S,
    others: Callable[[Garbage], int] = lambda _: 0,
) -> Freed:
    """Delete what still is garbage; `others` does that for kinds that are not the ledger's, and returns the bytes."""
    now = time.time()
    before, before_part = now - alone_s, now - max(alone_s, PART_S)
    before_file = now - _patience_s(ledger, alone_s)
    freed = Freed()
    artifacts: list[str] = []

    def free_artifacts() -> None:
        names = artifacts.copy()
        artifacts.clear()
        _count(freed, len(names), lambda: ledger.free_artifacts(names, before=before_file))

    def free_one(each: Garbage) -> int:
        match each.kind:
            case "code":
                return ledger.free_code(each.name, before=before_file)
            case "part":
                return ledger.artifacts.free_part(Path(each.name), before=before_part)
            case "log" | "call":
                return _free_folder(Path(each.name), before)
            case _:
                return others(each)

    for each in found:
        if each.kind == "artifact":  # many at once: each look at what is referred to costs a query
            artifacts.append(each.name)
            if len(artifacts) == BATCH:
                free_artifacts()
        else:
            _count(freed, 1, partial(free_one, each))
    free_artifacts()
    return freed


def _patience_s(ledger: Ledger, alone_s: float) -> float:
    """How long files and code were left alone that are garbage."""
    now = SystemClock().now()
    return max(alone_s, ALONE_S) if any(is_alive(client, now) for client in ledger.clients()) else alone_s


def _count(freed: Freed, count: int, act: Callable[[], int]) -> None:
    try:
        freed.size += act()
        freed.count += count
    except LedgerError as error:
        freed.problems[str(error)] = None


def _artifacts(ledger: Ledger, before: float) -> Iterator[Garbage]:
    old: dict[str, int] = {}
    for sha256, status in ledger.artifacts.digests():
        if status.st_mtime < before:
            old[sha256] = status.st_size
        if len(old) == BATCH:
            yield from _unreferenced(ledger, old)
            old = {}
    yield from _unreferenced(ledger, old)
    for code_digest, size in ledger.unused_code(before=before).items():
        yield Garbage("code", code_digest, size, "no run is of this code any more")


def _unreferenced(ledger: Ledger, sizes: dict[str, int]) -> Iterator[Garbage]:
    for sha256 in sorted(ledger.unreferenced(list(sizes))):
        yield Garbage("artifact", sha256, sizes[sha256], "no run refers to it")


def _parts(ledger: Ledger, before: float) -> Iterator[Garbage]:
    for path, status in ledger.artifacts.parts():
        if status.st_mtime < before:
            yield Garbage("part", str(path), status.st_size, "a transfer that nobody went on with")


def _logs(ledger: Ledger, before: float) -> Iterator[Garbage]:
    """What was kept of a run's output until its logs were home; a log that never came is the only copy, and stays."""
    for folder in sorted((ledger.home / RUNS).glob("*.*")):
        run_id, _, number = folder.name.rpartition(".")
        if not number.isdecimal():
            continue
        try:
            run = ledger.run(run_id)
            is_home = is_terminal(run.state) and logs_in(folder).keys() <= logs_at_home(ledger, run_id, int(number))
            why = f"copies of logs of a run that is {run.state}" if is_home else ""
        except NotFound:
            why = "logs of a run that was removed"
        if why and (size := size_if_left_alone(folder, before)) is not None:
            yield Garbage("log", str(folder), size, why)


def _calls(ledger: Ledger, before: float) -> Iterator[Garbage]:
    """Functions on their way to a unit, of pools that could not clear up behind themselves."""
    for folder in sorted((ledger.home / CALLS).glob("*")):
        if is_alive(ledger.client(folder.name), SystemClock().now()):
            continue
        if (size := size_if_left_alone(folder, before)) is not None:
            yield Garbage("call", str(folder), size, "functions of a pool that has ended")


def size_if_left_alone(folder: Path, before: float) -> int | None:
    """Bytes in it; None where any of it was written since (seconds since 1970), or cannot be looked at."""
    size = 0
    try:
        for path in (folder, *folder.rglob("*")):
            status = path.lstat()
            if status.st_mtime >= before:
                return None
            size += 0 if path.is_dir() and not path.is_symlink() else status.st_size
    except OSError:
        return None
    return size


def _free_folder(folder: Path, before: float) -> int:
    size = size_if_left_alone(folder, before)
    if size is None or folder.is_symlink():
        return 0
    with suppress(OSError):
        shutil.rmtree(folder)
    return 0 if folder.exists() else size
