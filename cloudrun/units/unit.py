"""One rented machine: launched or joined, logged into, and ended as it should be whatever happens."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from cloudrun.core.clock import Clock
from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    LedgerError,
)
from cloudrun.core.events import Event, Note, Observer
from cloudrun.core.records import DataSet, Image, SshTarget, UnitOrders, UnitRecord
from cloudrun.core.settings import Settings, idle_limit_s
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.units.connection import Connection
from cloudrun.units.lifeline import LIFELINE
from cloudrun.units.phases import Phases
from cloudrun.wiring import Cloud

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Agent, OnProgress
    from cloudrun.ssh.session import Session

ENDING_S = 600.0  # at the interpreter's end: how long another thread may take to bring its run home

LIFELINE.take_signals()


class EnvironmentSource(Protocol):
    """What other units have, for one that is to get the same."""

    def provide(self, unit: OpenUnit, fingerprint: str, phases: Phases, build: Callable[[], None]) -> None:
        """See to it that the unit has the environment; `build` makes it on the unit itself."""


class OpenUnit:
    """A machine from its launch to its end. Not thread-safe beyond `interrupt`, `hurry` and `close`."""

    replaceable = False  # whether a run whose machine went away goes on on another one
    queue_slots: int | None = None  # how many of the runs that wait on it may go on at a time; None: as it was told
    spreading: EnvironmentSource | None = None  # where it may get an environment from other units

    def __init__(self, cloud: Cloud, ledger: Ledger, settings: Settings, observe: Observer, clock: Clock) -> None:
        self.cloud = cloud
        self.ledger = ledger
        self.settings = settings
        self.clock = clock
        self.phases = Phases(self.observe, clock)
        self.stop = threading.Event()  # the job should end: the user says so, or the deadline is near
        self.cancelled = threading.Event()  # the user, or a signal, says so: no further run either
        self.hurried = threading.Event()
        self.ended = threading.Event()
        self.signalled = False
        self.stopped_by: BaseException | None = None  # why `cancelled` is set
        self.begins_jobs = False  # it has all that they need
        self._at_work = 0  # how many threads are in the middle of something on it
        self._counting = threading.Lock()
        self.provisioning = threading.Lock()  # held by the thread that builds an environment: others find it
        self.image: Image
        self.record: UnitRecord
        self.opened = False
        self.client_id = ""
        self._observer = observe
        self._ending = ExitStack()
        self._closing = False
        self._failure: Exception | None = None  # of `close`, for whoever asks next
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._power_off_when_done = False
        self._let_go = False
        self._at_home: list[str] = []
        self._connection = Connection(cloud, ledger, clock, lambda: self.record, self.stop, self.observe, self._orders)
        self.run_ids: list[str] = []
        self.keep_until_deadline = False  # outputs wait on it

    @property
    def instance_id(self) -> str:
        return self.record.instance_id

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Whoever ends the unit meanwhile leaves it to this thread to bring home what there is, and to close it."""
        with self._counting:
            self._at_work += 1
        try:
            yield
        finally:
            with self._counting:
                self._at_work -= 1

    def observe(self, event: Event) -> None:
        """Tell the observer; one that fails keeps no machine alive."""
        try:
            self._observer(event)
        except Exception:
            if not self._closing:
                raise

    # -- the way to it ------------------------------------------------------------------------------------------

    @property
    def session(self) -> Session:
        return self._connection.session

    @property
    def agent(self) -> Agent:
        return self._connection.agent

    def target(self) -> SshTarget:
        return self._connection.target()

    def knows_environment(self, fingerprint: str) -> bool:
        return self._connection.knows_environment(fingerprint)

    def has_data(self, key: str) -> bool:
        return self.agent.has_data(key)

    def bring_data(self, data: DataSet, on_progress: OnProgress) -> None:
        self.agent.bring_data(data, on_progress)

    def reconnect(self, stop: threading.Event | None = None, *, lost: Session | None = None) -> None:
        """A new connection in place of the `lost` one; `stop`, by default the unit's, ends the trying. Raises
        ConnectionLost where the machine lets nobody in, Interrupted where the provider has taken it back."""
        self._connection.reopen(stop, lost=lost)

    def stay(self) -> None:
        """Be a client of the unit after something has failed: the channel that it failed on is closed, and a unit that
        no channel leads to powers itself off when it is idle, whatever its block is about to send."""
        if not (self._let_go or self.stop.is_set()) and self.holds():
            with suppress(CloudrunError):
                self.agent.orders(self._orders())

    def is_gone(self) -> bool:
        """Whether EC2 says that it does not run any more; false where EC2 does not answer."""
        return self._connection.is_gone()

    def is_home(self, run_dir: str) -> None:
        """Everything of a run is on this computer: its unit is told with the next run, or before it is left."""
        with self._counting:
            self._at_home.append(run_dir)

    def take_home_news(self) -> list[str]:
        with self._counting:
            told, self._at_home = self._at_home, []
        return told

    def say_what_is_home(self) -> None:
        """Now, and not with the next run."""
        with suppress(CloudrunError):  # it keeps files that nobody needs then, and is never idle
            for run_dir in self.take_home_news():
                self.agent.home(run_dir)

    def _say_what_is_home_at_last(self) -> None:
        if self.settings.on_exit != "terminate" and not self.signalled:
            self.say_what_is_home()

    def was_taken_back(self) -> bool:
        """Whether the provider has ended it, as EC2 tells it. Raises CloudrunError where EC2 does not answer."""
        return self._connection.was_taken_back()

    def _log_in(self, *, joined: bool = False) -> None:
        self._ending.callback(self._connection.close)
        self._ending.callback(self._say_what_is_home_at_last)
        self._connection.open(self.settings.boot_timeout_s, knock=joined)

    def _settle_in(self) -> None:
        """The key in user-data can be read by whoever may describe the instance: from here on the unit has its own."""
        self.ledger.move_unit(self.instance_id, UnitState.READY)
        self.ledger.update_unit(self.instance_id, host_key=self.agent.new_host_key())

    def _orders(self) -> UnitOrders:
        self.seconds_left()  # another process may have moved the deadline: a new connection must not move it back
        return UnitOrders(
            deadline=self.record.deadline.timestamp(),
            idle_s=idle_limit_s(self.settings),
            spot=self.ledger.launch(self.record.launch_id).request.spot,
            power_off_when_done=self._power_off_when_done,
            slots=self.queue_slots,
        )

    @property
    def is_let_go(self) -> bool:
        """Whether it was left to its run and its deadline."""
        return self._let_go

    def seconds_left(self) -> float:
        """Until the deadline, which may have been moved since this was asked last."""
        with suppress(LedgerError):
            self.record = self.ledger.unit(self.instance_id)
        return (self.record.deadline - self.clock.now()).total_seconds()

    def holds(self) -> bool:
        """Whether this client still has the unit: one that slept long enough to be taken for dead may find another's
        hand on it, and must do nothing then. A ledger that cannot be read keeps no machine alive."""
        try:
            return self.ledger.unit(self.instance_id).client_id == self.client_id
        except LedgerError:
            return True

    def check_cancelled(self) -> None:
        if self.cancelled.is_set():
            raise Cancelled("the process was told to stop")

    # -- ending -------------------------------------------------------------------------------------------------

    def cancel(self, why: BaseException | None = None) -> None:
        """Whatever runs on it ends, and nothing else is started. Of several causes the first is the one."""
        self.stopped_by = self.stopped_by or why
        self.cancelled.set()
        self.stop.set()

    def interrupt(self) -> None:
        self.signalled = True
        self.cancel(LIFELINE.received)
        if not self._at_work:
            self.close()

    def wait_for_end(self) -> None:
        if self._at_work:
            self.cancel()
            self.ended.wait(ENDING_S)

    def hurry(self) -> None:
        self.hurried.set()
        self._connection.close()  # whatever still waits for the machine gives up
        self.interrupt()

    def close(self) -> None:
        """End the unit as `on_exit` says, once; a second caller waits for the first, and learns what that one learnt.

        Raises CleanupIncomplete. In a forked child it does nothing: the machine is the parent's.
        """
        if self._pid != os.getpid():
            return
        with LIFELINE.shield(), self._lock:
            if not self.ended.is_set():
                self._closing = True
                try:
                    self._ending.pop_all().close()
                except Exception as failure:
                    self._failure = failure
                    raise
                finally:
                    self.ended.set()
                    LIFELINE.remove(self)
                    self._dismiss_client()
            elif self._failure is not None:
                raise self._failure

    def _dismiss_client(self) -> None:
        with suppress(CloudrunError):  # or the reaper would leave to us what we have let go of
            self.ledger.dismiss_client(self.client_id)

    def _is_ours(self) -> bool:
        if not hasattr(self, "record") or self.holds():
            return True
        self.observe(Note(f"another client has taken {self.instance_id} over: it is left to it", "warning"))
        return False

    def let_go(self, *, power_off_when_done: bool) -> None:
        """Leave the unit to its run and its deadline: from here on no client is needed, and any may come for it."""
        self._power_off_when_done = power_off_when_done
        self.agent.orders(self._orders())
        self.ledger.update_unit(self.instance_id, client_id="", on_exit="keep")
        self._let_go = True
