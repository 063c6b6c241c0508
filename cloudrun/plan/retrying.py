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
_SIGNATURE_CHARACTERS = 200


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


def signature(stderr: str) -> str:
    """The last line that says something, with its numbers masked: two cells with the same one failed alike."""
    lines = [line.strip() for line in _COLOUR.sub("", stderr).splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return _NUMBER.sub("#", last)[:_SIGNATURE_CHARACTERS]


@dataclass
class Failures:
    """The first cells of a grid to end: where all of them failed alike, so will the others.

    `succeeded` may be set from the start, for a grid that has results already.
    """

    succeeded: bool = False
    signatures: list[str] = field(default_factory=list)

    def success(self) -> None:
        self.succeeded = True

    def failure(self, stderr: str) -> None:
        """A cell failed for good, by its own doing. `stderr`: its last lines."""
        if len(self.signatures) < FIRST_FAILURES:
            self.signatures.append(signature(stderr))

    def stop(self, *, keep_going: bool = False) -> str:
        """Why no further cell should be started; "" where they should."""
        if keep_going or self.succeeded or len(self.signatures) < FIRST_FAILURES or len(set(self.signatures)) > 1:
            return ""
        said = f": {self.signatures[0]}" if self.signatures[0] else ""
        return f"the first {FIRST_FAILURES} cells failed in the same way{said}"


def useless_launches(worked: Sequence[bool]) -> str:
    """Why no further unit should be launched, "" where one may; `worked`: of the ended units, in the order they ended.

    A unit worked if a cell was ever started on it. Those that were ended because nobody needed them are left out.
    """
    if len(worked) < IDLE_UNITS or any(worked[-IDLE_UNITS:]):
        return ""
    return f"the last {IDLE_UNITS} units went before they could work on anything"
