"""Time by phase: measured once, told to the observer as it happens and kept for the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Literal

from cloudrun.core.clock import Clock, SystemClock
from cloudrun.core.errors import Cancelled
from cloudrun.core.events import Observer, Phase, PhaseEnded, PhaseStarted
from cloudrun.core.records import Timings


class Phases:
    def __init__(self, observe: Observer, clock: Clock | None = None) -> None:
        self._observe = observe
        self._clock = clock or SystemClock()
        self._began = self._clock.monotonic()
        self._spent: dict[str, float] = defaultdict(float)

    @contextmanager
    def phase(self, name: Phase, detail: str = "") -> Iterator[None]:
        self._observe(PhaseStarted(name, detail))
        began = self._clock.monotonic()
        outcome: Literal["done", "failed", "interrupted"] = "done"
        try:
            yield
        except Exception as error:
            outcome = "interrupted" if isinstance(error, Cancelled) else "failed"
            raise
        except BaseException:
            outcome = "interrupted"
            raise
        finally:
            elapsed_s = self._clock.monotonic() - began
            self._spent[name] += elapsed_s
            self._observe(PhaseEnded(name, elapsed_s, outcome))

    def count(self, name: Phase, elapsed_s: float) -> None:
        """Time of a phase that nobody here has watched."""
        self._spent[name] += elapsed_s
        self._began -= elapsed_s

    def has(self, name: Phase) -> bool:
        return name in self._spent

    def timings(self) -> Timings:
        """Every phase so far, and the whole since this was made."""
        took = {f"{name}_s": seconds for name, seconds in self._spent.items()}
        return Timings(**took, total_s=self._clock.monotonic() - self._began)


def together(one: Timings, other: Timings) -> Timings:
    """The time of two stretches of one run's life."""
    return Timings(*(getattr(one, each.name) + getattr(other, each.name) for each in fields(Timings)))
