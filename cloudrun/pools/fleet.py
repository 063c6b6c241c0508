"""The machines of a pool, from their launch to their end, and what they cost. For the deciding thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cloudrun.core.clock import Clock
from cloudrun.core.errors import Cancelled, CloudrunError
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import ComingJobs, Image, Instance
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Terms, UnitView
from cloudrun.pools.bill import Bill
from cloudrun.pools.endings import Endings
from cloudrun.pools.hands import CarryOut, Closed, Hand, HandEvent
from cloudrun.pools.lookout import Lookout
from cloudrun.pools.pooled import PooledUnit
from cloudrun.pools.prospects import Prospects
from cloudrun.pools.renting import Launched
from cloudrun.pools.spreading import Spreading
from cloudrun.pools.work import Joined
from cloudrun.units import launching
from cloudrun.wiring import Cloud


class Fleet:
    """`hands` are those that work or are about to; one told to end is `bill`'s until EC2 says that it is gone."""

    def __init__(
        self,
        cloud: Cloud,
        ledger: Ledger,
        settings: Settings,
        image: Image,
        observe: Observer,
        clock: Clock,
        *,
        client_id: str,
        terms: Callable[[str], Terms],
        queue_slots: Callable[[str], int | None],
        several: bool,
        coming: Callable[[], ComingJobs | None],
        tell: Callable[[HandEvent], None],
    ) -> None:
        """`several`: they get their environment from each other. `coming`: what one that is logged in to makes ready
        for. `tell` is called with what happens to them."""
        self.hands: dict[str, Hand] = {}
        self.used: list[str] = []  # every unit that it ever had
        self.bill = Bill(settings.terminate_timeout_s)
        self.prospects = Prospects(clock, observe)
        self._cloud = cloud
        self._ledger = ledger
        self._settings = settings
        self._image = image
        self._observe = observe
        self._clock = clock
        self._client_id = client_id
        self._terms = terms
        self._queue_slots = queue_slots
        self._spreading = Spreading(cloud, ledger) if several else None
        self._coming = coming
        self._tell = tell
        self._lookout = Lookout(cloud, clock, observe, settings.boot_timeout_s)

    def open(self, carry_out: CarryOut) -> None:
        """From here on it may have machines. `carry_out` is what they are for."""
        self._carry_out = carry_out
        self.endings = Endings(
            self._cloud, self._ledger, self._settings.terminate_timeout_s, self._clock, self._client_id
        )

    @property
    def spent_usd(self) -> float:
        """What has ended and what has run so far, at the price that was known."""
        return self.bill.spent_usd(self.hands.values(), self._clock.now().timestamp())

    def settle(self, now: float) -> tuple[list[UnitView], list[UnitView]]:
        """Count what has gone. Returns those that are being ended, and those that should be gone by now."""
        return self.bill.settle(self.endings.is_ending, now)

    # -- they come -----------------------------------------------------------------------------------------------------

    def join(self, joined: Joined) -> None:
        """Go on with what a dead client has left. Where nobody knows what one of them is like, all of them are ended
        before that surfaces."""
        try:
            for record, _, _ in joined.units:
                self._terms(record.instance_type)
        except CloudrunError:
            for record, _, _ in joined.units:
                self.endings.add(record.instance_id)
            raise
        if joined.units or joined.spent_usd:
            self.prospects.launched()  # by whoever had them: such machines can be had
        self.bill.ended_usd += joined.spent_usd
        for instance_id in joined.ending:
            self.endings.add(instance_id)
        for record, price, tasks in joined.units:
            known = self.hands.get(record.instance_id)  # joined with other work that was on it
            slots = self._terms(record.instance_type).slots  # fewer than there are tasks, on a unit with a long queue
            created = record.created_at.timestamp()
            hand = known or Hand(record, slots, price, created, record.deadline.timestamp())
            self.hands[record.instance_id] = hand
            for task in tasks:
                hand.reserve(task)
                hand.give(task, task)
            if known is None and record.address and record.state is not UnitState.LAUNCHING:
                self._begin(hand)

    def launched(self, event: Launched) -> None:
        for record in event.units:
            terms, created = self._terms(record.instance_type), record.created_at.timestamp()
            hand = Hand(record, terms.slots, terms.usd_per_hour, created, event.deadline)
            self.hands[record.instance_id] = hand
        if event.error is None:
            self._lookout.look_now()
            self.prospects.launched()

    @property
    def look_in_s(self) -> float | None:
        """When to look which of them run by now; None where all do."""
        return self._lookout.pause_s if any(hand.waits for hand in self.hands.values()) else None

    def look(self) -> None:
        """Those that run get their threads."""
        for hand, found in self._lookout.look({name: hand for name, hand in self.hands.items() if hand.waits}):
            if isinstance(found, Instance):
                hand.record = launching.note_running(self._ledger, found)
                self._begin(hand)
            else:
                self._fail(hand, found)

    def _begin(self, hand: Hand) -> None:
        self.used.append(hand.record.instance_id)
        was_let_go = hand.record.on_exit == "keep" and hand.record.state is UnitState.READY
        unit = PooledUnit(
            self._cloud, self._ledger, self._settings, self._observe, self._clock,
            image=self._image, record=hand.record, client_id=self._client_id, end=self.endings.add,
            detached=was_let_go, queue_slots=self._queue_slots(hand.record.instance_type),
            spreading=self._spreading, coming=self._coming(),
        )  # fmt: skip
        unit.begins_jobs = bool(hand.tasks)  # those of a client that is dead run there already
        hand.begin(unit, self._carry_out, self._tell)

    def opened(self, hand: Hand) -> None:
        hand.ready_at = self._clock.now().timestamp()
        if not hand.tasks:
            self.prospects.booted(hand.ready_at - hand.requested_at)
        if hand.state == "launching":
            hand.state = "ready"

    # -- and go --------------------------------------------------------------------------------------------------------

    def lends(self, instance_id: str) -> bool:
        """Whether another machine gets its environment from it just now."""
        return self._spreading is not None and self._spreading.lends(instance_id)

    def spare(self, why: str) -> None:
        """Whoever still gets ready for what is not to be begun any more need not."""
        for hand in self.hands.values():
            if hand.unit is not None and not (hand.unit.begins_jobs or hand.unit.cancelled.is_set()):
                hand.unit.cancel(Cancelled(why))

    def drain(self, hand: Hand) -> None:
        """It gets nothing more, and is ended when it has nothing."""
        if hand.state == "draining":
            return
        gave_up = hand.drain()
        if self._spreading is not None:
            self._spreading.leaves(hand.record.instance_id)
        if hand.waits:
            self._fail(hand, Cancelled("nobody needs it any more"))
        elif gave_up:
            self.endings.add(hand.record.instance_id)  # its thread may be waiting for an answer from it

    def _fail(self, hand: Hand, error: BaseException) -> None:
        """It is ended before it ever had a thread."""
        hand.over = True
        hand.state = "draining"
        self.endings.add(hand.record.instance_id)
        self._tell(Closed(hand.record.instance_id, error))

    def closed(self, hand: Hand, error: BaseException | None) -> list[Any]:
        """Nothing of ours is on it any more. Returns the tasks that it never came to."""
        instance_id = hand.record.instance_id
        now = self._clock.now().timestamp()
        del self.hands[instance_id]
        hand.state = "draining"
        if self.endings.was_added(instance_id):
            self.bill.leaves(hand, now)
        else:
            self.bill.stays(hand, now)
        is_given_up = hand.unit is not None and hand.unit.cancelled.is_set()
        never_ready = hand.ready_at is None and not (is_given_up or isinstance(error, Cancelled))
        if never_ready:
            self.prospects.failure = error
            self._observe(Note(f"{instance_id} did not get ready: {error}", "warning"))
        if never_ready or hand.useless:
            self.prospects.ended(worked=False)
        elif hand.worked:
            self.prospects.ended(worked=True)
        tasks, hand.tasks, hand.homeward = hand.tasks, [], []
        return tasks
