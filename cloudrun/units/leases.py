"""A unit in one process's hands, against every other client: taken with a fence, and kept by a heartbeat."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cloudrun.core.clock import Clock
from cloudrun.core.errors import CloudrunError, UsageError
from cloudrun.core.records import OnExit, UnitRecord
from cloudrun.ledger import Ledger
from cloudrun.units.clients import HEARTBEAT_S, this_client


class Attended(UsageError):
    """A living process has the unit: what is asked for is its to do."""


def beat(ledger: Ledger, client_id: str, clock: Clock, ended: threading.Event) -> None:
    """Tell the ledger now and then that this client lives, for clients on other computers."""

    def run() -> None:
        while not ended.wait(HEARTBEAT_S):
            with suppress(CloudrunError):  # a full disk must not end a run; silence is what the reaper reads
                ledger.beat(client_id, clock.now())

    threading.Thread(target=run, name="cloudrun-heartbeat", daemon=True).start()


@contextmanager
def present(ledger: Ledger, clock: Clock) -> Iterator[str]:
    """Be known as a client that lives, by the id that this gives, until the block ends."""
    client = this_client(clock.now())
    ledger.register_client(client)
    ended = threading.Event()
    try:
        beat(ledger, client.client_id, clock, ended)
        yield client.client_id
    finally:
        ended.set()
        with suppress(CloudrunError):
            ledger.dismiss_client(client.client_id)


class Lease:
    """Of one unit, as it was when it was taken. A process that leaves without `leave` leaves it to the reaper."""

    def __init__(self, ledger: Ledger, unit: UnitRecord, client_id: str) -> None:
        self._ledger = ledger
        self._unit = unit
        self.client_id = client_id

    def holds(self) -> bool:
        """Whether it is still ours: see `OpenUnit.holds`."""
        try:
            return self._ledger.unit(self._unit.instance_id).client_id == self.client_id
        except CloudrunError:
            return True

    def leave(self, *, to: str = "", on_exit: OnExit = "keep") -> None:
        """Let go of it: to nobody, so that it waits for its runs and its deadline, or to whom it was taken from."""
        with suppress(CloudrunError):
            self._ledger.take_unit(self._unit.instance_id, to, of=self.client_id, on_exit=on_exit)


@contextmanager
def lease(ledger: Ledger, unit: UnitRecord, clock: Clock) -> Iterator[Lease]:
    """Take a unit whose client has let go of it, or is dead. Raises Attended where another process was quicker."""
    with present(ledger, clock) as client_id:
        if not ledger.take_unit(unit.instance_id, client_id, of=unit.client_id, on_exit=unit.on_exit):
            raise Attended(f"another process has just taken {unit.instance_id}", next_step="cloudrun ps")
        yield Lease(ledger, unit, client_id)
