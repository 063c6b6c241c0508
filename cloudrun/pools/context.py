"""What all parts of a pool act with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cloudrun.core.clock import Clock
from cloudrun.core.events import Observer
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Terms
from cloudrun.wiring import Cloud


@dataclass(frozen=True)
class Context:
    """`terms` tells what a unit of a type is like; `client_id` is whose machines they are."""

    cloud: Cloud
    ledger: Ledger
    settings: Settings
    image: Image
    terms: Callable[[str], Terms]
    observe: Observer
    clock: Clock
    client_id: str
