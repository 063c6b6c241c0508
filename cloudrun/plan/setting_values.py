"""What each setting may be: from a file's value, a variable's text or a flag's to what `Settings` holds.

A reader raises ValueError that says in words for the user what is wrong; who said it, and where, is `config`'s to add.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial

from cloudrun.plan import naming
from cloudrun.plan.jumping import check_jump
from cloudrun.plan.quantities import duration_s, size_bytes
from cloudrun.plan.tagging import read_tags
from cloudrun.plan.volumes import VOLUME_TYPES

LEAST_LIMIT_BYTES = 1_000_000


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a text between quotes")
    return value.strip()


def _texts(value: object) -> tuple[str, ...]:
    """A list of texts; in an environment variable they are separated by commas."""
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        raise ValueError(f"{value!r} is not a list of texts")
    return tuple(_text(word) for word in words)


def _one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in words:
            near = get_close_matches(str(value), words, n=1)
            raise ValueError(
                f"{value!r} is none of {', '.join(words)}" + (f"; did you mean {near[0]}?" if near else "")
            )
        return str(value)

    return read


_SWITCH_WORDS = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}


def _usd(what: str) -> Callable[[object], float]:
    """An amount more than zero; `what` it is, with an example, completes "... is not"."""

    def read(value: object) -> float:
        try:
            usd = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except ValueError:
            usd = math.nan
        if not 0 < usd < math.inf:
            raise ValueError(f"{value!r} is not {what}")
        return usd

    return read


def _switch(value: object) -> bool:
    word = str(value).strip().lower()  # an environment variable has no booleans
    if isinstance(value, (bool, str)) and word in _SWITCH_WORDS:
        return _SWITCH_WORDS[word]
    raise ValueError(f"{value!r} is neither true nor false")


def _count(value: object) -> int:
    if isinstance(value, str) and value.strip().isdecimal() and len(value) <= 18:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a whole number from 1 up")
    return value


def _duration(value: object) -> float:
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is not a duration, as in 4h, 30m or 90s")
    return duration_s(value)


def _size(value: object) -> int:
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{value!r} is not a size, as in 200MB or 2GB")
    return size_bytes(value)


def _limit(value: object) -> int:
    """A size that a run may not pass: 5 would be five bytes, which nobody means."""
    size = _size(value)
    if size < LEAST_LIMIT_BYTES:
        raise ValueError(f"{value!r} is too little for any Python; write its unit too, as in 500MB or 6GB")
    return size


def _as(check: Callable[[str], str]) -> Callable[[object], str]:
    """A reader of texts of that form."""
    return lambda value: check(_text(value))


def _packages(value: object) -> tuple[str, ...]:
    return tuple(naming.debian_package(name) for name in _texts(value))


READERS: Mapping[str, Callable[[object], object]] = {
    "provider": _one_of("sandbox", "aws"),
    "region": _text,
    "profile": _text,
    "instance_type": _text,
    "fallback_types": _texts,
    "image": _text,
    "user": _text,
    "spot": _switch,
    "max_price": _usd("a price in US dollars an hour, as in 0.05"),
    "budget": _usd("an amount of US dollars, as in 5"),
    "zone": _text,
    "vpc": _as(partial(naming.aws_id, "vpc")),
    "subnet": _as(partial(naming.aws_id, "subnet")),
    "security_group": _as(partial(naming.aws_id, "sg")),
    "address": _one_of("public", "private"),
    "ssh_from": _as(naming.ip_network),
    "ssh_jump": _as(check_jump),
    "volume_gib": _count,
    "volume_type": _one_of(*VOLUME_TYPES),
    "volume_iops": _count,
    "volume_throughput": _count,
    "tags": read_tags,
    "instance_profile": _as(naming.instance_profile),
    "index_url": _as(naming.index_url),
    "apt": _packages,
    "playbook": _text,
    "deadline_s": _duration,
    "grace_s": _duration,
    "idle_s": _duration,
    "on_exit": _one_of("terminate", "stop", "keep"),
    "wall_time_s": _duration,
    "memory_bytes": _limit,
    "disk_bytes": _limit,
    "fresh": _switch,
    "bucket": _text,
    "data": _texts,
    "metric": _text,
    "minimize": _switch,
    "ship_warn_bytes": _size,
    "ship_refuse_bytes": _size,
    "output_max_bytes": _size,
    "output_max_files": _count,
    "boot_timeout_s": _duration,
    "provision_timeout_s": _duration,
    "terminate_timeout_s": _duration,
}
