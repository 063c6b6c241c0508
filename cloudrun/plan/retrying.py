"""What follows the end of an attempt at a cell, and when failures say that going on is of no use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cloudrun.core.states import EndReason
from cloudrun.plan.quantities import counted

Step = Literal["done", "again", "failed", "quarantine", "cancelled"]

# The cell's machine failed it, or the way there and home: another unit may do better.
INFRASTRUCTURE = frozenset(
    {
        EndReason.CLIENT_LOST,
        EndReason.DEADLINE,
        EndReason.INTERRUPTED,
        EndReason.PROVISION_FAILED,
        EndReason.PULL_FAILED,
        EndReason.SHIP_FAILED,
        EndReason.UNIT_LOST,
    }
)
# After these the cell itself is under suspicion: it may have brought its machine down, or have held it to the end.
SUSPICIOUS = frozenset({EndReason.UNIT_LOST, EndReason.DEADLINE})
UNITS_TAKEN_DOWN = 2
ATTEMPTS = 10  # that nobody's script had a part in: whatever is wrong, it is not going away
FIRST_FAILURES = 3
IDLE_UNITS = 5

_COLOUR = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NUMBER = re.compile(r"[-+]?(?:0x[0-9a-f]+|\d+(?:\.\d+)?(?:e[+-]?\d+)?)", re.IGNORECASE)
_LINE_CHARACTERS = 200


def next_step(ends: Sequence[EndReason], *, retries: int = 0) -> Step:
    """What becomes of a cell whose attempts ended so, the last one just now.

    The script's own failures are retried `retries` times. What its machine did is always tried again, on another unit,
    unless the cell is `quarantined`: it was there when two units went down, or was tried ten times for nothing.
    """
    last = ends[-1]
    if last is EndReason.COMPLETED:
        return "done"
    if last is EndReason.CANCELLED:
        return "cancelled"
    if last not in INFRASTRUCTURE:
        return "again" if sum(end not in INFRASTRUCTURE for end in ends) <= retries else "failed"
    if sum(end in SUSPICIOUS for end in ends) >= UNITS_TAKEN_DOWN:
        return "quarantine"
    return "quarantine" if sum(end in INFRASTRUCTURE for end in ends) >= ATTEMPTS else "again"


def last_line(stderr: str) -> str:
    """The last line that says something, without colours."""
    lines = [line.strip() for line in _COLOUR.sub("", stderr).splitlines()]
    return next((line for line in reversed(lines) if line), "")[:_LINE_CHARACTERS]


def signature(line: str) -> str:
    """A failure's last line with its numbers masked: two cells with the same one failed alike."""
    return _NUMBER.sub("#", last_line(line))


@dataclass
class Failures:
    """The cells of a grid that failed: where all of the first ones to end did so in the same way, so will the others.

    `succeeded` may be set from the start, for a grid that has results already.
    """

    succeeded: bool = False
    count: int = 0
    first_run: str = ""  # the id of the first that failed
    first_why: str = ""
    are_alike: bool = True  # all of them
    signatures: list[str] = field(default_factory=list)  # of the first ones

    def success(self) -> None:
        self.succeeded = True

    def failure(self, run_id: str, why: str) -> None:
        """A cell failed for good, by its own doing. `why`: the last line it wrote on stderr, say."""
        self.count += 1
        if not self.signatures:
            self.first_run, self.first_why = run_id, why
        self.are_alike = self.are_alike and signature(why) == signature(self.first_why)
        if len(self.signatures) < FIRST_FAILURES:
            self.signatures.append(signature(why))

    def stop(self, cells: int, *, keep_going: bool = False) -> str:
        """Why no further one of the grid's `cells` should be started; "" where they should."""
        is_in_vain = not self.succeeded and len(self.signatures) == FIRST_FAILURES and len(set(self.signatures)) == 1
        return self.in_words(cells) if is_in_vain and not keep_going else ""

    def wait(self, running: int, *, keep_going: bool = False) -> bool:
        """Whether another cell should wait until one of those that run has told more: where they may be the last that
        it takes to see that all fail. No more than two slots ever wait for that, and none after a success."""
        return bool(self.doubt(keep_going=keep_going)) and self.count + running >= FIRST_FAILURES

    def doubt(self, *, keep_going: bool = False) -> str:
        """Why a cell that was given out before it had a slot is not to begin there after all: others were not to be
        given out now, and how many are is decided anew. "" where it is to begin."""
        if keep_going or self.succeeded or not 0 < self.count < FIRST_FAILURES or not self.are_alike:
            return ""
        return "the first cells failed, and others wait until more is known"

    def in_words(self, cells: int) -> str:
        """What is to be said of a grid of so many cells where none has succeeded."""
        if cells == 1:
            return f"the only cell failed{self._example}"
        which = f"all {counted(cells, 'cell')}" if self.count >= cells else f"{self.count} of {counted(cells, 'cell')}"
        alike = "with the same error" if self.are_alike else f"the first {len(self.signatures)} with the same error"
        if not self.are_alike and len(set(self.signatures)) > 1:
            alike = "one of them with"
        separator = " " if self.are_alike else ", "
        rest = "" if self.count >= cells else ", so no other was begun"
        return f"{which} failed{separator}{alike}{rest}{self._example}"

    @property
    def _example(self) -> str:
        return f": {self.first_why}" if self.first_why else ""


def useless_launches(worked: Sequence[bool]) -> str:
    """Why no further unit should be launched, "" where one may; `worked`: of the ended units, in the order they ended.

    A unit worked if a cell was ever started on it. Those that were ended because nobody needed them are left out.
    """
    if len(worked) < IDLE_UNITS or any(worked[-IDLE_UNITS:]):
        return ""
    return f"the last {IDLE_UNITS} units went before they could work on anything"
