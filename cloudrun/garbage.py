"""What takes room and is of no use to anybody: files that no run refers to, what ended processes have left behind.

Nothing is deleted that an open process may be writing: artifacts only while nobody brings files home, and everything
only when it has been left alone for a while. While a client lives, that is an hour for files and code, whatever the
user says: they may be of a run that is in no row yet, since its machine is still on its way. Each thing is looked at
again when its turn comes; a process that is killed in the middle has deleted some of it, and nothing else. So it is
safe to ask for what was touched just now, too: only code then waits for a minute, in which a submission that has kept
it may still become a client.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
CODE_S = 60.0  # the same for code, at least
RUNS, CALLS = "runs", "calls"  # folders below `.cloudrun/`
BATCH = 500

Kind = Literal["artifact", "code", "part", "log", "call", "sandbox"]


@dataclass(frozen=True)
class Garbage:
    """`name`: a digest (an artifact's, that of a version of code), else a path. `size` in bytes; `touched` last, in
    seconds since 1970."""

    kind: Kind
    name: str
    size: int
    why: str
    touched: float = 0.0


@dataclass
class Freed:
    count: int = 0
    size: int = 0  # bytes
    problems: dict[str, None] = field(default_factory=dict)  # what kept the rest from it, in words


@dataclass
class Waiting:
    """What nothing refers to and was not left alone for long enough: so many things of so many bytes, all of which can
    go from `until` on (seconds since 1970). `clients`: a process is at work, and they may be its."""

    count: int = 0
    size: int = 0
    until: float = 0.0
    clients: bool = False


def find(ledger: Ledger, *, alone_s: float = ALONE_S) -> Iterator[Garbage]:
    """All that can go now. Raises LedgerError."""
    before = _before(ledger, alone_s)
    return (each for each in _unused(ledger) if each.touched < before[each.kind])


def waiting(ledger: Ledger, *, alone_s: float = ALONE_S) -> Waiting:
    """What can go later, but for interrupted transfers, which somebody may go on with. Raises LedgerError."""
    now, before = time.time(), _before(ledger, alone_s)
    found = Waiting(clients=_has_clients(ledger))
    for each in _unused(ledger):
        if each.kind != "part" and each.touched >= before[each.kind]:
            found.count += 1
            found.size += each.size
            found.until = max(found.until, each.touched + now - before[each.kind])
    return found


def free(
    ledger: Ledger,
    found: Iterable[Garbage],
    *,
    alone_s: float = ALONE_S,
    others: Callable[[Garbage], int] = lambda _: 0,
) -> Freed:
    """Delete what still is garbage; `others` does that for kinds that are not the ledger's, and returns the bytes."""
    before = _before(ledger, alone_s)
    freed = Freed()
    artifacts: list[str] = []

    def free_artifacts() -> None:
        names = artifacts.copy()
        artifacts.clear()
        _count(freed, len(names), lambda: ledger.free_artifacts(names, before=before["artifact"]))

    def free_one(each: Garbage) -> int:
        match each.kind:
            case "code":
                return ledger.free_code(each.name, before=before["code"])
            case "part":
                return ledger.artifacts.free_part(Path(each.name), before=before["part"])
            case "log" | "call":
                return _free_folder(Path(each.name), before[each.kind])
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


def _before(ledger: Ledger, alone_s: float) -> dict[Kind, float]:
    """When something of each kind was last touched that can go now (seconds since 1970)."""
    file_s = max(alone_s, ALONE_S) if _has_clients(ledger) else alone_s
    now = time.time()
    return {
        "artifact": now - file_s,
        "code": now - max(file_s, CODE_S),
        "part": now - max(alone_s, PART_S),
        "log": now - alone_s,
        "call": now - alone_s,
    }


def _has_clients(ledger: Ledger) -> bool:
    now = SystemClock().now()
    return any(is_alive(client, now) for client in ledger.clients())


def _unused(ledger: Ledger) -> Iterator[Garbage]:
    """Whenever it was touched."""
    yield from _artifacts(ledger)
    yield from _parts(ledger)
    yield from _logs(ledger)
    yield from _calls(ledger)


def _count(freed: Freed, count: int, act: Callable[[], int]) -> None:
    try:
        freed.size += act()
        freed.count += count
    except LedgerError as error:
        freed.problems[str(error)] = None


def _artifacts(ledger: Ledger) -> Iterator[Garbage]:
    some: dict[str, os.stat_result] = {}
    for sha256, status in ledger.artifacts.digests():
        some[sha256] = status
        if len(some) == BATCH:
            yield from _unreferenced(ledger, some)
            some = {}
    yield from _unreferenced(ledger, some)
    for code_digest, (size, touched) in ledger.unused_code().items():
        yield Garbage("code", code_digest, size, "no run is of this code any more", touched)


def _unreferenced(ledger: Ledger, some: Mapping[str, os.stat_result]) -> Iterator[Garbage]:
    for sha256 in sorted(ledger.unreferenced(list(some))):
        yield Garbage("artifact", sha256, some[sha256].st_size, "no run refers to it", some[sha256].st_mtime)


def _parts(ledger: Ledger) -> Iterator[Garbage]:
    for path, status in ledger.artifacts.parts():
        yield Garbage("part", str(path), status.st_size, "a transfer that nobody went on with", status.st_mtime)


def _logs(ledger: Ledger) -> Iterator[Garbage]:
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
        if why and (found := size_and_touch(folder)) is not None:
            yield Garbage("log", str(folder), found[0], why, found[1])


def _calls(ledger: Ledger) -> Iterator[Garbage]:
    """Functions on their way to a unit, of pools that could not clear up behind themselves."""
    for folder in sorted((ledger.home / CALLS).glob("*")):
        if is_alive(ledger.client(folder.name), SystemClock().now()):
            continue
        if (found := size_and_touch(folder)) is not None:
            yield Garbage("call", str(folder), found[0], "functions of a pool that has ended", found[1])


def size_and_touch(folder: Path) -> tuple[int, float] | None:
    """Bytes in it, and when any of it was last written (seconds since 1970); None where it cannot be looked at."""
    size, touched = 0, 0.0
    try:
        for path in (folder, *folder.rglob("*")):
            status = path.lstat()
            touched = max(touched, status.st_mtime)
            size += 0 if path.is_dir() and not path.is_symlink() else status.st_size
    except OSError:
        return None
    return size, touched


def size_if_left_alone(folder: Path, before: float) -> int | None:
    """Bytes in it; None where any of it was written since (seconds since 1970), or cannot be looked at."""
    found = size_and_touch(folder)
    return None if found is None or found[1] >= before else found[0]


def _free_folder(folder: Path, before: float) -> int:
    size = size_if_left_alone(folder, before)
    if size is None or folder.is_symlink():
        return 0
    with suppress(OSError):
        shutil.rmtree(folder)
    return 0 if folder.exists() else size
