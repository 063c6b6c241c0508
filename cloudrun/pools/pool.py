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
    CloudrunError,
    UnitGone,
    note_clean_up,
)
from cloudrun.core.events import Observer
from cloudrun.core.records import ComingJobs, Image
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.plan import budget
from cloudrun.plan.offers import Offer
from cloudrun.plan.scheduling import Backlog, Decision, Limits, Terms, decide
from cloudrun.pools.bill import Bill
from cloudrun.pools.extending import extend
from cloudrun.pools.fleet import Fleet
from cloudrun.pools.hands import MACHINE_FAILED, Done, Freed, Hand, HandEvent, Opened
from cloudrun.pools.renting import Launched, Renting
from cloudrun.pools.work import Joined, Work
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
        coming: Callable[[], ComingJobs | None] = lambda: None,
    ) -> None:
        """`check` is called now and then, and raises where the work is not this client's any more. `tags` are for the
        machines. `terms` tells what a type is like; all are as `limits` says by default. A machine that nothing is left
        for is ended `linger_s` seconds later, while more work may come. `queue_slots`: how many runs that wait on a
        machine of some type go on at a time; None leaves that to whoever let them wait. `coming`: the jobs that one is
        about to get."""
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
        self.linger_s = linger_s
        self.why = ""  # what is not being done, for people
        self.client_id = client_id
        self._events: deque[Launched | HandEvent | Told] = deque()
        self._bell = Event()
        self._renting = Renting(
            cloud, ledger, settings, image, self.terms, observe, self.clock,
            client_id=client_id, tags=tags or {}, tell=self._tell,
        )  # fmt: skip
        self.fleet = Fleet(
            cloud, ledger, settings, image, observe, self.clock,
            client_id=client_id, terms=self.terms, queue_slots=queue_slots or (lambda _: None),
            several=limits.max_units > 1, coming=coming, tell=self._tell,
        )  # fmt: skip
        self._check_at = 0.0

    @property
    def hands(self) -> dict[str, Hand]:
        return self.fleet.hands

    @property
    def used(self) -> list[str]:
        """Every unit that it ever had."""
        return self.fleet.used

    @property
    def bill(self) -> Bill:
        return self.fleet.bill

    @property
    def spent_usd(self) -> float:
        """What has ended and what has run so far, at the price that was known."""
        return self.fleet.spent_usd

    @property
    def backlog(self) -> Backlog:
        """What waits and what runs; none before `run` is called."""
        return self._work.backlog() if hasattr(self, "_work") else Backlog(0, 0)

    def tell(self, act: Callable[[], None]) -> None:
        """Have it done by the deciding thread, between two decisions; what it raises ends all work. From any thread."""
        self._tell(Told(act))

    def join(self, joined: Joined) -> None:
        """Go on with what a dead client has left, as `Fleet.join`. For the deciding thread."""
        self._renting.launch_ids += joined.launches
        self.fleet.join(joined)

    def do_what_was_told(self) -> None:
        """What was told after `run` was over, in the thread that ran it."""
        while self._events:
            if isinstance(event := self._events.popleft(), Told):
                event.act()

    def run(self, work: Work, joined: Joined | None = None) -> None:
        """Raises what `work` and `check` raise, and the refusal where nothing could be launched; then and in the end no
        unit is left, or CleanupIncomplete says which."""
        self._work = work
        self.fleet.open(work.carry_out)
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
            prospects = self.fleet.prospects
            self._work.given_up(self.why or prospects.hopeless, prospects.cause)
            prospects.begin_anew()  # for what comes later, where more may come

    def _decide(self) -> bool:
        """Whether nothing can be done any more."""
        work, offer = self._work, self._renting.offer()
        now = self.clock.now().timestamp()
        leaving, stuck = self.fleet.settle(now)
        hopeless = self.fleet.prospects.hopeless
        decision = decide(
            now,
            work.backlog(),
            [hand.view() for hand in self.hands.values()] + leaving + self._renting.views(),
            self._limits(offer),
            self.bill.ended_usd + budget.worst_usd(now, stuck, 0.0),
            stopped=work.stopped(),
            barred=hopeless,
        )
        if why := work.stopped():
            self.fleet.spare(why)
        self._obey(decision, offer)
        self.changed(self)
        if self.hands or self._renting.asked:
            return False
        if decision.why and leaving and not (hopeless or work.stopped()):
            return False  # what they have not used may pay for another
        return decision.ended or bool(decision.why or hopeless) or not work.backlog().queued

    def _limits(self, offer: Offer | None) -> Limits:
        """Those of the user, with what the next unit would be like."""
        boot_s = self.fleet.prospects.boot_s(self.limits.boot_s)
        if offer is None:
            return replace(self.limits, boot_s=boot_s, max_units=0)
        most = self.fleet.prospects.most_units(self.limits.max_units)
        terms = self.terms(offer.instance_type)
        return replace(self.limits, boot_s=boot_s, max_units=most, slots=terms.slots, usd_per_hour=terms.usd_per_hour)

    def _obey(self, decision: Decision, offer: Offer | None) -> None:
        self.why = decision.why
        for instance_id, deadline in decision.extend:
            extend(self.cloud, self.ledger, self.observe, self.hands[instance_id], deadline, self.tell)
        self._assign(decision.assign)
        self._assign_ahead(decision.ahead)
        for instance_id in decision.recall:
            self.hands[instance_id].send_back()
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
            lends = self.fleet.lends(instance_id) and not self._work.stopped()
            if now - hand.unneeded_since >= linger_s and not lends:
                self.fleet.drain(hand)

    # -- hearing -------------------------------------------------------------------------------------------------------

    def _tell(self, event: Launched | HandEvent | Told) -> None:
        self._events.append(event)
        self._bell.set()

    def _pause_s(self) -> float:
        look_in_s = self.fleet.look_in_s
        return TICK_S if look_in_s is None else min(TICK_S, look_in_s)

    def _hear(self) -> None:
        """Take all that has happened."""
        self._bell.clear()
        while self._events:
            self._take(self._events.popleft())
        if self.fleet.look_in_s == 0.0:
            self.fleet.look()

    def _take(self, event: Launched | HandEvent | Told) -> None:
        if isinstance(event, Told):
            event.act()
            return
        if isinstance(event, Launched):
            self._renting.heard(event)
            self.fleet.launched(event)
            if event.error is not None:
                self.fleet.prospects.refused(event, self._renting.offer, machines=len(self.hands))
            return
        hand = self.hands[event.instance_id]
        if isinstance(event, Opened):
            self.fleet.opened(hand)
        elif isinstance(event, Freed):
            hand.freed(event.task)
        elif isinstance(event, Done):
            hand.ended(event.task, event.error)
            if isinstance(event.error, MACHINE_FAILED):
                self.fleet.prospects.failure = event.error
                self.fleet.drain(hand)
            elif hand.unit is not None and hand.unit.is_let_go:
                self.fleet.drain(hand)
            self._work.ended(event.task, event.error)
            event.turn.give_back()  # after one that did not end well it is decided first whether there is a next one
        else:
            for task in self.fleet.closed(hand, event.error):
                self._work.ended(task, UnitGone(f"{event.instance_id} has gone"))

    # -- ending --------------------------------------------------------------------------------------------------------

    def _finish(self, error: BaseException | None) -> None:
        """Whatever has happened: every thread over, every machine gone, keys and groups deleted."""
        failures: list[BaseException] = []
        while self.hands or self._renting.asked:
            for hand in list(self.hands.values()):
                if (error is not None or failures) and hand.unit is not None:
                    hand.unit.cancel(error)
                self.fleet.drain(hand)
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
                self.fleet.endings.add(instance_id)
        except CloudrunError as failure:
            failures.append(failure)
        try:
            self.fleet.endings.finish(self._renting.launch_ids)
        except CloudrunError as failure:
            failures.append(failure)
        self.bill.close(self.fleet.endings.is_ending, self.clock.now().timestamp())
        if error is None and failures:
            raise failures[0]
        for each in failures:
            if error is not None and each is not error:
                note_clean_up(error, each)
