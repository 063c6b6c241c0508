"""Measures sides of a comparison in turn (A B C, B C A, ...), and what the machine itself does meanwhile."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Run = Callable[[], float]  # does it once; returns the seconds that count, so that what is made ready for it does not
CPU_LOOP = 1_000_000
FSYNC_BYTES = 64 * 1024


@dataclass(frozen=True)
class Spread:
    """Seconds, or a ratio of them."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Row:
    what: str
    line: str  # between the two sides: "loopback", "40 ms"
    ours: Spread
    against: str
    theirs: Spread
    ratio: Spread  # ours by theirs: of the medians; lowest and highest of the rounds
    rounds: int
    target: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio.median <= self.target


@dataclass(frozen=True)
class Cost:
    """What one thing takes, against nothing but a number of seconds."""

    what: str
    taken: Spread
    rounds: int
    target_s: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.target_s is None else self.taken.median <= self.target_s


@dataclass
class Noise:
    """How long the same work takes now and then: a loop of Python's, and a small file brought to the disk."""

    folder: Path
    cpu: list[float] = field(default_factory=list)
    fsync: list[float] = field(default_factory=list)

    def look(self) -> None:
        began = time.perf_counter()
        for _ in range(CPU_LOOP):
            pass
        middle = time.perf_counter()
        with (self.folder / "noise").open("wb") as stream:
            stream.write(bytes(FSYNC_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        self.cpu.append(middle - began)
        self.fsync.append(time.perf_counter() - middle)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(sides: Mapping[str, Run], rounds: int, noise: Noise, *, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every side in every round. Who begins changes from round to round; the disk is quiet before each."""
    names = list(sides)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        noise.look()
        first = number % len(names)
        for name in names[first:] + names[:first]:
            os.sync()  # nobody waits for what another has written
            seconds = sides[name]()
            if number >= 0:
                taken[name].append(seconds)
    return taken


def rows(
    what: str, line: str, taken: Mapping[str, Sequence[float]], targets: Mapping[str, float | None], ours: str = "ours"
) -> list[Row]:
    """One row for every other side. `targets`, by name: what the ratio should be at most."""
    own = taken[ours]
    made = []
    for name, theirs in taken.items():
        if name == ours:
            continue
        each = [a / b for a, b in zip(own, theirs, strict=True)]
        middle = statistics.median(own) / statistics.median(theirs)
        ratio = Spread(min(each), middle, max(each))
        made.append(Row(what, line, Spread.of(own), name, Spread.of(theirs), ratio, len(own), targets.get(name)))
    return made
