"""The ends of a pool's machines: many at once are one call, and nobody waits for them before the pool does."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

from cloudrun import terminating
from cloudrun.core.clock import Clock
from cloudrun.core.errors import CleanupIncomplete, CloudrunError, LedgerError
from cloudrun.core.states import EndReason
from cloudrun.ledger import Ledger
from cloudrun.wiring import Cloud


class Endings:
    """`add` may be called from any thread, `finish` once."""

    def __init__(self, cloud: Cloud, ledger: Ledger, timeout_s: float, clock: Clock, client_id: str) -> None:
        self._cloud = cloud
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._clock = clock
        self._client_id = client_id
        self._ids: SimpleQueue[str | None] = SimpleQueue()
        self._failures: list[CloudrunError] = []
        self._thread = Thread(target=self._work, name="cloudrun-endings")
        self._thread.start()

    def add(self, instance_id: str) -> None:
        """Terminate it soon; unless another client has taken it meanwhile."""
        self._ids.put(instance_id)

    def finish(self, launches: Iterable[str]) -> None:
        """Wait until all have gone, then delete what `launches` made. Raises CleanupIncomplete."""
        self._ids.put(None)
        self._thread.join()
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
        while (first := self._ids.get()) is not None:
            ids: list[str] = [first]
            last = False
            with suppress(Empty):
                while True:
                    another = self._ids.get_nowait()
                    if another is None:
                        last = True
                        break
                    ids.append(another)
            try:
                ids = [each for each in ids if self._is_ours(each)]
                terminating.terminate(
                    self._cloud,
                    self._ledger,
                    ids,
                    reason=EndReason.COMPLETED,
                    timeout_s=self._timeout_s,
                    clock=self._clock,
                )
            except CloudrunError as error:
                self._failures.append(error)
            if last:
                return

    def _is_ours(self, instance_id: str) -> bool:
        """A client that slept long enough to be taken for dead may find another's hand on its machines. A ledger that
        cannot be read keeps none alive."""
        try:
            return self._ledger.unit(instance_id).client_id == self._client_id
        except LedgerError:
            return True
