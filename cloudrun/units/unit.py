"""One rented machine: launched or joined, logged into, and ended as it should be whatever happens."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from cloudrun.core.clock import Clock
from cloudrun.core.errors import (
    Cancelled,
    CleanupIncomplete,
    CloudrunError,
    LaunchError,
    LedgerError,
    UnresolvedLaunch,
)
from cloudrun.core.events import Event, Note, Observer, Rented
from cloudrun.core.ids import new_id
from cloudrun.core.records import ClientRecord, DataSet, Image, LaunchRecord, OnExit, SshTarget, UnitOrders, UnitRecord
from cloudrun.core.settings import Settings, idle_limit_s
from cloudrun.core.states import EndReason, UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.offers import Offer
from cloudrun.units import capacity, joining, launching, terminating
from cloudrun.units.clients import owner
from cloudrun.units.connection import Connection, EarlyLogin
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
        self._as_it_was: OnExit | None = None  # what becomes of a unit that is being joined, until it is
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

    # -- opening ------------------------------------------------------------------------------------------------

    def launch(self, image: Image, client: ClientRecord) -> None:
        """Rent the machine and log in. Whatever was made so far is undone by `close`."""
        self.image = image
        with self.phases.phase("launch", f"{self.settings.instance_type} in {self.cloud.place.region}"):
            capacity.first_launch(
                capacity.allowed(self.cloud, self.settings),
                self.cloud,
                partial(self._rent, client),
                clock=self.clock,
                observe=self.observe,
            )
            self._await_running()
        record = self.record
        since = record.created_at.timestamp()
        self.observe(Rented(record.instance_id, record.instance_type, record.place, since))
        with self.phases.phase("boot", self.instance_id):
            self._log_in()
            self._settle_in()
            self.record = self.ledger.unit(self.instance_id)
        self.opened = True

    def _rent(self, client: ClientRecord, offer: Offer) -> None:
        from cloudrun.ssh.keys import make_key

        self.check_cancelled()
        launch_id = new_id("l")
        # On the stack before anything exists: an abort at any point from here on is cleaned up.
        self._ending.callback(self._release, launch_id)
        launch = launching.prepare(
            self.cloud,
            self.ledger,
            self.settings,
            self.image,
            launch_id=launch_id,
            client_id=client.client_id,
            owner=owner(),
            make_key=make_key,
            clock=self.clock,
            offer=offer,
            overdue_grace_s=joining.overdue_grace_s(self.settings),
        )
        self._ending.callback(self._end_instances, launch_id)
        (self.record,) = launching.request(self.cloud, self.ledger, launch, self.clock)

    def join(self, instance_id: str, client: ClientRecord, early: EarlyLogin | None = None) -> None:
        """Take over a kept unit of this ledger, or start a stopped one. Where that fails it is left as it was."""
        unit = joining.unit_to_join(self.ledger, instance_id)
        joining.check_free(self.ledger, unit, self.clock.now())
        joining.check_stop(self.ledger, unit, self.settings)
        joining.check_start(self.ledger, unit, self.settings)
        self.opened = True  # by whoever launched it
        waiting = [run.run_id for run in self.ledger.unfinished_runs(instance_id)]
        if waiting:
            self.keep_until_deadline = True
            self.observe(Note(f"outputs wait on {instance_id}: cloudrun pull {waiting[0]}", "warning"))
        self.image = launching.image_of(self.cloud, self.ledger, unit)
        self._connection.early = early
        with LIFELINE.shield():  # from the moment that it is ours, somebody is to hand it back
            on_exit = self.settings.on_exit
            if not self.ledger.take_unit(instance_id, client.client_id, of=unit.client_id, on_exit=on_exit):
                raise joining.in_use(instance_id)
            self.record = self.ledger.unit(instance_id)
            self._as_it_was = "stop" if unit.state in joining.STOPPED else unit.on_exit
            self._ending.callback(self._release, unit.launch_id)
            self._ending.callback(self._end_instances, unit.launch_id)
        with self.phases.phase("boot", instance_id):
            deadline = None
            if unit.state in joining.STOPPED:
                deadline = joining.start(self.cloud, self.ledger, unit, self.settings, self.clock)
            try:
                if deadline is not None or unit.state is UnitState.LAUNCHING:
                    self._await_running(started=deadline is not None)
                self._log_in(joined=True)
            except LaunchError as error:
                with suppress(CloudrunError):  # it must not hide why the unit was not joined
                    if deadline is None and joining.note_stopped(self.cloud, self.ledger, instance_id):
                        error.next_step = "the same command again: it is started then"
                raise
            if deadline is not None:
                joining.tell_deadline(self.cloud, self.ledger, self.record, deadline, self.session, self.observe)
                self.agent.orders(self._orders())
            if self.record.state is not UnitState.READY:
                self.ledger.move_unit(instance_id, UnitState.READY)
            self.record = self.ledger.unit(instance_id)
        self._as_it_was = None

    def _settle_in(self) -> None:
        """The key in user-data can be read by whoever may describe the instance: from here on the unit has its own."""
        self.ledger.move_unit(self.instance_id, UnitState.READY)
        self.ledger.update_unit(self.instance_id, host_key=self.agent.new_host_key())

    def _await_running(self, *, started: bool = False) -> None:
        launching.wait_running(
            self.cloud,
            self.ledger,
            self.instance_id,
            timeout_s=self.settings.boot_timeout_s,
            clock=self.clock,
            cancelled=self.check_cancelled,
            started=started,
        )
        self.record = self.ledger.unit(self.instance_id)

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
        self._at_home.append(run_dir)

    def take_home_news(self) -> list[str]:
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

    def _end_instances(self, launch_id: str) -> None:
        """Terminate (or stop, or leave) every instance of the launch, also those that only EC2 knows of."""
        if self._let_go or not self._is_ours():
            return
        ids = self._instances_of(launch_id)
        if not ids:
            return
        how: OnExit = self.settings.on_exit
        if self.signalled or not self.opened:
            how = "terminate"  # one that outlives a signal, or never let us in, would be a surprise on the bill
        if self.keep_until_deadline and not self.hurried.is_set():
            how = "keep"
        how = self._as_it_was or how
        if how == "terminate":
            with self.phases.phase("terminate", ", ".join(ids)):
                terminating.terminate(
                    self.cloud,
                    self.ledger,
                    ids,
                    reason=EndReason.CANCELLED if self.cancelled.is_set() else EndReason.COMPLETED,
                    timeout_s=self.settings.terminate_timeout_s,
                    clock=self.clock,
                )
            return
        if how == "stop":
            running = [each for each in ids if not self._is_stopped(each)]
            terminating.stop(
                self.cloud, self.ledger, running, timeout_s=self.settings.terminate_timeout_s, clock=self.clock
            )
        for instance_id in ids:
            self.ledger.update_unit(instance_id, client_id="", on_exit=how)
            left = "stopped" if how == "stop" else "running"
            self.observe(
                Note(f"{instance_id} is left {left}: cloudrun units shows it, cloudrun reap {instance_id} ends it")
            )

    def _is_stopped(self, instance_id: str) -> bool:
        """By the ledger; one that cannot be read keeps no machine running."""
        try:
            return self.ledger.unit(instance_id).state is UnitState.STOPPED
        except LedgerError:
            return False

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

    def _instances_of(self, launch_id: str) -> list[str]:
        try:
            launch = self.ledger.launch(launch_id)
            if launch.state not in launching.SETTLED:
                self._settle(launch)
            return [unit.instance_id for unit in self.ledger.units() if unit.launch_id == launch_id]
        except LedgerError:
            if not hasattr(self, "record"):
                raise
            return [self.instance_id]  # a ledger that cannot be read keeps no machine alive

    def _settle(self, launch: LaunchRecord) -> None:
        """Learn what became of a launch whose answer was lost, or say that a machine may be running."""
        try:
            launching.resolve(self.cloud, self.ledger, launch, self.clock)
        except UnresolvedLaunch as error:
            raise CleanupIncomplete(
                f"nobody knows whether launch {launch.launch_id} happened: {error}",
                ids=[launch.launch_id],
                next_step="cloudrun reap, when EC2 can be reached",
            ) from error
        except LedgerError:
            raise
        except CloudrunError as refusal:
            self.observe(Note(f"launch {launch.launch_id} did not happen: {refusal}", "verbose"))

    def _release(self, launch_id: str) -> None:
        if any(launch.launch_id == launch_id for launch in self.ledger.launches(unsettled=True)):
            return  # a machine may still use them
        if not any(unit.launch_id == launch_id for unit in self.ledger.units()):
            terminating.release_resources(
                self.cloud, self.ledger, launch_id, timeout_s=self.settings.terminate_timeout_s, clock=self.clock
            )
        with suppress(LedgerError):  # a time is not worth hiding why the clean-up failed
            more_s = self.phases.timings().terminate_s
            for run_id in self.run_ids:
                was = self.ledger.run(run_id).timings
                took = replace(was, terminate_s=was.terminate_s + more_s, total_s=was.total_s + more_s)
                self.ledger.set_timings(run_id, took)
