"""Machines that a pool has asked for, until they run: EC2 is asked for all at once, more rarely as time goes by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cloudrun.core.clock import Clock
from cloudrun.core.errors import CloudrunError, LaunchError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Instance
from cloudrun.pools.hands import Hand
from cloudrun.wiring import Cloud

LOOK_S = (0.1, 1.0)  # between two looks: at first, and at most


class Lookout:
    """For the deciding thread. A machine that does not run `boot_timeout_s` seconds after it was asked for will not."""

    def __init__(self, cloud: Cloud, clock: Clock, observe: Observer, boot_timeout_s: float) -> None:
        self._cloud = cloud
        self._clock = clock
        self._observe = observe
        self._boot_timeout_s = boot_timeout_s
        self._next_at = 0.0
        self._every_s = LOOK_S[0]

    @property
    def pause_s(self) -> float:
        """How long until the next look."""
        return max(0.0, self._next_at - self._clock.monotonic())

    def look_now(self) -> None:
        self._next_at = 0.0

    def look(self, waiting: Mapping[str, Hand]) -> Iterator[tuple[Hand, Instance | LaunchError]]:
        """What has become of those it waits for, as far as that is decided."""
        self._every_s = min(self._every_s * 1.5, LOOK_S[1])
        self._next_at = self._clock.monotonic() + self._every_s
        try:
            found = self._cloud.instances.describe(list(waiting))
        except CloudrunError as error:
            self._observe(Note(f"EC2 does not say how the machines are: {error}", "verbose"))
            found = {}
        for name, hand in waiting.items():
            instance = found.get(name)
            late = self._clock.now().timestamp() - hand.requested_at > self._boot_timeout_s
            if instance is not None and instance.state == "running" and instance.address:
                self._every_s = LOOK_S[0]
                yield hand, instance
            elif late or (instance is not None and instance.state not in ("pending", "running")):
                state = instance.state if instance is not None and not late else "not running in time"
                why = instance.state_reason if instance is not None else ""
                yield hand, LaunchError(f"{name} is {state}{': ' if why else ''}{why}")
