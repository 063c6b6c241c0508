"""What an instance type costs an hour, and how many vCPUs it has, from a snapshot that comes with cloudrun.

`prices.json` holds published list prices (on demand, Linux, shared tenancy) as they were on the date it names for each
region: AWS may have changed them since, and does not know them here under your contract. They are for estimates and
for `--budget`, which counts what it would cost at these prices; the bill is AWS's. Only what two independent copies of
the price list, or two sizes of one family, agreed on is in it: a type or region that is missing has no price here,
never a guessed one. Volumes, traffic and tax come on top.
"""

from __future__ import annotations

import json
import re
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


def architecture(instance_type: str) -> str:
    """ "arm64" or "x86_64", as AWS names its types: a g behind the generation is a Graviton processor ("Instance type
    naming conventions", Amazon EC2 User Guide), and a1 was the first of them. EC2 knows; this is for where it cannot be
    asked."""
    family = instance_type.partition(".")[0]
    attributes = re.fullmatch(r"[a-z]+\d+([a-z]*)(-.*)?", family)
    is_graviton = family == "a1" or (attributes is not None and "g" in attributes[1])
    return "arm64" if is_graviton else "x86_64"


@cache
def _snapshot() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(files(__package__).joinpath("prices.json").read_text(encoding="utf-8"))
    return read
