"""What an instance type costs an hour, and how many vCPUs it has, from a snapshot that comes with cloudrun.

`prices.json` holds published list prices (on demand, Linux, shared tenancy) as they were on the date it names for each
region: AWS may have changed them since, and does not know them here under your contract. They are for estimates and
for `--budget`, which counts what it would cost at these prices; the bill is AWS's. Only what two independent copies of
the price list, or two sizes of one family, agreed on is in it: a type or region that is missing has no price here,
never a guessed one. Volumes, traffic and tax come on top.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Price:
    """A list price. `as_of`: the day on which it was published so."""

    instance_type: str
    region: str
    usd_per_hour: float
    as_of: date


def usd_per_hour(instance_type: str, region: str) -> Price | None:
    """What one instance of that type costs there by the snapshot; None where the snapshot does not say."""
    snapshot = _snapshot()
    usd = snapshot["usd_per_hour"].get(region, {}).get(instance_type)
    return None if usd is None else Price(instance_type, region, usd, date.fromisoformat(snapshot["as_of"][region]))


def vcpus(instance_type: str) -> int | None:
    """How many vCPUs a type of the snapshot has; None for any other type: EC2 knows."""
    found: int | None = _snapshot()["vcpus"].get(instance_type)
    return found


@cache
def _snapshot() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(files(__package__).joinpath("prices.json").read_text(encoding="utf-8"))
    return read
