"""Short ids that sort by when they were made."""

from __future__ import annotations

import os
import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter that looks like a digit
_RANDOM_BITS = 25
_STEP = 1 << 16  # at most from one id to the next of the same sixteenth of a second: others cannot be guessed from one
_lock = threading.Lock()
_last = 0


def _after_fork() -> None:
    """A thread that the child does not have may have held the lock; and what follows the last id is the parent's."""
    global _lock, _last
    _lock, _last = threading.Lock(), 0


os.register_at_fork(after_in_child=_after_fork)


def _base32(value: int, length: int) -> str:
    return "".join(_ALPHABET[(value >> (5 * place)) & 31] for place in reversed(range(length)))


def new_id(kind: str) -> str:
    """`kind-` and 13 characters: 40 bits of seconds x 16 since 1970, then 25 random bits.

    Each is larger than the one before it, so that what one process makes is in order and never twice the same, however
    much of it: of a thousand ids of one moment that were only random two would be alike once in 70 times.
    """
    global _last
    now = (int(time.time() * 16) << _RANDOM_BITS) + secrets.randbits(_RANDOM_BITS)
    with _lock:
        is_later = now >> _RANDOM_BITS > _last >> _RANDOM_BITS
        _last = now if is_later else _last + 1 + secrets.randbelow(_STEP)
        return f"{kind}-{_base32(_last, 13)}"
