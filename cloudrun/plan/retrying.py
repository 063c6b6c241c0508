"""What follows the end of an attempt at a cell, and when failures say that going on is of no use."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from cloudrun.core.states import EndReason

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
    first_run: str = ""  # the id of the first that failed
    first_why: str = ""
    are_alike: bool = True  # all of them
    signatures: list[str] = field(default_factory=list)  # of the first ones

    def success(self) -> None:
        self.succeeded = True

    def failure(self, run_id: str, why: str) -> None:
        """A cell failed for good, by its own doing. `why`: the last line it wrote on stderr, say."""
        if not self.signatures:
            self.first_run, self.first_why = run_id, why
        self.are_alike = self.are_alike and signature(why) == signature(self.first_why)
        if len(self.signatures) < FIRST_FAILURES:
            self.signatures.append(signature(why))

    def stop(self, *, keep_going: bool = False) -> str:
        """Why no further cell should be started; "" where they should."""
        if keep_going or self.succeeded or len(self.signatures) < FIRST_FAILURES or len(set(self.signatures)) > 1:
            return ""
        return f"the first {FIRST_FAILURES} cells to end failed in the same way{self._example}"

    def all_of(self, cells: int) -> str:
        """In words, of a grid whose `cells` all failed."""
        which = "the only cell" if cells == 1 else f"all {cells} cells"
        how = " in the same way" if cells > 1 and self.are_alike else ", one of them with" if cells > 1 else ""
        return f"{which} failed{how}{self._example}"

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
