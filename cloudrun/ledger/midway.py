"""Where an interrupt would leave the ledger's turn taken: in what begins and ends its blocks.

Python has no way to make `__enter__` and `__exit__` whole: a signal that comes after the one has taken a lock, or
before the other's first line, is raised where nobody gives it back. So whoever handles signals asks here, and waits.
"""

from __future__ import annotations

import contextlib
from types import FrameType, GeneratorType

from cloudrun.ledger import database, store

_BLOCKS = (database.__file__, store.__file__)  # generators of these files hold the turn between their two halves


def is_midway(frame: FrameType | None) -> bool:
    """Whether what runs in `frame` is on its way into a ledger's block or out of it. What a block does is not: there an
    interrupt takes it back."""
    while frame is not None:
        if frame.f_code.co_filename == database.__file__:
            return True
        if frame.f_code.co_filename == contextlib.__file__:
            block = getattr(frame.f_locals.get("self"), "gen", None)
            if isinstance(block, GeneratorType) and block.gi_code.co_filename in _BLOCKS:
                return True
        frame = frame.f_back
    return False
