"""How an environment reaches the units of a pool: built on the first, copied from unit to unit to the others.

Who has received it passes it on, so copies go out as from a tree: the time for N units grows with log N. Where copying
does not work every unit builds its own, as if it were alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

COPIES_AT_ONCE = 2  # from one unit: while one is being set up, the other one uses the line
COPIES_FAILED = 3  # and none that succeeded: copying does not work between these units
SOURCE_FAILED = 2  # copies from one unit: no further one is asked of it
BUILDS_FAILED = 2  # on two units, and none that succeeded: it is not the units'


@dataclass(frozen=True)
class Source:
    """A unit with the environment as it was built. `copies` go out from it at the moment, `failed` did before."""

    group: str  # the security group it is in
    copies: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Spread:
    """What is known of one environment among units that are alike."""

    sources: Mapping[str, Source] = field(default_factory=lambda: MappingProxyType({}))  # by unit
    builder: str = ""  # the unit that builds it for the others
    built: int = 0
    builds_failed: int = 0
    copied: int = 0
    copies_failed: int = 0
    can_be_copied: bool = True

    @property
    def copying_works(self) -> bool:
        return self.can_be_copied and (self.copied > 0 or self.copies_failed < COPIES_FAILED)

    def lends(self, unit: str) -> bool:
        """Whether a copy goes out from the unit just now."""
        return unit in self.sources and self.sources[unit].copies > 0


@dataclass(frozen=True)
class Build:
    """Build it. `alone`: nobody waits for what comes of it."""

    alone: bool = False


@dataclass(frozen=True)
class Copy:
    source: str


@dataclass(frozen=True)
class Wait:
    """Until something changes. `builder`: for whom."""

    builder: str = ""


@dataclass(frozen=True)
class GiveUp:
    """It cannot be built, and one more try would say the same."""


Step = Build | Copy | Wait | GiveUp


def next_step(spread: Spread, group: str) -> Step:
    """What a unit in the security group `group` does that lacks the environment."""
    if spread.builds_failed >= BUILDS_FAILED and not spread.built:
        return GiveUp()
    if not spread.copying_works:
        return Build(alone=True)
    free = {name: source for name, source in spread.sources.items() if source.copies < COPIES_AT_ONCE}
    if free:  # the least busy; one of the same group needs no rule of its own to be reached

        def rank(name: str) -> tuple[int, int, bool, str]:
            return free[name].failed, free[name].copies, free[name].group != group, name

        return Copy(min(free, key=rank))
    if spread.sources or spread.builder:
        return Wait(spread.builder)
    return Build()


# -- what happens ------------------------------------------------------------------------------------------------------


def build_begins(spread: Spread, unit: str) -> Spread:
    return replace(spread, builder=unit)


def build_ends(spread: Spread, unit: str, group: str, *, sealed: bool) -> Spread:
    """It has it now. `sealed`: copies of it can be made."""
    spread = replace(_without_builder(spread, unit), built=spread.built + 1)
    if not sealed:
        return replace(spread, can_be_copied=bool(spread.sources))
    return _with(spread, unit, Source(group))


def build_fails(spread: Spread, unit: str, *, of_itself: bool) -> Spread:
    """`of_itself`: and not because something happened to the unit."""
    return replace(_without_builder(spread, unit), builds_failed=spread.builds_failed + of_itself)


def copy_begins(spread: Spread, source: str) -> Spread:
    return _busier(spread, source, 1)


def copy_ends(spread: Spread, source: str, unit: str, group: str) -> Spread:
    spread = _with(_busier(spread, source, -1), unit, Source(group))
    return replace(spread, copied=spread.copied + 1)


def copy_fails(spread: Spread, source: str) -> Spread:
    """Whose fault it was nobody knows; a source with two failures is no source any more."""
    spread = replace(_busier(spread, source, -1), copies_failed=spread.copies_failed + 1)
    known = spread.sources.get(source)
    if known is None:
        return spread
    known = replace(known, failed=known.failed + 1)
    return _with(spread, source, known) if known.failed < SOURCE_FAILED else leaves(spread, source)


def leaves(spread: Spread, unit: str) -> Spread:
    """The unit ends: nothing can be had from it any more."""
    rest = {name: each for name, each in spread.sources.items() if name != unit}
    return replace(_without_builder(spread, unit), sources=MappingProxyType(rest))


def _without_builder(spread: Spread, unit: str) -> Spread:
    return replace(spread, builder="") if spread.builder == unit else spread


def _busier(spread: Spread, name: str, by: int) -> Spread:
    source = spread.sources.get(name)
    return _with(spread, name, replace(source, copies=source.copies + by)) if source is not None else spread


def _with(spread: Spread, name: str, source: Source) -> Spread:
    return replace(spread, sources=MappingProxyType({**spread.sources, name: source}))
