"""One unit of a pool, with its threads: one opens and closes it, and two for each slot carry out task after task.

While one of the two brings home what a task has made, and writes that down, the other has the unit begin the next:
one that was given out before there was a slot for it waits for that in its thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal

from cloudrun.core.errors import ConnectionLost, DeadlineReached, LaunchError, ProvisionError
from cloudrun.core.records import UnitRecord
from cloudrun.plan.scheduling import UnitView
from cloudrun.pools.pooled import PooledUnit
from cloudrun.runs.slots import Recalled, Slots, Turn
from cloudrun.units.opening import close_behind

THREADS = 2  # for each slot
# What a task raises where its machine is of no use any more; whatever else it raises is its own.
MACHINE_FAILED = (ConnectionLost, DeadlineReached, LaunchError, ProvisionError)


@dataclass(frozen=True)
class Opened:
    instance_id: str


@dataclass(frozen=True)
class Done:
    """A task is over. `error` is what `carry_out` raised."""

    instance_id: str
    task: Any
    error: BaseException | None
    turn: Turn = field(compare=False)  # what is left of it is for whoever judges the task


@dataclass(frozen=True)
class Closed:
    """Nothing of ours is on it any more. `error`: why it never opened, or how closing it failed."""

    instance_id: str
    error: BaseException | None


@dataclass(frozen=True)
class Freed:
    """Of a task only the way home is left: its slot may have another."""

    instance_id: str
    task: Any


HandEvent = Opened | Freed | Done | Closed
CarryOut = Callable[[PooledUnit, Any, Turn], None]


@dataclass
class Hand:
    """As the deciding thread sees it, which alone changes it. `tasks`: those that it has, begun or not."""

    record: UnitRecord
    slots: int
    usd_per_hour: float
    requested_at: float
    deadline: float  # the latest that it may hold
    state: Literal["launching", "ready", "draining"] = "launching"
    unit: PooledUnit | None = None
    tasks: list[Any] = field(default_factory=list)
    homeward: list[Any] = field(default_factory=list)  # those of them that need no slot any more
    worked: bool = False  # it carried out a task, whatever came of that
    useless: bool = False  # it never got as far
    ready_at: float | None = None
    held_up: bool = False  # what waits for a slot waits longer than was expected
    unneeded_since: float | None = None  # by the clock that does not jump
    sure_until: float | None = None  # where it may not have taken its deadline: the one that it had
    over: bool = False  # it never had a thread, and shall have none
    _inbox: SimpleQueue[tuple[Any, bool] | None] = field(default_factory=SimpleQueue)  # tasks; whether they have slots
    _slots: Slots = field(init=False)

    def __post_init__(self) -> None:
        self._slots = Slots(self.slots)

    @property
    def waits(self) -> bool:
        """Whether EC2 has not said yet that it runs."""
        return self.unit is None and not self.over

    @property
    def ahead(self) -> int:
        """Tasks that wait for a slot."""
        return max(0, len(self.tasks) - len(self.homeward) - self.slots)

    def view(self) -> UnitView:
        return UnitView(
            self.record.instance_id,
            self.state,
            self.slots,
            len(self.tasks) - len(self.homeward),
            self.requested_at,
            self.deadline,
            self.usd_per_hour,
            self.record.instance_type,
            self.sure_until,
            len(self.homeward),
            self.held_up,
            self._slots.waiting,
        )

    def reserve(self, task: Any) -> None:
        """It is to be given this one."""
        self.tasks.append(task)

    def give(self, reserved: Any, task: Any) -> None:
        """Begin one that was reserved, as it is now, or go on with it: it has a slot."""
        self.tasks[self.tasks.index(reserved)] = task
        self._slots.occupy()
        self._inbox.put((task, True))

    def give_ahead(self, task: Any) -> None:
        """It begins as soon as there is a slot."""
        self.tasks.append(task)
        self._inbox.put((task, False))

    def begin(self, unit: PooledUnit, carry_out: CarryOut, tell: Callable[[HandEvent], None]) -> None:
        """It runs: log in, work, and close it when it is drained. `tell` is called from its threads."""
        self.unit = unit
        name = f"cloudrun-{unit.instance_id}"
        Thread(target=self._live, args=(unit, carry_out, tell), name=name).start()

    def drain(self) -> bool:
        """No further task; it is closed when those that it has are over. Returns whether it gives up getting ready."""
        self.state = "draining"
        self._slots.recall()
        for _ in range(THREADS * self.slots):
            self._inbox.put(None)
        if self.unit is None or self.ready_at is not None or self.tasks:
            return False
        self.unit.cancel()
        return True

    def send_back(self) -> None:
        """What waits for a slot comes back."""
        self._slots.send_back()

    def freed(self, task: Any) -> None:
        self.homeward.append(task)
        self.held_up = False

    def ended(self, task: Any, error: BaseException | None) -> None:
        """One of its tasks is over."""
        self.tasks.remove(task)
        if task in self.homeward:
            self.homeward.remove(task)
        self.held_up = isinstance(error, Recalled)
        began = self.unit is not None and self.unit.begins_jobs
        self.worked = self.worked or error is None or (began and not isinstance(error, ProvisionError | Recalled))
        self.useless = not self.worked

    def _live(self, unit: PooledUnit, carry_out: CarryOut, tell: Callable[[HandEvent], None]) -> None:
        error: BaseException | None = None
        try:
            unit.open()
        except BaseException as failure:  # noqa: BLE001  # the deciding thread judges it
            tell(Closed(unit.instance_id, failure))
            return
        with unit.at_work():  # who ends it by a signal leaves the closing to this thread
            tell(Opened(unit.instance_id))
            slots: list[Thread] = []
            try:
                for number in range(THREADS * self.slots):
                    name = f"cloudrun-slot-{number}"
                    slot = Thread(target=self._serve, args=(unit, carry_out, tell), name=name)
                    slot.start()
                    slots.append(slot)
            except RuntimeError as failure:  # this computer has no thread left: those that there are do it all
                error = None if slots else ProvisionError(f"{unit.instance_id} cannot be worked with: {failure}")
            for slot in slots:
                slot.join()
            try:
                close_behind(unit, None)
            except BaseException as failure:  # noqa: BLE001
                error = error or failure
        tell(Closed(unit.instance_id, error))

    def _serve(self, unit: PooledUnit, carry_out: CarryOut, tell: Callable[[HandEvent], None]) -> None:
        while (given := self._inbox.get()) is not None:
            task, has_slot = given
            error: BaseException | None = None
            turn = Turn(self._slots, partial(tell, Freed(unit.instance_id, task)), has_slot=has_slot)
            try:
                carry_out(unit, task, turn)
            except BaseException as failure:  # noqa: BLE001
                error = failure
            tell(Done(unit.instance_id, task, error, turn))
