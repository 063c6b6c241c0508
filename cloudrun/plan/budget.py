"""How long units may live for the money there is, so that whatever fails, a grid never costs more than its budget.

A unit powers itself off at its deadline even if nobody is there to end it, so its deadline is what bounds its cost. It
is counted from the moment it was asked for (EC2 bills from a little later, when it runs) until `POWER_OFF_S` after its
deadline, at `usd_per_hour`, its list price: disk, address and traffic come on top. It is counted for
`LEAST_S` at least, since one that boots only after its deadline has to come up before it can go. At every moment

    what ended units cost + that of each unit that has not ended <= budget

Money is taken before it can be spent: a caller records a new deadline before it launches with it or sends it to a unit,
and keeps the later of two deadlines where it does not know which one the unit holds. It is free again when EC2 says
that the unit is gone. Times in seconds since 1970, money in USD.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Protocol

BILLED_S = 60.0  # an instance costs at least that much ("per second, with a minimum of 60 seconds", EC2 pricing)
POWER_OFF_S = 60.0  # from the deadline until EC2 bills no more
LEAST_S = BILLED_S + POWER_OFF_S
STEP_S = 60.0  # a deadline that moves by less is not worth a call


class Leased(Protocol):
    """What has to be known of a unit that has not ended."""

    @property
    def unit_id(self) -> str: ...
    @property
    def requested_at(self) -> float: ...
    @property
    def deadline(self) -> float: ...
    @property
    def usd_per_hour(self) -> float: ...


def cost_usd(usd_per_hour: float, seconds: float) -> float:
    """What EC2 takes for so long."""
    return usd_per_hour * max(seconds, BILLED_S) / 3600


def worst_usd(now: float, units: Iterable[Leased], spent_usd: float) -> float:
    """What all will have cost if from now on nobody ends a unit. `units`: those not ended; `spent_usd`: of the others.

    A unit that should be gone and is not keeps on costing: it counts until now.
    """
    usd_s = 0.0  # dollars an hour, times seconds
    for unit in units:  # thousands of them at each decision: `max` takes twice as long
        gone_at = unit.deadline + POWER_OFF_S
        if gone_at < now:
            gone_at = now
        life_s = gone_at - unit.requested_at
        if life_s < LEAST_S:
            life_s = LEAST_S
        usd_s += unit.usd_per_hour * life_s
    return spent_usd + usd_s / 3600


def least_usd(usd_per_hour: float, life_s: float) -> float:
    """What has to be there for one unit that may live so long."""
    return usd_per_hour / 3600 * max(life_s + POWER_OFF_S, LEAST_S)


def affordable(free_usd: float, usd_per_hour: float, life_s: float) -> int | None:
    """How many units may live so long; None where money is no limit."""
    if usd_per_hour <= 0 or math.isinf(free_usd):
        return None
    return max(0, math.floor(free_usd / least_usd(usd_per_hour, life_s) * (1 - 1e-9)))


def lease(
    now: float, free_usd: float, usd_per_hour: float, *, deadline_s: float, least_s: float, count: int = 1
) -> float | None:
    """The deadline, a whole second, that `count` new units may have; None where that is less than `least_s` away.

    The free money is shared among them; none lives longer than `deadline_s`.
    """
    paid_s = free_usd / (count * usd_per_hour) * 3600 if usd_per_hour > 0 else math.inf
    life_s = min(deadline_s, paid_s - POWER_OFF_S)
    if life_s < least_s or paid_s < LEAST_S:
        return None
    return _whole(now + life_s)


def extensions(
    now: float, units: Iterable[Leased], free_usd: float, *, need_until: float, deadline_s: float, soon_s: float
) -> tuple[tuple[str, float], ...]:
    """(unit, new deadline) for those of `units` whose time ends in the next `soon_s` and before `need_until`.

    The money that units which ended have not used goes to whoever's time ends first, in equal parts; nobody lives
    longer than `deadline_s` from when it was asked for.
    """
    wanting = [
        (unit, until)
        for unit in units
        if now < unit.deadline < now + soon_s
        and (until := min(need_until, unit.requested_at + deadline_s)) >= unit.deadline + STEP_S
    ]
    wanting.sort(key=lambda pair: pair[0].deadline)
    moved = []
    for place, (unit, until) in enumerate(wanting):
        per_second = unit.usd_per_hour / 3600
        part_s = free_usd / (len(wanting) - place) / per_second if per_second > 0 else math.inf
        deadline = _whole(min(until, unit.deadline + part_s))
        if deadline >= unit.deadline + STEP_S:
            free_usd -= (deadline - unit.deadline) * per_second
            moved.append((unit.unit_id, deadline))
    return tuple(moved)


def reductions(
    now: float, units: Iterable[Leased], over_usd: float, *, least_s: float
) -> tuple[tuple[str, float], ...]:
    """(unit, nearer deadline), so that all together cost `over_usd` less at worst, as far as that goes: those that may
    live longest give up time, down to the same moment for all of them, which is `least_s` from now or later; each that
    does gives up `STEP_S`, if it has that.
    """
    if over_usd <= 0:
        return ()
    soonest = now + least_s
    longest = sorted((unit for unit in units if unit.deadline > soonest), key=lambda unit: -unit.deadline)
    cap, usd_per_s = math.inf, 0.0
    for unit, following in zip(longest, [*(unit.deadline for unit in longest[1:]), soonest], strict=False):
        usd_per_s += unit.usd_per_hour / 3600
        cap = following
        if usd_per_s * (unit.deadline - following) >= over_usd:
            cap = unit.deadline - over_usd / usd_per_s
            break
        over_usd -= usd_per_s * (unit.deadline - following)
    moved = [(unit, max(soonest, min(cap, unit.deadline - STEP_S))) for unit in longest if unit.deadline > cap]
    return tuple((unit.unit_id, _whole(deadline)) for unit, deadline in moved)


def _whole(moment: float) -> float:
    """The second before: units' timers know whole seconds, and what rounding adds must not be paid for."""
    return float(math.floor(moment - 1e-3))
