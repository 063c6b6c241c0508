"""Several units with one queue of work: launched as `plan.scheduling` says, ended as soon as nothing is left for them.

One thread decides; it alone knows the queue. The threads of units (`hands`) and of launches (`renting`) tell it what
happened, and it tells them what to do. Signals reach it only while it waits: nothing that was told is lost by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

from cloudrun import reaper
from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    UnitGone,
    note_clean_up,
)
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import Image, Instance
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.offers import Offer
from cloudrun.plan.scheduling import Backlog, Decision, Limits, Terms, decide
from cloudrun.pools.bill import Bill
from cloudrun.pools.endings import Endings
from cloudrun.pools.extending import extend
from cloudrun.pools.hands import MACHINE_FAILED, Closed, Done, Freed, Hand, HandEvent, Opened
from cloudrun.pools.lookout import Lookout
from cloudrun.pools.pooled import PooledUnit
from cloudrun.pools.prospects import Prospects
from cloudrun.pools.renting import Launched, Renting
from cloudrun.pools.spreading import Spreading
from cloudrun.pools.work import Joined, Work
from cloudrun.units import launching
from cloudrun.units.lifeline import LIFELINE
from cloudrun.wiring import Cloud

TICK_S = 1.0  # how often to decide where nothing happens
CHECK_S = 0.5  # between two looks at whether the work is still ours


@dataclass(frozen=True)
class Told:
    """Something for the deciding thread to do."""

    act: Callable[[], None]


QueueSlots = Callable[[str], int | None] | None


class Pool:
    """`run` works through a queue and returns when nothing of it can be done any more. Not to be used twice."""

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
        check: Callable[[], None] = lambda: None,
        tags: Mapping[str, str] | None = None,
        terms: Callable[[str], Terms] | None = None,
        linger_s: float = 0.0,
        queue_slots: QueueSlots = None,
    ) -> None:
        """`check` is called now and then, and raises where the work is not this client's any more. `tags` are for the
        machines. `terms` tells what a type is like; all are as `limits` says by default. A machine that nothing is left
        for is ended `linger_s` seconds later, while more work may come. `queue_slots`: how many runs that wait on a
        machine of some type go on at a time; None leaves that to whoever let them wait."""
        self.cloud = cloud
        self.ledger = ledger
        self.settings = settings
        self.image = image
        self.limits = limits
        self.observe = observe
        self.clock = clock or SystemClock()
        self.changed = changed
        self.check = check
        self.terms = terms or (lambda _: Terms(limits.slots, limits.usd_per_hour))
        self.queue_slots = queue_slots or (lambda _: None)
        self.linger_s = linger_s
        self.hands: dict[str, Hand] = {}
        self.used: list[str] = []  # every unit that it ever had
        self.bill = Bill(settings.terminate_timeout_s)
        self.why = ""  # what is not being done, for people
        self.client_id = client_id
        self._events: deque[Launched | HandEvent | Told] = deque()
        self._bell = Event()
        self._renting = Renting(
            cloud, ledger, settings, image, self.terms, observe, self.clock,
            client_id=client_id, tags=tags or {}, tell=self._tell,
        )  # fmt: skip
        self._spreading = Spreading(cloud, ledger) if limits.max_units > 1 else None
        self._prospects = Prospects(self.clock, observe)
        self._lookout = Lookout(cloud, self.clock, observe, settings.boot_timeout_s)
        self._check_at = 0.0

    @property
    def spent_usd(self) -> float:
        """What has ended and what has run so far, at the price that was known."""
        return self.bill.spent_usd(self.hands.values(), self.clock.now().timestamp())

    @property
    def backlog(self) -> Backlog:
        """What waits and what runs; none before `run` is called."""
        return self._work.backlog() if hasattr(self, "_work") else Backlog(0, 0)

    def tell(self, act: Callable[[], None]) -> None:
        """Have it done by the deciding thread, between two decisions; what it raises ends all work. From any thread."""
        self._tell(Told(act))

    def do_what_was_told(self) -> None:
        """What was told after `run` was over, in the thread that ran it."""
        while self._events:
            if isinstance(event := self._events.popleft(), Told):
                event.act()

    def run(self, work: Work, joined: Joined | None = None) -> None:
        """Raises what `work` and `check` raise, and the refusal where nothing could be launched; then and in the end no
        unit is left, or CleanupIncomplete says which."""
        self._endings = Endings(self.cloud, self.ledger, self.settings.terminate_timeout_s, self.clock, self.client_id)
        self._work = work
        error: BaseException | None = None
        try:
            with LIFELINE.shield():
                self.join(joined or Joined())
            for unknown in reaper.settle(self.cloud, self.ledger, self.clock, self.observe):
                raise unknown
            self._work_through()
        except BaseException as cause:
            error = cause
            raise
        finally:
            with LIFELINE.shield(drop=error is not None):
                self._finish(error)

    # -- deciding ------------------------------------------------------------------------------------------------------

    def _work_through(self) -> None:
        while True:
            with LIFELINE.shield():
                if self.clock.monotonic() >= self._check_at:
                    self.check()
                    self._check_at = self.clock.monotonic() + CHECK_S
                if self._decide():
                    self._give_up()
                    if not self._work.is_open():
                        break
            self._bell.wait(self._pause_s())
            with LIFELINE.shield():
                self._hear()

    def _give_up(self) -> None:
        """Whoever waits for a machine that will not come learns it."""
        if self._work.backlog().queued and not self._work.stopped():
            self._work.given_up(self.why or self._prospects.hopeless, self._prospects.cause)
            self._prospects.begin_anew()  # for what comes later, where more may come

    def _decide(self) -> bool:
        """Whether nothing can be done any more."""
        work, offer = self._work, self._renting.offer()
        now = self.clock.now().timestamp()
        leaving, stuck = self.bill.settle(self._endings.is_ending, now)
        decision = decide(
            now,
            work.backlog(),
            [hand.view() for hand in self.hands.values()] + leaving + self._renting.views(),
            self._limits(offer),
            self.bill.ended_usd + budget.worst_usd(now, stuck, 0.0),
            stopped=work.stopped(),
            barred=self._prospects.hopeless,
        )
        self._obey(decision, offer)
        self.changed(self)
        if self.hands or self._renting.asked:
            return False
        if decision.why and leaving and not (self._prospects.hopeless or work.stopped()):
            return False  # what they have not used may pay for another
        return decision.ended or bool(decision.why or self._prospects.hopeless) or not work.backlog().queued

    def _limits(self, offer: Offer | None) -> Limits:
        """Those of the user, with what the next unit would be like."""
        boot_s = self._prospects.boot_s(self.limits.boot_s)
        if offer is None:
            return replace(self.limits, boot_s=boot_s, max_units=0)
        most = self._prospects.most_units(self.limits.max_units)
        terms = self.terms(offer.instance_type)
        return replace(self.limits, boot_s=boot_s, max_units=most, slots=terms.slots, usd_per_hour=terms.usd_per_hour)

    def _obey(self, decision: Decision, offer: Offer | None) -> None:
        self.why = decision.why
        for instance_id, deadline in decision.extend:
            extend(self.cloud, self.ledger, self.observe, self.hands[instance_id], deadline, self.tell)
        self._assign(decision.assign)
        self._assign_ahead(decision.ahead)
        self._let_linger(frozenset(decision.drain))
        if decision.launch and offer is not None:
            self._renting.ask(offer, decision.launch, decision.deadline)

    def _assign(self, assign: Sequence[tuple[str, int]]) -> None:
        given: list[tuple[str, Any]] = []
        for instance_id, count in assign:
            hand = self.hands[instance_id]
            for _ in range(count):
                if (task := self._work.take(hand.tasks)) is not None:
                    hand.reserve(task)
                    given.append((instance_id, task))
        self._give(given)

    def _assign_ahead(self, ahead: Sequence[tuple[str, int]]) -> None:
        """They are written down by their own threads, when there is a slot for them."""
        for instance_id, count in ahead:
            hand = self.hands[instance_id]
            for _ in range(count):
                if (task := self._work.take(hand.tasks)) is not None:
                    hand.give_ahead(task)

    def _give(self, given: Sequence[tuple[str, Any]]) -> None:
        for (instance_id, reserved), task in zip(given, self._work.begin(given) if given else (), strict=True):
            self.hands[instance_id].give(reserved, task)

    def _let_linger(self, unneeded: Set[str]) -> None:
        """Drain those that nothing has come for in a while, and that nobody copies from."""
        now = self.clock.monotonic()
        linger_s = self.linger_s if self._work.is_open() and not self._work.backlog().queued else 0.0
        for instance_id, hand in self.hands.items():  # and no unit that EC2 is still being asked for
            if instance_id not in unneeded:
                hand.unneeded_since = None
                continue
            if hand.unneeded_since is None:
                hand.unneeded_since = now
            lends = self._spreading is not None and self._spreading.lends(instance_id) and not self._work.stopped()
            if now - hand.unneeded_since >= linger_s and not lends:
                self._drain(hand)

    # -- hearing -------------------------------------------------------------------------------------------------------

    def _tell(self, event: Launched | HandEvent | Told) -> None:
        self._events.append(event)
        self._bell.set()

    def _pause_s(self) -> float:
        waiting = any(hand.waits for hand in self.hands.values())
        return min(TICK_S, self._lookout.pause_s) if waiting else TICK_S

    def _hear(self) -> None:
        """Take all that has happened."""
        self._bell.clear()
        while self._events:
            self._take(self._events.popleft())
        if self._lookout.pause_s == 0.0 and any(hand.waits for hand in self.hands.values()):
            self._look_for_running()

    def _take(self, event: Launched | HandEvent | Told) -> None:
        if isinstance(event, Told):
            event.act()
            return
        if isinstance(event, Launched):
            self._launched(event)
            return
        hand = self.hands[event.instance_id]
        if isinstance(event, Opened):
            hand.ready_at = self.clock.now().timestamp()
            if not hand.tasks:
                self._prospects.booted(hand.ready_at - hand.requested_at)
            if hand.state == "launching":
                hand.state = "ready"
        elif isinstance(event, Freed):
            hand.freed(event.task)
        elif isinstance(event, Done):
            hand.ended(event.task, event.error)
            if isinstance(event.error, MACHINE_FAILED):
                self._prospects.failure = event.error
                self._drain(hand)
            elif hand.unit is not None and hand.unit.is_let_go:
                self._drain(hand)
            self._work.ended(event.task, event.error)
            event.turn.give_back()  # after one that did not end well it is decided first whether there is a next one
        else:
            self._closed(hand, event.error)

    def _launched(self, event: Launched) -> None:
        self._renting.heard(event)
        for record in event.units:
            terms, created = self.terms(record.instance_type), record.created_at.timestamp()
            hand = Hand(record, terms.slots, terms.usd_per_hour, created, event.deadline)
            self.hands[record.instance_id] = hand
        if event.error is None:
            self._lookout.look_now()
            self._prospects.launched()
        else:
            self._prospects.refused(event, self._renting.offer, machines=len(self.hands))

    def _look_for_running(self) -> None:
        """Those that run get their threads."""
        for hand, found in self._lookout.look({name: hand for name, hand in self.hands.items() if hand.waits}):
            if isinstance(found, Instance):
                hand.record = launching.note_running(self.ledger, found)
                self._begin(hand)
            else:
                self._fail(hand, found)

    # -- units ---------------------------------------------------------------------------------------------------------

    def join(self, joined: Joined) -> None:
        """Go on with what a dead client has left. For the deciding thread. Where nobody knows what one of them is like,
        all of them are ended before that surfaces."""
        try:
            for record, _, _ in joined.units:
                self.terms(record.instance_type)
        except CloudrunError:
            for record, _, _ in joined.units:
                self._endings.add(record.instance_id)
            raise
        if joined.units or joined.spent_usd:
            self._prospects.launched()  # by whoever had them: such machines can be had
        self.bill.ended_usd += joined.spent_usd
        self._renting.launch_ids += joined.launches
        for instance_id in joined.ending:
            self._endings.add(instance_id)
        for record, price, tasks in joined.units:
            known = self.hands.get(record.instance_id)  # joined with other work that was on it
            slots = self.terms(record.instance_type).slots  # fewer than there are tasks, on a unit with a long queue
            created = record.created_at.timestamp()
            hand = known or Hand(record, slots, price, created, record.deadline.timestamp())
            self.hands[record.instance_id] = hand
            for task in tasks:
                hand.reserve(task)
                hand.give(task, task)
            if known is None and record.address and record.state is not UnitState.LAUNCHING:
                self._begin(hand)

    def _begin(self, hand: Hand) -> None:
        self.used.append(hand.record.instance_id)
        was_let_go = hand.record.on_exit == "keep" and hand.record.state is UnitState.READY
        unit = PooledUnit(
            self.cloud, self.ledger, self.settings, self.observe, self.clock,
            image=self.image, record=hand.record, client_id=self.client_id, end=self._endings.add,
            detached=was_let_go, queue_slots=self.queue_slots(hand.record.instance_type),
            spreading=self._spreading,
        )  # fmt: skip
        hand.begin(unit, self._work.carry_out, self._tell)

    def _drain(self, hand: Hand) -> None:
        if hand.state == "draining":
            return
        gave_up = hand.drain()
        if self._spreading is not None:
            self._spreading.leaves(hand.record.instance_id)
        if hand.waits:
            self._fail(hand, Cancelled("nobody needs it any more"))
        elif gave_up:
            self._endings.add(hand.record.instance_id)  # its thread may be waiting for an answer from it

    def _fail(self, hand: Hand, error: BaseException) -> None:
        """It is ended before it ever had a thread."""
        hand.over = True
        hand.state = "draining"
        self._endings.add(hand.record.instance_id)
        self._tell(Closed(hand.record.instance_id, error))

    def _closed(self, hand: Hand, error: BaseException | None) -> None:
        instance_id = hand.record.instance_id
        now = self.clock.now().timestamp()
        del self.hands[instance_id]
        hand.state = "draining"
        if self._endings.was_added(instance_id):
            self.bill.leaves(hand, now)
        else:
            self.bill.stays(hand, now)
        never_ready = hand.ready_at is None and not isinstance(error, Cancelled)
        if never_ready:
            self._prospects.failure = error
            self.observe(Note(f"{instance_id} did not get ready: {error}", "warning"))
        if never_ready or hand.useless:
            self._prospects.ended(worked=False)
        elif hand.worked:
            self._prospects.ended(worked=True)
        tasks, hand.tasks, hand.homeward = hand.tasks, [], []
        for task in tasks:  # it never came to them
            self._work.ended(task, UnitGone(f"{instance_id} has gone"))

    # -- ending --------------------------------------------------------------------------------------------------------

    def _finish(self, error: BaseException | None) -> None:
        """Whatever has happened: every thread over, every machine gone, keys and groups deleted."""
        failures: list[BaseException] = []
        while self.hands or self._renting.asked:
            for hand in list(self.hands.values()):
                if (error is not None or failures) and hand.unit is not None:
                    hand.unit.cancel()
                self._drain(hand)
            self._bell.wait(TICK_S)
            self._bell.clear()
            while self._events:
                try:
                    self._take(self._events.popleft())
                except BaseException as failure:  # noqa: BLE001  # whatever it is, the machines still have to go
                    failures.append(failure)
        self._renting.join()
        try:
            for instance_id in self._renting.settle():
                self._endings.add(instance_id)
        except CloudrunError as failure:
            failures.append(failure)
        try:
            self._endings.finish(self._renting.launch_ids)
        except CloudrunError as failure:
            failures.append(failure)
        self.bill.close(self._endings.is_ending, self.clock.now().timestamp())
        if error is None and failures:
            raise failures[0]
        for each in failures:
            if error is not None and each is not error:
                note_clean_up(error, each)
