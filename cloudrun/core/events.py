"""What happens while work goes on, as frozen records handed to whoever watches. Services emit them; faces draw them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cloudrun.core.records import Place

Phase = Literal["launch", "boot", "provision", "ship", "run", "pull", "terminate"]


@dataclass(frozen=True)
class PhaseStarted:
    phase: Phase
    detail: str = ""  # "m7i.large in us-east-1"


@dataclass(frozen=True)
class PhaseEnded:
    phase: Phase
    elapsed_s: float
    outcome: Literal["done", "failed", "interrupted"] = "done"
    detail: str = ""


@dataclass(frozen=True)
class Output:
    """Bytes that the job printed, as it printed them."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True)
class Progress:
    phase: Phase
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Rented:
    """From that time on (seconds since 1970) a machine is paid for."""

    instance_id: str
    instance_type: str
    place: Place
    since: float


@dataclass(frozen=True)
class Note:
    """A sentence for the user. `verbose` ones are shown with -v only."""

    text: str
    level: Literal["info", "warning", "verbose"] = "info"


Event = PhaseStarted | PhaseEnded | Output | Progress | Rented | Note
Observer = Callable[[Event], None]


def nobody(_event: Event) -> None:
    """An observer that looks away."""
