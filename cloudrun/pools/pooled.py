"""A machine of a pool: its launch is the pool's, so is its end, and several threads run cells on it."""

from __future__ import annotations

from collections.abc import Callable

from cloudrun.core.clock import Clock
from cloudrun.core.events import Observer
from cloudrun.core.records import ComingJobs, Image, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.pools.spreading import Spreading
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.opening import close_behind
from cloudrun.units.unit import OpenUnit
from cloudrun.wiring import Cloud


class PooledUnit(OpenUnit):
    """`end` is called with the instance's id once nothing is left on it; it need not wait until it has gone.

    `detached`: it has a queue of its own, and goes on with it where this process is told to stop.
    """

    replaceable = True

    def __init__(
        self,
        cloud: Cloud,
        ledger: Ledger,
        settings: Settings,
        observe: Observer,
        clock: Clock,
        *,
        image: Image,
        record: UnitRecord,
        client_id: str,
        end: Callable[[str], None],
        detached: bool = False,
        queue_slots: int | None = None,
        spreading: Spreading | None = None,
        coming: ComingJobs | None = None,
    ) -> None:
        super().__init__(cloud, ledger, settings, observe, clock)
        self.image = image
        self.record = record
        self.client_id = client_id
        self.detached = detached
        self.queue_slots = queue_slots
        self._end = end
        self.spreading = spreading
        self._connection.coming = coming
        self._power_off_when_done = detached and bool(settings.bucket)

    @property
    def is_let_go(self) -> bool:
        if self._let_go or not self.detached or not self.cancelled.is_set() or self.hurried.is_set():
            return self._let_go
        return bool(self.ledger.unfinished_runs(self.instance_id))

    def open(self) -> None:
        """Log in to the machine, which runs. Where that fails it is ended before the error surfaces.

        Raises ConnectionLost, HostKeyMismatch, LaunchError, Interrupted, Cancelled.
        """
        with self.at_work():
            LIFELINE.add(self)
            self._ending.callback(self._hand_back)
            try:
                with self.phases.phase("boot", self.instance_id):
                    self._log_in()
                    if self.record.state is not UnitState.READY:
                        self._settle_in()
                self.record = self.ledger.unit(self.instance_id)
                self.opened = True
                self.check_cancelled()
            except BaseException as error:
                close_behind(self, error)
                raise

    def _hand_back(self) -> None:
        if self._let_go or not self._is_ours():
            return
        if self.is_let_go or (self.keep_until_deadline and not self.hurried.is_set()):
            self.ledger.update_unit(self.instance_id, client_id="", on_exit="keep")
        else:
            self._end(self.instance_id)

    def _dismiss_client(self) -> None:
        """It is the pool's."""
