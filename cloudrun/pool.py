"""Several units with one queue of work: launched as `plan.scheduling` says, ended as soon as nothing is left for them.

One thread decides; it alone knows the queue. Each unit has a thread that opens and closes it, and one for each slot,
which carries out one task after the other. They tell the deciding thread what happened, and it tells them what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Literal, Protocol

from cloudrun import launching, reaper
from cloudrun.clients import owner
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import (
    Cancelled,
    CapacityError,
    CloudrunError,
    ConnectionLost,
    CredentialsError,
    DeadlineReached,
    LaunchError,
    ProvisionError,
    QuotaError,
    UsageError,
    mark_incomplete,
)
from cloudrun.core.events import Note, Observer
from cloudrun.core.ids import new_id
from cloudrun.core.records import Image, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.deadlines import move_deadline
from cloudrun.endings import Endings
from cloudrun.ledger import Ledger
from cloudrun.lifeline import LIFELINE
from cloudrun.opening import close_behind
from cloudrun.plan import budget
from cloudrun.plan.retrying import useless_launches
from cloudrun.plan.scheduling import Backlog, Decision, Limits, UnitView, decide
from cloudrun.pooled import PooledUnit
from cloudrun.wiring import Cloud

TICK_S = 1.0  # how often to decide where nothing happens
LOOK_S = (0.1, 1.0)  # between two looks at machines that are not running yet
AGAIN_S = 10.0  # after EC2 had no capacity
REFUSALS = 3  # in a row, with no machine there to go on with
# What a task raises where its machine is of no use any more; whatever else it raises is its own.
MACHINE_FAILED = (ConnectionLost, DeadlineReached, LaunchError, ProvisionError)
HOPELESS = (CredentialsError, QuotaError, UsageError)  # asking EC2 once more gives the same answer


class Work(Protocol):
    """What a pool works through. All but `carry_out` is called by the deciding thread."""

    def backlog(self) -> Backlog: ...

    def take(self) -> Any:
        """The task that is next; None where `backlog` has fewer by now."""

    def carry_out(self, unit: PooledUnit, task: Any) -> None:
        """In a thread of the unit's. Raises what went wrong with the machine, not with the task."""

    def ended(self, task: Any, error: BaseException | None) -> None:
        """A task is over, or has to be done once more. Raises what is to end all of it."""

    def stopped(self) -> str:
        """Why no further task is to be started; "" where they are."""

    def is_open(self) -> bool:
        """Whether more tasks may come yet."""

    def given_up(self, why: str, error: BaseException | None) -> None:
        """Tasks wait, and no machine ever will be there for them; `error` is the last that a machine met with. Raises
        what is to end all of it."""


@dataclass
class Hand:
    """One unit of the pool, as the deciding thread sees it."""

    record: UnitRecord
    slots: int
    usd_per_hour: float
    requested_at: float
    deadline: float
    state: Literal["launching", "ready", "draining"] = "launching"
    unit: PooledUnit | None = None
    thread: Thread | None = None
    inbox: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    tasks: list[Any] = field(default_factory=list)
    done: int = 0
    ready_at: float | None = None
    unneeded_since: float | None = None

    def view(self) -> UnitView:
        return UnitView(
            self.record.instance_id,
            self.state,
            self.slots,
            len(self.tasks),
            self.requested_at,
            self.deadline,
            self.usd_per_hour,
            self.record.instance_type,
        )


@dataclass(frozen=True)
class _Launched:
    units: tuple[UnitRecord, ...] = ()
    count: int = 0
    deadline: float = 0.0
    error: BaseException | None = None


@dataclass(frozen=True)
class _Opened:
    instance_id: str


@dataclass(frozen=True)
class _Done:
    instance_id: str
    task: Any
    error: BaseException | None


@dataclass(frozen=True)
class _Closed:
    instance_id: str
    error: BaseException | None


@dataclass(frozen=True)
class _Told:
    act: Callable[[], None]


_Event = _Launched | _Opened | _Done | _Closed | _Told


class Pool:
    """`run` works through a queue and returns when nothing of it can be done any more. Not to be used twice.

    A unit that nothing is left for is ended at once, or `linger_s` seconds later while more work may come.
    """

    def __init__(
        self,
        cloud: Cloud,
        ledger: Ledger,
        settings: Settings,
        image: Image,
        limits: Limits,
        observe: Observer,
        client_id: str,
        clock: Clock | None = None,
        changed: Callable[[Pool], None] = lambda _: None,
        linger_s: float = 0.0,
    ) -> None:
        self.cloud = cloud
        self.ledger = ledger
        self.settings = settings
        self.image = image
        self.limits = limits
        self.observe = observe
        self.clock = clock or SystemClock()
        self.changed = changed
        self.linger_s = linger_s
        self.hands: dict[str, Hand] = {}
        self.used: list[str] = []  # every unit that was ever its own
        self.ended_usd = 0.0
        self.why = ""  # what is not being done, for people
        self.client_id = client_id
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._launches: list[str] = []
        self._launching = 0  # units that EC2 is being asked for
        self._launchers: list[Thread] = []
        self._barred = ""
        self._refused = 0
        self._not_before = 0.0
        self._worked: list[bool] = []
        self._boots: list[float] = []
        self._failure: BaseException | None = None  # of a launch or a boot, the last one
        self._look_at = 0.0
        self._look_s = LOOK_S[0]

    @property
    def spent_usd(self) -> float:
        """What has ended and what has run so far, at the price that was known."""
        now = self.clock.now().timestamp()
        return self.ended_usd + sum(
            budget.cost_usd(hand.usd_per_hour, now - hand.requested_at) for hand in self.hands.values()
        )

    def tell(self, act: Callable[[], None]) -> None:
        """Have it done by the deciding thread, between two decisions; what it raises ends all work. From any thread."""
        self._events.put(_Told(act))

    def carry_out_told(self) -> None:
        """What was told after `run` was over: from the thread that ran it."""
        with suppress(Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, _Told):
                    event.act()

    def run(self, work: Work, joined: Iterable[tuple[UnitRecord, list[Any]]] = ()) -> None:
        """`joined`: units that a dead client has left, taken over for this one (`take_unit`), and the tasks on them.

        Raises what `work` raises, and the refusal where nothing could be launched; then and in the end no unit is left,
        or CleanupIncomplete says which.
        """
        self._endings = Endings(self.cloud, self.ledger, self.settings.terminate_timeout_s, self.clock)
        error: BaseException | None = None
        try:
            for unknown in reaper.settle(self.cloud, self.ledger, self.clock, self.observe):
                raise unknown
            self._work = work
            for record, tasks in joined:
                self.join(record, tasks)
            self._work_through(work)
        except BaseException as cause:
            error = cause
            raise
        finally:
            with LIFELINE.shield(drop=error is not None):
                self._finish(work, error)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _work_through(self, work: Work) -> None:
        while True:
            decision = decide(
                self.clock.now().timestamp(),
                work.backlog(),
                self._views(),
                self._limits(),
                self.ended_usd,
                stopped=work.stopped(),
                barred=self._barred or useless_launches(self._worked),
            )
            self._obey(decision, work)
            self.changed(self)
            if decision.ended and not self.hands and not self._launching:
                if work.backlog().queued and not work.stopped():
                    work.given_up(decision.why, self._failure)
                if not work.is_open():
                    break
            self._hear(work)

    def _views(self) -> list[UnitView]:
        return [hand.view() for hand in self.hands.values()]

    def _limits(self) -> Limits:
        boot_s = sum(self._boots) / len(self._boots) if self._boots else self.limits.boot_s
        wait = self.clock.monotonic() < self._not_before
        # units that EC2 is being asked for are not in the views yet, and none is asked for twice at once
        places = len(self.hands) if wait or self._launching else self.limits.max_units
        return replace(self.limits, boot_s=boot_s, max_units=min(self.limits.max_units, places))

    def _obey(self, decision: Decision, work: Work) -> None:
        self.why = decision.why
        for instance_id, deadline in decision.extend:
            self._extend(self.hands[instance_id], deadline)
        for instance_id, count in decision.assign:
            hand = self.hands[instance_id]
            for _ in range(count):
                if (task := work.take()) is None:
                    break
                hand.tasks.append(task)
                hand.inbox.put(task)
        self._let_linger(frozenset(decision.drain), work)
        if decision.launch:
            self._launch(decision.launch, decision.deadline)

    def _let_linger(self, unneeded: frozenset[str], work: Work) -> None:
        """Drain those that nothing is left for, and that nothing is likely to come for."""
        now = self.clock.monotonic()
        linger_s = self.linger_s if work.is_open() and not work.backlog().queued else 0.0
        for instance_id, hand in self.hands.items():
            if instance_id not in unneeded:
                hand.unneeded_since = None
                continue
            if hand.unneeded_since is None:
                hand.unneeded_since = now
            if now - hand.unneeded_since >= linger_s:
                self._drain(hand)

    def _hear(self, work: Work) -> None:
        """Wait for what happens next, and take all that has happened."""
        waiting = any(hand.thread is None for hand in self.hands.values())
        timeout_s = max(0.0, self._look_at - self.clock.monotonic()) if waiting else TICK_S
        with suppress(Empty):
            self._take(self._events.get(timeout=timeout_s), work)
            while True:
                self._take(self._events.get_nowait(), work)
        if waiting and self.clock.monotonic() >= self._look_at:
            self._look_for_running()

    def _take(self, event: _Event, work: Work) -> None:
        if isinstance(event, _Launched):
            self._launched(event)
        elif isinstance(event, _Opened):
            hand = self.hands[event.instance_id]
            hand.ready_at = self.clock.now().timestamp()
            self._boots.append(hand.ready_at - hand.requested_at)
            if hand.state == "launching":
                hand.state = "ready"
        elif isinstance(event, _Done):
            hand = self.hands[event.instance_id]
            hand.tasks.remove(event.task)
            hand.done += 1
            if isinstance(event.error, MACHINE_FAILED):
                self._drain(hand)
            work.ended(event.task, event.error)
        elif isinstance(event, _Told):
            event.act()
        else:
            self._closed(event, work)

    # -- launching -----------------------------------------------------------------------------------------------------

    def _launch(self, count: int, deadline: float) -> None:
        """In a thread of its own: EC2 may take a while, and what runs goes on."""
        self._launching += count

        def ask() -> None:
            launch_id = new_id("l")
            self._launches.append(launch_id)
            try:
                from cloudrun.ssh.keys import make_key

                settings = replace(self.settings, deadline_s=deadline - self.clock.now().timestamp())
                launch = launching.prepare(
                    self.cloud,
                    self.ledger,
                    settings,
                    self.image,
                    launch_id=launch_id,
                    client_id=self.client_id,
                    owner=owner(),
                    make_key=make_key,
                    clock=self.clock,
                    count=count,
                )
                units = launching.request(self.cloud, self.ledger, launch, self.clock)
                self._events.put(_Launched(tuple(units), count, launch.deadline.timestamp()))
            except BaseException as error:  # noqa: BLE001  # the deciding thread judges it
                self._events.put(_Launched(count=count, error=error))

        thread = Thread(target=ask, name="cloudrun-launch")
        self._launchers.append(thread)
        thread.start()

    def _launched(self, event: _Launched) -> None:
        self._launching -= event.count
        for record in event.units:
            price = self.limits.usd_per_hour
            created = record.created_at.timestamp()
            self.hands[record.instance_id] = Hand(record, self.limits.slots, price, created, event.deadline)
        if event.error is None:
            self._look_at = 0.0
            return
        self._failure = event.error
        if not isinstance(event.error, CloudrunError):
            raise event.error
        if isinstance(event.error, HOPELESS):
            self._barred = f"no further machine is launched: {event.error}"
        elif isinstance(event.error, CapacityError):
            self._not_before = self.clock.monotonic() + AGAIN_S
            self._refused = 0 if self.hands else self._refused + 1
            if self._refused >= REFUSALS:
                self._barred = f"no further machine is asked for: {event.error}"
        else:
            self._worked.append(False)
        self.observe(Note(f"{event.error}; {event.error.next_step}", "warning"))

    def _look_for_running(self) -> None:
        """One describe for all that are not running yet; those that are get their thread."""
        pending = {name: hand for name, hand in self.hands.items() if hand.thread is None}
        self._look_s = min(self._look_s * 1.5, LOOK_S[1])
        self._look_at = self.clock.monotonic() + self._look_s
        try:
            found = self.cloud.instances.describe(list(pending))
        except CloudrunError as error:
            self.observe(Note(f"EC2 does not say how the machines are: {error}", "verbose"))
            return
        for name, hand in pending.items():
            instance = found.get(name)
            late = self.clock.now().timestamp() - hand.requested_at > self.settings.boot_timeout_s
            if instance is not None and instance.state == "running" and instance.address:
                self._look_s = LOOK_S[0]
                self._open(launching.note_running(self.ledger, instance), hand)
            elif late or (instance is not None and instance.state not in ("pending", "running")):
                state = "not running in time" if late or instance is None else instance.state
                self._fail(hand, LaunchError(f"{name} is {state}: {instance.state_reason if instance else ''}"))

    def _fail(self, hand: Hand, error: BaseException) -> None:
        hand.thread = Thread()  # it never had one
        hand.state = "draining"
        self._endings.add(hand.record.instance_id)
        self._events.put(_Closed(hand.record.instance_id, error))

    # -- units ---------------------------------------------------------------------------------------------------------

    def join(self, record: UnitRecord, tasks: list[Any]) -> None:
        """A unit with tasks on it already. For the deciding thread."""
        if (known := self.hands.get(record.instance_id)) is not None:
            known.tasks += tasks
            for task in tasks:
                known.inbox.put(task)
            return
        slots, created = max(self.limits.slots, len(tasks)), record.created_at.timestamp()
        hand = Hand(record, slots, self.limits.usd_per_hour, created, record.deadline.timestamp(), tasks=list(tasks))
        for task in tasks:
            hand.inbox.put(task)
        self.hands[record.instance_id] = hand
        if record.launch_id not in self._launches:
            self._launches.append(record.launch_id)
        self._open(record, hand)

    def _open(self, record: UnitRecord, hand: Hand) -> None:
        self.used.append(record.instance_id)
        hand.record = record
        hand.unit = PooledUnit(
            self.cloud,
            self.ledger,
            self.settings,
            self.observe,
            self.clock,
            image=self.image,
            record=record,
            client_id=self.client_id,
            end=self._endings.add,
        )
        hand.thread = Thread(target=self._live, args=(hand, hand.unit), name=f"cloudrun-{record.instance_id}")
        hand.thread.start()

    def _live(self, hand: Hand, unit: PooledUnit) -> None:
        """The life of a unit, in its thread."""
        error: BaseException | None = None
        try:
            unit.open()
        except BaseException as failure:  # noqa: BLE001
            self._events.put(_Closed(unit.instance_id, failure))
            return
        with unit.at_work():  # who ends it by a signal leaves the closing to this thread
            self._events.put(_Opened(unit.instance_id))
            slots = [
                Thread(target=self._serve, args=(hand, unit), name=f"cloudrun-slot-{n}") for n in range(hand.slots)
            ]
            for slot in slots:
                slot.start()
            for slot in slots:
                slot.join()
            try:
                close_behind(unit, None)
            except BaseException as failure:  # noqa: BLE001
                error = failure
        self._events.put(_Closed(unit.instance_id, error))

    def _serve(self, hand: Hand, unit: PooledUnit) -> None:
        work = self._work
        while (task := hand.inbox.get()) is not None:
            error: BaseException | None = None
            try:
                work.carry_out(unit, task)
            except BaseException as failure:  # noqa: BLE001  # the deciding thread judges it
                error = failure
            self._events.put(_Done(unit.instance_id, task, error))

    def _drain(self, hand: Hand) -> None:
        """No further task; it is closed when those that it has are over."""
        if hand.state == "draining":
            return
        hand.state = "draining"
        if hand.thread is None:
            self._fail(hand, Cancelled("nobody needs it any more"))
            return
        for _ in range(hand.slots):
            hand.inbox.put(None)

    def _closed(self, event: _Closed, work: Work) -> None:
        hand = self.hands.pop(event.instance_id)
        now = self.clock.now().timestamp()
        self.ended_usd += budget.cost_usd(hand.usd_per_hour, now - hand.requested_at)
        if hand.ready_at is None and not isinstance(event.error, Cancelled):
            self._worked.append(False)
            self._failure = event.error
            self.observe(Note(f"{event.instance_id} did not get ready: {event.error}", "warning"))
        elif hand.done:
            self._worked.append(True)
        for task in hand.tasks:  # it never came to them
            work.ended(task, Cancelled(f"{event.instance_id} has gone"))

    def _extend(self, hand: Hand, deadline: float) -> None:
        hand.deadline = max(hand.deadline, deadline)  # the later of two, whichever it comes to hold
        unit = hand.unit
        if unit is None:
            return

        def move() -> None:
            try:
                moment = datetime.fromtimestamp(deadline, UTC)
                record = self.ledger.unit(unit.instance_id)
                move_deadline(self.cloud, self.ledger, record, moment, unit.session, unit.agent, self.observe)
            except CloudrunError as error:  # it ends as early as before, which loses time and no money
                self.observe(Note(f"{error}", "warning"))

        Thread(target=move, name="cloudrun-extend", daemon=True).start()

    # -- ending --------------------------------------------------------------------------------------------------------

    def _finish(self, work: Work, error: BaseException | None) -> None:
        """Whatever has happened: every thread over, every machine gone, keys and groups deleted."""
        for thread in self._launchers:
            thread.join()
        for hand in list(self.hands.values()):
            if error is not None and hand.unit is not None:
                hand.unit.cancel()
        while self.hands or self._launching:
            for hand in list(self.hands.values()):
                self._drain(hand)
            with suppress(Empty):
                event = self._events.get(timeout=TICK_S)
                try:
                    self._take(event, work)
                except BaseException as failure:  # noqa: BLE001
                    if error is not None:
                        error.add_note(f"and then: {failure}")
        try:
            self._endings.finish(self._launches)
        except CloudrunError as failure:
            if error is None:
                raise
            error.add_note(f"cleaning up failed too: {failure} (next: {failure.next_step})")
            mark_incomplete(error)
