"""Which units a queue of cells needs, and which of them gets how many: a pure function of what is known and the time.

`decide` is called once a tick with everything that changed since the last one, and looks at every unit once: O(units),
however long the queue is. Cells are counts here; which ones come first is the caller's (`plan.expecting`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Literal

from cloudrun.plan import budget

LATE = 3.0  # a unit that took so many times as long as expected to get ready is not counted on any more
# Where money is short, fewer units that live longer: a boot and a last cell that its deadline cuts off are lost money,
# and should be a small part of what a lease costs.
WORK_PER_BOOT = 4.0
MARGIN = 2.0  # cells vary: time is looked after for so many times what one is expected to take
SOON_S = 300.0  # a deadline that is so near is looked after while there is still time to send it another
LEAD_SHARE = 0.1  # of a unit's life: what it keeps at most for saving outputs, as `agent.power` does
LEAST_LEFT_S = 60.0  # beside what saving outputs takes: no deadline is brought nearer than this
LEAST_USD = 1e-6  # sums of what was exactly the budget may be more than it
UNKNOWN_S = 1200.0  # by how much a deadline is moved where nobody knows how long cells take
# Cells that are expected to take no longer are given out before there is a slot for them: of so short a cell a decision
# is a large part, and one that waits behind another could not begin much earlier anywhere else.
SHORT_S = 5.0
PATIENCE_S = 20.0  # how long one of them waits there at most


@dataclass(frozen=True, slots=True)
class UnitView:
    """A unit that EC2 has not said to be gone, also one of a launch whose answer is not known.

    `deadline`: the latest that it may hold, sent or about to be sent. `sure_until`: where nobody knows whether it took
    that one, the earlier one that can be counted on; or that it shall have, where it is not known to have taken it.

    `busy`: cells that it works on, those on their way to it and those that wait there for a slot included; `homeward`
    those that need no slot any more, and are on their way home. `held_up`: what waits there waits for longer than was
    expected; `waiting`: so many of those that were given ahead have no slot yet. Times in seconds since 1970.
    """

    unit_id: str
    state: Literal["launching", "ready", "draining"]
    slots: int
    busy: int
    requested_at: float  # when EC2 was asked for it
    deadline: float
    usd_per_hour: float
    type_name: str = ""
    sure_until: float | None = None
    homeward: int = 0
    held_up: bool = False
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a unit of one type is like."""

    slots: int
    usd_per_hour: float


@dataclass(frozen=True, slots=True)
class Limits:
    """What the user allows, and what the next unit would be like. Durations in seconds."""

    max_units: int
    slots: int  # of a new unit
    usd_per_hour: float  # of a new unit
    boot_s: float  # expected from asking for a unit to its first cell
    deadline_s: float  # longest life of a unit, from asking for it
    min_units: int = 0  # so many are launched even where fewer could do it in about the same time (`--units`)
    budget_usd: float | None = None
    min_lifetime_s: float = 60.0  # to work in; a unit that could not live so long after its boot is not launched
    lead_s: float = 0.0  # before its deadline a unit ends what runs on it, to save outputs: so much earlier at most


@dataclass(frozen=True, slots=True)
class Backlog:
    """Cells that wait and that are on units. `expected_s`: the mean of what a waiting one takes, None if unknown;
    `next_s`: what the one does whose turn it is, None where that is as good as the mean."""

    queued: int
    running: int
    expected_s: float | None = None
    next_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now. Nothing in it names a cell.

    launch   so many units, at once, with the absolute `deadline`
    assign   (unit, so many cells more); unit ids are in `drain` only if they are not here
    ahead    (unit, so many cells more), to wait on it for a slot
    recall   units on which those that wait for a slot are to wait no longer: others have slots for them
    drain    units to be terminated: nothing runs on them, and nothing is going to
    extend   (unit, new absolute deadline), to be recorded before it is sent; a nearer one where what was granted once
             is more than the budget, which a later command may have made smaller
    ended    nothing runs and nothing ever will: the caller may stop; cells that are left are `queued` still
    why      one sentence about what is not being done, for people; "" where all is as it should be
    """

    launch: int = 0
    deadline: float = 0.0
    assign: tuple[tuple[str, int], ...] = ()
    drain: tuple[str, ...] = ()
    extend: tuple[tuple[str, float], ...] = ()
    ended: bool = False
    why: str = ""
    ahead: tuple[tuple[str, int], ...] = ()
    recall: tuple[str, ...] = ()


def decide(
    now: float,
    backlog: Backlog,
    units: Sequence[UnitView],
    limits: Limits,
    spent_usd: float,
    *,
    stopped: str = "",
    barred: str = "",
) -> Decision:
    """What to launch, assign, drain and extend.

    `units`: all that have not ended, however they are. `spent_usd`: what those that have ended cost. `stopped`: why no
    further cell is to be started ("" if they are); `barred`: why no further unit will ever be launched (while launches
    only have to wait, `limits.max_units` is what there is).
    """
    ready = [unit for unit in units if unit.state == "ready"]
    launching = [unit for unit in units if unit.state == "launching"]
    queued = 0 if stopped else backlog.queued

    free_usd = math.inf
    extend: tuple[tuple[str, float], ...] = ()
    if limits.budget_usd is not None:
        free_usd = limits.budget_usd - budget.worst_usd(now, units, spent_usd)
        busy = [unit for unit in units if unit.busy or unit.homeward or (queued and unit.state == "ready")]
        extend = _reductions(now, units, queued, limits, spent_usd) if free_usd < 0 else ()
        if not extend:
            extend = _extensions(now, backlog, queued, busy, limits, free_usd)
            free_usd -= _price_of(extend, busy)

    next_s = _next_s(backlog, limits)
    lasting = _lasting(now, next_s, ready, dict(extend), limits)
    assign = _spread(queued, lasting)
    left = queued - sum(count for _, count in assign)
    served = {unit_id for unit_id, _ in assign}
    ahead = _ahead(now, left, next_s, lasting, assign, dict(extend), limits)
    left -= sum(count for _, count in ahead)
    recall = _recalled(ready, lasting) if not left and not served else ()
    drain = [unit.unit_id for unit in ready if unit.busy == 0 and unit.unit_id not in served]
    if recall:  # somebody is to take over what comes back
        drain = [unit_id for unit_id in drain if unit_id not in {unit.unit_id for unit in lasting}]
    if not left:
        drain += [unit.unit_id for unit in launching if not unit.busy]  # whoever runs can do without them

    launch, deadline, why = 0, 0.0, stopped
    if left:
        wanted = _wanted(now, left, backlog.expected_s, lasting, launching, limits)
        launch = min(wanted, max(0, limits.max_units - len(units)))
        if launch and barred:
            launch, why = 0, barred
        elif launch:
            places = limits.max_units - len(units)
            launch, deadline, why = _leased(now, launch, places, next_s, limits, free_usd)
    if limits.budget_usd is not None and queued and not assign and not launch and next_s != backlog.expected_s:
        # no unit lasts long enough for the longest, and there is no money for one: the others are not kept from running
        return decide(now, replace(backlog, next_s=None), units, limits, spent_usd, stopped=stopped, barred=barred)
    ended = not units and not launch and (not left or bool(why))
    if extend and drain:
        leaving = set(drain).difference(unit.unit_id for unit in ready if unit.homeward)
        extend = tuple(pair for pair in extend if pair[0] not in leaving)
    return Decision(launch, deadline, assign, tuple(drain), extend, ended, why, ahead, recall)


# -- assigning -------------------------------------------------------------------------------------------------------


def _next_s(backlog: Backlog, limits: Limits) -> float | None:
    """What the cell that is assigned next takes. One that no new unit lives long enough for is tried all the same, on a
    unit that is as good as new: expectations are no more than that."""
    if backlog.expected_s is None or backlog.next_s is None:
        return backlog.expected_s
    life_s = limits.deadline_s - limits.boot_s - min(limits.lead_s, LEAD_SHARE * limits.deadline_s)
    return max(backlog.expected_s, min(backlog.next_s, life_s / MARGIN))


def _lasting(
    now: float,
    expected_s: float | None,
    ready: Iterable[UnitView],
    moved: dict[str, float],
    limits: Limits,
) -> list[UnitView]:
    """Ready units that live long enough for another cell; where nobody knows how long one takes, while there is
    `min_lifetime_s` left."""
    done_by = now + (limits.min_lifetime_s if expected_s is None else expected_s)
    lasting = []
    for unit in ready:
        deadline = unit.deadline if unit.sure_until is None else unit.sure_until
        if moved:
            deadline = moved.get(unit.unit_id, deadline)
        if done_by <= _working_until(unit, deadline, limits):
            lasting.append(unit)
    return lasting


def _working_until(unit: UnitView, deadline: float, limits: Limits) -> float:
    """Until its agent begins to save what runs on a unit that has that deadline."""
    if not limits.lead_s:
        return deadline
    return deadline - min(limits.lead_s, LEAD_SHARE * max(0.0, deadline - unit.requested_at))


def _ahead(
    now: float,
    left: int,
    expected_s: float | None,
    lasting: Sequence[UnitView],
    assign: Iterable[tuple[str, int]],
    moved: dict[str, float],
    limits: Limits,
) -> tuple[tuple[str, int], ...]:
    """Of short cells as many more as a unit has slots, to wait there for one. The last of the queue are left to whoever
    has a slot first."""
    if expected_s is None or expected_s > SHORT_S:
        return ()
    spare = left - sum(unit.slots for unit in lasting)
    if spare <= 0:
        return ()
    given = dict(assign)
    waiting = [
        replace(unit, busy=max(0, unit.busy + given.get(unit.unit_id, 0) - unit.slots))
        for unit in _lasting(now + PATIENCE_S, expected_s, lasting, moved, limits)
        if not unit.held_up
    ]
    return _spread(spare, waiting)


def _recalled(ready: Iterable[UnitView], lasting: Iterable[UnitView]) -> tuple[str, ...]:
    """Where cells wait for a slot while others have one: the cell before them takes longer than was expected."""
    if not any(unit.busy < unit.slots for unit in lasting):
        return ()
    return tuple(unit.unit_id for unit in ready if unit.waiting)


def _spread(queued: int, units: Iterable[UnitView]) -> tuple[tuple[str, int], ...]:
    """(unit, cells) until the queue or the free slots end, always to whoever works on the fewest."""
    open_units = [unit for unit in units if unit.busy < unit.slots]
    if sum(unit.slots - unit.busy for unit in open_units) <= queued:
        return tuple((unit.unit_id, unit.slots - unit.busy) for unit in open_units)
    given = [0] * len(open_units)
    heap = [(unit.busy, index) for index, unit in enumerate(open_units)]
    heapify(heap)
    for _ in range(queued):  # fewer than there are free slots: the heap is never empty
        busy, index = heappop(heap)
        given[index] += 1
        if busy + 1 < open_units[index].slots:
            heappush(heap, (busy + 1, index))
    return tuple((unit.unit_id, count) for unit, count in zip(open_units, given, strict=True) if count)


# -- launching -------------------------------------------------------------------------------------------------------


def _wanted(
    now: float,
    left: int,
    expected_s: float | None,
    lasting: Sequence[UnitView],
    launching: Sequence[UnitView],
    limits: Limits,
) -> int:
    """How many more units the queue has work for, whatever is allowed. `left`: cells that nobody has a slot for now.

    What a cell takes being unknown, each gets its slots filled once. Where it is known, only cells count that would
    still wait when a new unit is ready, and a unit should work as long as it boots: the end then comes at most twice
    as late as with any number of units, and at least half of the time that is paid for is worked in.
    """
    coming = [unit for unit in launching if now < unit.requested_at + LATE * limits.boot_s]
    if not expected_s:
        return max(0, math.ceil((left - sum(unit.slots for unit in coming)) / limits.slots))
    turns = limits.boot_s / expected_s
    by_then = turns * sum(unit.slots for unit in lasting)
    for unit in coming:
        ahead_s = min(now - unit.requested_at, limits.boot_s)  # it will be ready so much earlier than a new one
        by_then += unit.slots * (1 + ahead_s / expected_s)
    over = left - by_then
    if over <= 0:
        return 0
    useful = math.ceil(over / limits.slots)
    there = sum(unit.slots for unit in lasting) + sum(unit.slots for unit in coming)
    worth = math.floor((over * expected_s / limits.boot_s - there) / limits.slots) if limits.boot_s > 0 else useful
    asked = limits.min_units - len(lasting) - len(coming)
    return min(useful, max(worth, asked, 0 if there else 1))


def least_life_s(limits: Limits, expected_s: float | None = None) -> float:
    """What a unit needs to boot, work on one cell and save what it made."""
    working_s = limits.boot_s + max(limits.min_lifetime_s, expected_s or 0.0)
    return working_s + min(limits.lead_s, LEAD_SHARE / (1 - LEAD_SHARE) * working_s)


def _leased(
    now: float, wanted: int, places: int, expected_s: float | None, limits: Limits, free_usd: float
) -> tuple[int, float, str]:
    """(units, their deadline, why fewer than wanted), as far as the money goes.

    What later units may need is left free: money is shared among all `places` that could be taken and are worth it.
    """
    least_s = least_life_s(limits, expected_s)
    if limits.deadline_s < least_s:
        return 0, 0.0, f"a unit may live {limits.deadline_s:.0f} s, and its boot and one cell take {least_s:.0f} s"
    several_s = min(limits.deadline_s, limits.boot_s + WORK_PER_BOOT * max(limits.boot_s, least_s - limits.boot_s))
    fit = budget.affordable(free_usd, limits.usd_per_hour, several_s)
    launch = wanted if fit is None else min(wanted, max(1, fit))
    sharing = launch if fit is None else max(launch, min(places, fit))
    deadline = budget.lease(
        now, free_usd, limits.usd_per_hour, deadline_s=limits.deadline_s, least_s=least_s, count=sharing
    )
    if deadline is None:
        return 0, 0.0, f"what is left of the budget does not pay for a unit that boots and works for {least_s:.0f} s"
    return launch, deadline, "" if launch == wanted else "the budget pays for no more units"


# -- extending -------------------------------------------------------------------------------------------------------


def _extensions(
    now: float, backlog: Backlog, queued: int, working: Sequence[UnitView], limits: Limits, free_usd: float
) -> tuple[tuple[str, float], ...]:
    """Deadlines for units that have work and little time left, as far as there is money that nobody holds."""
    if not working or free_usd <= 0:
        return ()
    expected_s = backlog.expected_s
    if expected_s is None:
        need_s, soon_s = UNKNOWN_S, SOON_S
    else:
        slots = sum(unit.slots for unit in working)
        soon_s = max(SOON_S, MARGIN * expected_s)
        need_s = max(soon_s, MARGIN * expected_s * (1 + (queued + backlog.running) / slots))
    return budget.extensions(
        now, working, free_usd, need_until=now + need_s, deadline_s=limits.deadline_s, soon_s=soon_s
    )


def _reductions(
    now: float, units: Sequence[UnitView], queued: int, limits: Limits, spent_usd: float
) -> tuple[tuple[str, float], ...]:
    """Nearer deadlines for units that work or may, where all of those could cost more than the budget. One that was
    sent such a deadline is not sent another, be it that it does not take it. What is on its way out is given the time
    to go: where it does not, the caller counts it as spent."""
    staying = [unit for unit in units if unit.state != "draining" and (queued or unit.busy or unit.homeward)]
    granted = [unit if unit.sure_until is None else replace(unit, deadline=unit.sure_until) for unit in staying]
    over_usd = budget.worst_usd(now, granted, spent_usd) - (limits.budget_usd or 0.0)
    if over_usd <= LEAST_USD:
        return ()
    ready = [unit for unit in granted if unit.state == "ready"]
    return budget.reductions(now, ready, over_usd, least_s=limits.lead_s + LEAST_LEFT_S)


def _price_of(extend: Iterable[tuple[str, float]], units: Iterable[UnitView]) -> float:
    if not extend:
        return 0.0
    by_id = {unit.unit_id: unit for unit in units}
    return sum((until - by_id[name].deadline) * by_id[name].usd_per_hour / 3600 for name, until in extend)
