"""Where to ask for the next machine: each type that the user allows, in each zone, in turn while EC2 has none there.

EC2 is first asked for a type anywhere in the region, since it knows best where it has some; a refusal then holds for
the zone that it looked at, so each zone is asked for by name before the next type is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """`zone`: as in us-east-1a; "" leaves it to EC2."""

    instance_type: str
    zone: str = ""

    def __str__(self) -> str:
        return f"{self.instance_type} in {self.zone}" if self.zone else self.instance_type


class Offers:
    """What may be asked for, in the order of preference, and what was refused. Times in seconds since whenever."""

    def __init__(self, types: Iterable[str], zones: Sequence[str] | None = None) -> None:
        """`zones`: the only ones where there is a place for machines; None is anywhere."""
        self.types = tuple(dict.fromkeys(types))
        self._only = None if zones is None else tuple(dict.fromkeys(zones))
        self._zones: dict[str, tuple[str, ...]] = {}
        self._refused: dict[Offer, float] = {}
        self._at_once: dict[Offer, int] = {}

    def knows_zones(self, instance_type: str) -> bool:
        return instance_type in self._zones

    def learn(self, instance_type: str, zones: Sequence[str]) -> None:
        """The zones that offer the type at all."""
        self._zones[instance_type] = tuple(zones)

    def at_once(self, offer: Offer) -> int | None:
        """How many to ask for in one call at most; None where nobody knows a limit."""
        return self._at_once.get(offer)

    def refuse(self, offer: Offer, now: float, count: int = 1) -> None:
        """EC2 did not have `count` there at that time: it gives all that a call asks for or none, so half as many are
        asked for next."""
        if count > 1:
            self._at_once[offer] = count // 2
        else:
            self._refused[offer] = now
            self._at_once.pop(offer, None)

    def best(self, now: float, again_s: float) -> Offer | None:
        """The most preferred one that was not refused in the last `again_s`; None where all of them were."""
        return choose(self._all(), self._refused, now, again_s)

    def _all(self) -> list[Offer]:
        return [Offer(name, zone) for name in self.types for zone in self._zones_of(name)]

    def _zones_of(self, name: str) -> Sequence[str]:
        learnt = self._zones.get(name, ())
        if self._only is None:
            return ("", *learnt)
        return [zone for zone in self._only if not learnt or zone in learnt]


def choose(offers: Iterable[Offer], refused: Mapping[Offer, float], now: float, again_s: float) -> Offer | None:
    """The first that was not refused in the last `again_s`."""
    return next((offer for offer in offers if offer not in refused or now - refused[offer] >= again_s), None)
