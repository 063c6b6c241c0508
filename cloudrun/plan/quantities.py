"""Durations and sizes as people write them ("4h", "200MB") to seconds and bytes, and back; counts and scores."""

from __future__ import annotations

import math
import re

_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_BYTES = {
    "b": 1,
    "kb": 1_000,
    "mb": 1_000_000,
    "gb": 1_000_000_000,
    "tb": 1_000_000_000_000,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
# digits are bounded: no duration or size needs more, and int() refuses text of thousands of digits
_NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?"
_PLAIN = re.compile(_NUMBER)
_DURATION_PART = re.compile(rf"({_NUMBER})\s*(min|d|h|m|s)\s*")
_SIZE = re.compile(rf"({_NUMBER})\s*([kmgt]?i?b)", re.IGNORECASE)


def duration_s(value: str | int | float) -> float:
    """Seconds in "4h", "1h30m", "90s", "1.5 h", or a number that is seconds. Units go from large to small, each once.

    Raises ValueError, in words for the user, for anything else and for what is not more than zero.
    """
    seconds = _duration_text_s(value) if isinstance(value, str) else _number(value, "a duration, as in 4h, 30m or 90s")
    if seconds <= 0:
        raise ValueError(f"{value!r} is not more than zero: a duration is positive, as in 4h, 30m or 90s")
    return seconds


def _duration_text_s(text: str) -> float:
    stripped = text.strip().lower()
    sign = 1.0
    if stripped.startswith("-"):  # a duration all the same: one that is too short
        sign, stripped = -1.0, stripped[1:]
    if _PLAIN.fullmatch(stripped):
        raise ValueError(f"{text!r} has no unit: write {stripped}s, {stripped}m or {stripped}h")
    total, position, smallest = 0.0, 0, math.inf
    while match := _DURATION_PART.match(stripped, position):
        unit_s = _SECONDS[match[2]]
        if unit_s >= smallest:
            break
        total, position, smallest = total + float(match[1]) * unit_s, match.end(), unit_s
    if not stripped or position != len(stripped):
        raise ValueError(f"{text!r} is not a duration, as in 4h, 30m or 90s")
    return sign * total


def size_bytes(value: str | int | float) -> int:
    """Bytes in "200MB", "1.5 GiB" or a bare number of bytes. MB is 10^6 and MiB 2^20.

    Raises ValueError, in words for the user, for anything else and for what is less than zero.
    """
    if isinstance(value, str):
        stripped = value.strip()
        if stripped[:1] == "-" and _SIZE.fullmatch(stripped[1:]):
            raise ValueError(f"{value!r} is less than zero")
        if _PLAIN.fullmatch(stripped):
            return int(float(stripped)) if "." in stripped else int(stripped)
        match = _SIZE.fullmatch(stripped)
        if match is None or match[2].lower() not in _BYTES:
            raise ValueError(f"{value!r} is not a size, as in 200MB, 2GB or 1GiB")
        return round(float(match[1]) * _BYTES[match[2].lower()])
    size = _number(value, "a size, as in 200MB or 2GB")
    if size < 0:
        raise ValueError(f"{value!r} is less than zero")
    return int(size)


def _number(value: int | float, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not {expected}")
    return float(value)


def duration_text(seconds: float) -> str:
    """A duration of zero or more for people, two units at most: "0.8 s", "12 s", "3 min 20 s", "4 h", "2 d 3 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    if round(seconds) < 3_600:
        return _two_units(round(seconds), 60, "min", "s")
    if round(seconds / 60) < 24 * 60:
        return _two_units(round(seconds / 60), 60, "h", "min")
    return _two_units(round(seconds / 3_600), 24, "d", "h")


def _two_units(count: int, small_per_large: int, large: str, small: str) -> str:
    whole, rest = divmod(count, small_per_large)
    return f"{whole} {large} {rest} {small}" if rest else f"{whole} {large}"


def size_text(size: int) -> str:
    """A size for people: "812 B", "4.2 kB", "210 MB"."""
    if size < 1_000:
        return f"{size} B"
    value = float(size)
    for unit in ("kB", "MB", "GB"):
        value /= 1_000
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"
    return f"{value / 1_000:.1f} TB"


def counted(count: int, thing: str, things: str = "") -> str:
    """So many of them: "1 file", "1,200 files", "0 entries" (`things` where more of them are not called `thing`s)."""
    return f"{count:,} {thing if count == 1 else things or f'{thing}s'}"


def score_text(value: float, digits: int = 6) -> str:
    """A whole number as it was written, another with as many significant digits; NaN and infinities as our JSON
    documents call them."""
    if isinstance(value, int):
        return str(value)
    return "NaN" if math.isnan(value) else f"{value:.{digits}g}".replace("inf", "Infinity")
