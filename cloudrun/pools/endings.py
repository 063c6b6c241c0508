"""The ends of a pool's machines: many at once are one call, and nobody waits for them before the pool does.

Each is asked to go as soon as it is added, and again until EC2 says that it has gone: while the pool runs there is no
last attempt.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

from cloudrun.core.clock import Clock
from cloudrun.core.errors import CleanupIncomplete, CloudrunError, LedgerError
from cloudrun.core.states import EndReason
from cloudrun.ledger import Ledger
from cloudrun.units import terminating
from cloudrun.units.terminating import POLL_S
from cloudrun.wiring import Cloud


class Endings:
    """`add` may be called from any thread, `finish` once."""

    def __init__(self, cloud: Cloud, ledger: Ledger, timeout_s: float, clock: Clock, client_id: str) -> None:
        self._cloud = cloud
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._clock = clock
        self._client_id = client_id
        self._new: SimpleQueue[str | None] = SimpleQueue()
        self._added: set[str] = set()
        self._ending: set[str] = set()  # those of them that are not known to have gone
        self._leaving = terminating.Leaving(
            cloud, ledger, cloud.instances.terminate, terminating.TERMINATION, reason=EndReason.COMPLETED, clock=clock
        )
        self._failures: list[CloudrunError] = []
        self._thread = Thread(target=self._work, name="cloudrun-endings")
        self._thread.start()

    def add(self, instance_id: str) -> None:
        """Terminate it soon; unless another client has taken it meanwhile."""
        self._added.add(instance_id)
        self._ending.add(instance_id)
        self._new.put(instance_id)

    def was_added(self, instance_id: str) -> bool:
        """Whether its end was ever asked for here."""
        return instance_id in self._added

    def is_ending(self, instance_id: str) -> bool:
        """Whether it was added, and EC2 has not said that it is gone."""
        return instance_id in self._ending

    def finish(self, launches: Iterable[str]) -> None:
        """Wait until all have gone, for `timeout_s` from now, then delete what `launches` made.

        Raises CleanupIncomplete with the ids of all that is left.
        """
        self._new.put(None)
        self._thread.join()
        if self._ending:
            ids = sorted(self._ending)
            why = f"could not see {', '.join(ids)} terminated after {self._timeout_s:.0f} s"
            self._failures.append(CleanupIncomplete(why, ids=ids))
            self._failures[-1].__cause__ = self._leaving.failure
        left = {unit.launch_id for unit in self._ledger.units()}
        left |= {launch.launch_id for launch in self._ledger.launches(unsettled=True)}
        for launch_id in launches:
            if launch_id not in left:  # a machine may still use them
                try:
                    terminating.release_resources(
                        self._cloud, self._ledger, launch_id, timeout_s=self._timeout_s, clock=self._clock
                    )
                except CloudrunError as error:
                    self._failures.append(error)
        if self._failures:
            ids = [each for error in self._failures for each in getattr(error, "ids", ())]
            why = "; ".join(dict.fromkeys(map(str, self._failures)))
            raise CleanupIncomplete(why, ids=ids, next_step="cloudrun reap") from self._failures[0]

    def _work(self) -> None:
        leaving = self._leaving
        end = math.inf  # known once the pool waits for it
        pause_s = POLL_S[0]
        while leaving.left or end == math.inf:
            new = self._told(pause_s if leaving.left else None)
            if None in new:
                end = self._clock.monotonic() + self._timeout_s
            pause_s = POLL_S[0] if new else min(pause_s * 1.5, POLL_S[1])
            ids = [each for each in new if each is not None]
            leaving.add([each for each in ids if self._is_ours(each)])
            seen = {*ids, *leaving.left}
            for each in [each for each in leaving.unasked if not self._is_ours(each)]:
                leaving.forget(each)
            if leaving.left:
                leaving.look()
            self._ending.difference_update(seen.difference(leaving.left))
            if self._clock.monotonic() >= end:
                break
        self._failures += leaving.unwritten

    def _told(self, wait_s: float | None) -> list[str | None]:
        """All that was put there, once there is something; nothing after `wait_s`."""
        told: list[str | None] = []
        with suppress(Empty):
            told.append(self._new.get(timeout=wait_s))
            while True:
                told.append(self._new.get_nowait())
        return told

    def _is_ours(self, instance_id: str) -> bool:
        """A client that slept long enough to be taken for dead may find another's hand on its machines. A ledger that
        cannot be read keeps none alive."""
        try:
            return self._ledger.unit(instance_id).client_id == self._client_id
        except LedgerError:
            return True
