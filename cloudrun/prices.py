"""What an hour of a machine costs, by whoever knows it best: AWS's own price list where it was asked lately, else the
snapshot that comes with cloudrun.

AWS is asked at most once a week for a type and region, and not again for a day where it refused; what it said is kept
in the user's cache folder. Nothing that needs a price waits for this to work: without a network, or without leave to
ask, the snapshot holds and `cloudrun doctor` says so.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudrun.core.errors import CloudrunError
from cloudrun.core.rundir import read_json, write_json
from cloudrun.plan import pricing
from cloudrun.plan.pricing import Price

if TYPE_CHECKING:
    from cloudrun.wiring import Cloud

FRESH = timedelta(days=7)
REFUSED_FOR = timedelta(days=1)
_FORM = 1  # of the file: another one is as good as none


@dataclass(frozen=True)
class Asked:
    """What came of asking AWS about one region. `problem`: why it did not say, the last time."""

    usd_per_hour: Mapping[str, float]
    asked_at: Mapping[str, datetime]  # by type, those without a price too
    problem: str = ""
    refused_at: datetime | None = None


def usd_per_hour(instance_type: str, region: str) -> Price | None:
    """What one instance of that type costs there, as far as anybody here knows; None where nobody does. Asks nobody."""
    listed = pricing.usd_per_hour(instance_type, region)
    kept = _kept(region)
    usd, at = kept.usd_per_hour.get(instance_type), kept.asked_at.get(instance_type)
    if usd is None or at is None or (listed is not None and at.date() < listed.as_of):
        return listed
    return Price(instance_type, region, usd, at.date())


def refresh(cloud: Cloud, instance_types: Iterable[str], now: datetime) -> str:
    """Ask AWS for prices that are older than a week. Returns why that did not work, "" where it did or is not due.

    The sandbox has no price list: there nothing is asked.
    """
    if cloud.prices is None:
        return ""
    region = cloud.place.region
    kept = _kept(region)
    if kept.refused_at is not None and now - kept.refused_at < REFUSED_FOR:
        return kept.problem
    due = [name for name in instance_types if name not in kept.asked_at or now - kept.asked_at[name] >= FRESH]
    if not due:
        return ""
    try:
        found = cloud.prices().on_demand(due)
    except CloudrunError as error:
        _keep(region, replace(kept, problem=str(error), refused_at=now))
        return str(error)
    prices = {name: usd for name, usd in kept.usd_per_hour.items() if name not in due} | found
    _keep(region, Asked(prices, {**kept.asked_at, **dict.fromkeys(due, now)}))
    return ""


def problem(region: str) -> str:
    """Why AWS did not say its prices there the last time; "" where it did, or was never asked."""
    return _kept(region).problem


# -- the file ----------------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """The user's own: `$CLOUDRUN_CACHE_DIR`, else `$XDG_CACHE_HOME/cloudrun`, else `~/.cache/cloudrun`."""
    if own := os.environ.get("CLOUDRUN_CACHE_DIR"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - no error without a home
    return Path(base) / "cloudrun"


def _path(region: str) -> Path:
    return cache_folder() / f"prices-{region}.json"


def _kept(region: str) -> Asked:
    return _read(_path(region))


@cache
def _read(path: Path) -> Asked:
    """What the file says; nothing where there is none that can be read. Read once: a price holds for a whole command,
    whose sums would not agree with each other otherwise."""
    try:
        read: Any = read_json(path)
        if read["form"] != _FORM:
            return Asked({}, {})
        prices = {str(name): float(usd) for name, usd in read["usd_per_hour"].items() if 0 < float(usd) < math.inf}
        asked_at = {str(name): _time(at) for name, at in read["asked_at"].items()}
        refused_at = _time(read["refused_at"]) if read.get("refused_at") else None
        return Asked(prices, asked_at, str(read.get("problem", "")), refused_at)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Asked({}, {})


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def _keep(region: str, asked: Asked) -> None:
    """Written whole or not at all; a cache that cannot be written is no reason for anything to fail."""
    document = {
        "form": _FORM,
        "usd_per_hour": dict(asked.usd_per_hour),
        "asked_at": {name: at.isoformat() for name, at in asked.asked_at.items()},
        "problem": asked.problem,
        "refused_at": asked.refused_at.isoformat() if asked.refused_at else None,
    }
    path = _path(region)
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, document)
    _read.cache_clear()
