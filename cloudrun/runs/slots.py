"""The slots of one unit, as its threads share them: a run that was given out ahead of its turn waits for one here."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition

from cloudrun.core.errors import Cancelled
from cloudrun.plan.scheduling import PATIENCE_S

LOOK_S = 0.2  # how often whoever waits looks whether he is to stop


class Recalled(Cancelled):
    """Its turn does not come on this unit; nothing of it has begun."""


class Slots:
    """So many tasks at a time. A slot may be taken and freed by different threads."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._recalled = False
        self._sent_back = 0  # how often
        self.waiting = 0  # for one, at the moment
        self._changed = Condition()

    def occupy(self) -> None:
        """For a task that runs there already, or begins now, whether there is one or not."""
        with self._changed:
            self._free -= 1

    def free(self) -> None:
        with self._changed:
            self._free += 1
            self._changed.notify()

    def recall(self) -> None:
        """Nothing more begins on this unit: whoever waits, or comes to wait, is sent back."""
        with self._changed:
            self._recalled = True
            self._changed.notify_all()

    def send_back(self) -> None:
        """Whoever waits now: others have a slot for him."""
        with self._changed:
            self._sent_back += 1
            self._changed.notify_all()

    def take(self, *, wait: bool = True, check: Callable[[], None] = lambda: None) -> bool:
        """Whether there was one, or came to be one. `check` is called meanwhile, and raises where it need not go on.

        Raises Recalled.
        """
        until = time.monotonic() + PATIENCE_S
        with self._changed:
            sent_back = self._sent_back
            self.waiting += wait
            try:
                while True:
                    if self._recalled:
                        raise Recalled("it was to begin on a machine on which nothing begins any more")
                    if self._free > 0:
                        self._free -= 1
                        return True
                    if not wait:
                        return False
                    if time.monotonic() > until or self._sent_back > sent_back:
                        raise Recalled("it was to begin after another one, which takes longer than was expected")
                    self._changed.wait(LOOK_S)
                    check()
            finally:
                self.waiting -= wait


class Turn:
    """One task's claim to a slot: to be taken before it begins, and over once the unit can begin another."""

    def __init__(
        self, slots: Slots | None = None, over: Callable[[], None] = lambda: None, *, has_slot: bool = False
    ) -> None:
        """`slots`: None where it shares the unit with nothing. `over` is called when it is. `has_slot`: one
        was occupied for it."""
        self._slots = slots or Slots(1)
        self._over = over
        self._has_slot = has_slot
        self._doubts: list[Callable[[], str]] = []

    def take(self, *, wait: bool = True, check: Callable[[], None] = lambda: None) -> bool:
        """As `Slots.take`; a second time it is there already."""
        if not self._has_slot:
            self._has_slot = self._slots.take(wait=wait, check=check)
            if why := next(filter(None, (doubt() for doubt in self._doubts)), ""):
                raise Recalled(why)
        return self._has_slot

    def unless(self, stopped: Callable[[], str]) -> None:
        """Have it asked, when it is its turn, why it is not to begin after all; "" where it is."""
        self._doubts.append(stopped)

    def end(self) -> None:
        """Of the task only the way home is left."""
        self.give_back()
        self._over()

    def give_back(self) -> None:
        """Its slot, where it still has it."""
        if self._has_slot:
            self._has_slot = False
            self._slots.free()
