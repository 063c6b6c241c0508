"""Short ids that sort by when they were made."""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no letter that looks like a digit


def _base32(value: int, length: int) -> str:
    return "".join(_ALPHABET[(value >> (5 * place)) & 31] for place in reversed(range(length)))


def new_id(kind: str) -> str:
    """`kind-` and 13 characters: 40 bits of seconds x 16 since 1970, then 25 random bits."""
    return f"{kind}-{_base32(int(time.time() * 16), 8)}{_base32(secrets.randbits(25), 5)}"
