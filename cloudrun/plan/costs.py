"""What a machine cost, and which part of that was for which run.

A machine is billed from its launch to its end, for 60 s at least. Its runs pay for the time that they took on it: a run
alone for all of that time, runs side by side for the time together, each in proportion to its own. What no run used is
the machine's overhead: booting, its environment, waiting, the rest of the 60 s. So, wherever money is shown,

    what machines cost = the runs' shares + overhead

at list prices, as far as those are known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cloudrun.plan import budget

AT_LIST_PRICES = "at list prices"
CHARGING = frozenset({"aws"})  # providers that send a bill
ONLY_EC2_WOULD = "sandbox: what EC2 would have charged"


@dataclass(frozen=True)
class Stay:
    """A run on a machine. Times in seconds since 1970; `took_s` is what it needed of that time, None where nobody has
    measured that: then it is all of it."""

    run_id: str
    began: float
    ended: float
    took_s: float | None = None


@dataclass(frozen=True)
class MachineCost:
    """In USD. `shares` by run."""

    usd: float
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def overhead_usd(self) -> float:
        return max(0.0, self.usd - sum(self.shares.values()))


def machine_cost(
    usd_per_hour: float, began: float, ended: float, stays: Iterable[Stay], *, stopped_s: float = 0.0
) -> MachineCost:
    """Of one machine from its launch to its end, or until now, less the seconds that it was stopped. `stays`: all
    attempts on it; a run that came back has several."""
    taken: dict[str, float] = {}
    spans: list[tuple[float, float]] = []
    for stay in stays:
        span = max(began, stay.began), min(ended, stay.ended)
        length_s = span[1] - span[0]
        if length_s > 0:
            spans.append(span)
            own_s = length_s if stay.took_s is None else min(stay.took_s, length_s)
            taken[stay.run_id] = taken.get(stay.run_id, 0.0) + own_s
    together_s = sum(taken.values())
    used_s = min(together_s, _covered_s(spans))
    scale = usd_per_hour / 3600 * used_s / together_s if together_s else 0.0
    shares = {run_id: own_s * scale for run_id, own_s in taken.items()}
    return MachineCost(budget.cost_usd(usd_per_hour, ended - began - stopped_s), shares)


def _covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of them was."""
    covered_s, until = 0.0, -math.inf
    for began, ended in sorted(spans):
        covered_s += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return covered_s


@dataclass(frozen=True)
class Bill:
    """Of several machines. `unpriced`: types among them that have no list price; `is_charged`: whether anybody takes
    that money, which in the sandbox nobody does."""

    machines: int
    usd: float
    runs_usd: float
    unpriced: tuple[str, ...] = ()
    is_charged: bool = True
    is_over: bool = True  # all of them have ended

    @property
    def overhead_usd(self) -> float:
        return max(0.0, self.usd - self.runs_usd)

    def __str__(self) -> str:
        """ "$0.0034 at list prices: runs $0.0021 + overhead $0.0013"; the sandbox's says so."""
        if not self.usd:
            return f"no list price is known for {', '.join(self.unpriced)}" if self.unpriced else ""
        so_far = "" if self.is_over else " so far"
        parts = f"runs {usd_text(self.runs_usd)} + overhead {usd_text(self.overhead_usd)}"
        text = f"{usd_text(self.usd)}{so_far} {AT_LIST_PRICES}: {parts}"
        if self.unpriced:
            text += f", and machines without a list price ({', '.join(self.unpriced)})"
        return text + ("" if self.is_charged else f" ({ONLY_EC2_WOULD})")

    def document(self) -> dict[str, object]:
        return {
            "usd": round(self.usd, 9),
            "runs_usd": round(self.runs_usd, 9),
            "overhead_usd": round(self.overhead_usd, 9),
            "machines": self.machines,
            "unpriced": list(self.unpriced),
            "is_charged": self.is_charged,
            "is_over": self.is_over,
        }


def mark(provider: str | None) -> str:
    """What is put behind an amount that nobody charges; "" where somebody does, or nobody knows who."""
    return "" if provider is None or provider in CHARGING else f" ({ONLY_EC2_WOULD})"


def usd_text(usd: float) -> str:
    """Cents, and below ten of them three significant digits: $12.35, $0.10, $0.00418; never nothing for something."""
    if not usd or not math.isfinite(usd):
        return "$0" if not usd else f"${usd}"
    if abs(usd) >= 0.0995:
        return f"${usd:,.2f}"
    decimals = 2 - math.floor(math.log10(abs(usd)))
    cents, rest = f"{usd:.{decimals}f}".rstrip("0").split(".")
    return f"${cents}.{rest:0<2}"
