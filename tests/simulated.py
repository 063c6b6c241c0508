"""A grid, its units and its bill, by a clock of their own: the planner is the real one, what it plans for is not.

`Simulated` has the records that a client would have and does what `decide` says; what happens to units and cells is
told to it, one event a method. `play` makes the events up: boots, ends of cells, losses.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from cloudrun.core.states import EndReason
from cloudrun.plan import budget
from cloudrun.plan.retrying import next_step, useless_launches
from cloudrun.plan.scheduling import Backlog, Decision, Limits, UnitView, decide

FINAL = ("done", "failed", "quarantine")


@dataclass
class Simulated:
    cells: int
    limits: Limits
    now: float = 1_000_000.0
    expected_s: float | None = None
    learn: bool = False  # what cells take, from those that ended
    retries: int = 0
    queue: deque[int] = field(init=False)
    on_units: dict[str, set[int]] = field(default_factory=dict)  # by unit, also while it boots
    views: dict[str, UnitView] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)  # the deadline that the unit itself has
    final: dict[int, str] = field(default_factory=dict)
    ends: dict[int, list[EndReason]] = field(default_factory=lambda: defaultdict(list))
    running: int = 0
    spent_usd: float = 0.0
    stopped: str = ""
    worked: list[bool] = field(default_factory=list)
    used: set[str] = field(default_factory=set)  # units on which a cell was started
    unneeded: set[str] = field(default_factory=set)
    launched: int = 0
    decisions: int = 0  # cells given to a unit
    calls: int = 0  # of RunInstances and TerminateInstances
    deaf: bool = False  # no new deadline reaches any unit
    refuse: int = 0  # so many of the next units are refused
    last: Decision = field(default_factory=Decision)
    cells_s: float = 0.0  # that ended cells took together
    cells_timed: int = 0

    def __post_init__(self) -> None:
        self.queue = deque(range(self.cells))

    # -- what the client does ----------------------------------------------------------------------------------------

    def decided(self) -> Decision:
        expected_s = self.cells_s / self.cells_timed if self.learn and self.cells_timed else self.expected_s
        return decide(
            self.now,
            Backlog(len(self.queue), self.running, expected_s),
            list(self.views.values()),
            self.limits,
            self.spent_usd,
            stopped=self.stopped,
            barred=useless_launches(self.worked),
        )

    def tick(self) -> list[tuple[str, int]]:
        """Does what the planner says; returns (unit, cell) for each cell that was started."""
        self.last = decision = self.decided()
        for name, until in decision.extend:
            self.views[name] = dataclasses.replace(self.views[name], deadline=until)
            if not self.deaf:
                self.held[name] = until
        started = []
        for name, count in decision.assign:
            given = [self.queue.popleft() for _ in range(count)]
            self.on_units[name].update(given)
            self.used.add(name)
            self._busy(name)
            started += [(name, cell) for cell in given]
        self.running += len(started)
        self.decisions += len(started)
        for name in decision.drain:
            if not self.queue:
                self.unneeded.add(name)
            self.views[name] = dataclasses.replace(self.views[name], state="draining")
        self.calls += bool(decision.drain) + bool(decision.launch)
        for _ in range(decision.launch):
            if self.refuse:
                self.refuse -= 1
                continue
            self.launched += 1
            name = f"i-{self.launched}"
            self.views[name] = UnitView(
                name,
                "launching",
                self.limits.slots,
                0,
                self.now,
                decision.deadline,
                self.limits.usd_per_hour,
            )
            self.on_units[name] = set()
            self.held[name] = decision.deadline
        return started

    def _busy(self, name: str) -> None:
        self.views[name] = dataclasses.replace(self.views[name], busy=len(self.on_units[name]))

    # -- what happens ------------------------------------------------------------------------------------------------

    def boots(self, name: str) -> None:
        if self.views[name].state == "launching":
            self.views[name] = dataclasses.replace(self.views[name], state="ready")

    def ends_cell(self, name: str, cell: int, reason: EndReason, seconds: float | None = None) -> None:
        self.on_units[name].remove(cell)
        self._busy(name)
        if seconds is not None:
            self.cells_s += seconds
            self.cells_timed += 1
        self._ended(cell, reason)

    def goes(self, name: str, reason: EndReason, at: float | None = None) -> None:
        """The unit is gone, for whatever reason, and so is what ran on it."""
        view = self.views.pop(name)
        self.spent_usd += budget.cost_usd(view.usd_per_hour, (self.now if at is None else at) - view.requested_at)
        for cell in sorted(self.on_units.pop(name)):
            self._ended(cell, reason)
        if name not in self.unneeded:
            self.worked.append(name in self.used)
        del self.held[name]
        self.used.discard(name)
        self.unneeded.discard(name)

    def _ended(self, cell: int, reason: EndReason) -> None:
        self.running -= 1
        if reason is EndReason.COMPLETED and cell not in self.ends:
            self.final[cell] = "done"
            return
        self.ends[cell].append(reason)
        step = next_step(self.ends[cell], retries=self.retries)
        if step == "again":
            self.queue.append(cell)
        else:
            self.final[cell] = step

    def confirm(self) -> None:
        """EC2 says that what was to be terminated is."""
        for name in [name for name, view in self.views.items() if view.state == "draining"]:
            self.goes(name, EndReason.CANCELLED)

    def passes(self, seconds: float) -> None:
        """Time goes by: whoever's own timer runs out powers itself off, the client there or not."""
        until = self.now + seconds
        for name in [name for name, deadline in self.held.items() if deadline <= until]:
            at = self.held[name]
            self.now = max(self.now, at)
            self.goes(name, EndReason.DEADLINE, at=min(until, at + budget.POWER_OFF_S))
        self.now = until

    # -- what must hold ----------------------------------------------------------------------------------------------

    def check(self) -> None:
        on_units = [cell for cells in self.on_units.values() for cell in cells]
        everywhere = [*self.queue, *on_units, *self.final]
        assert sorted(everywhere) == list(range(self.cells)), "a cell is lost, or twice somewhere"
        assert self.running == len(on_units)
        assert len(self.views) <= self.limits.max_units
        for name, view in self.views.items():
            assert len(self.on_units[name]) == view.busy <= view.slots
            assert view.state == "ready" or not view.busy
            assert view.deadline <= view.requested_at + self.limits.deadline_s
        if self.limits.budget_usd is not None:
            assert self.bill_if_nobody_acts() <= self.limits.budget_usd + 1e-9

    def bill_if_nobody_acts(self) -> float:
        """What it will have cost if the client dies now and every unit lives until its own timer, and a minute."""
        return self.spent_usd + sum(
            view.usd_per_hour / 3600 * max(max(view.deadline, self.held[name]) + 60.0 - view.requested_at, 60.0)
            for name, view in self.views.items()
        )

    def check_after_tick(self) -> None:
        """No unit that is ready has a free slot while a cell waits, unless its time is up; none waits for nothing."""
        for view in self.views.values():
            if view.state == "ready" and view.busy < view.slots and self.queue and not self.stopped:
                expected_s = self.cells_s / self.cells_timed if self.learn and self.cells_timed else self.expected_s
                work_s = self.limits.min_lifetime_s if expected_s is None else expected_s
                assert view.deadline < self.now + work_s, f"{view} idles while {len(self.queue)} cells wait"
            if not self.queue or self.stopped:
                assert view.busy or view.state == "draining", f"{view} lives for nothing"


@dataclass(frozen=True)
class World:
    """Draws what happens. A boot of inf never ends."""

    cell_s: Callable[[int], float]
    boot_s: Callable[[], float]
    life_s: Callable[[], float] = lambda: math.inf  # until the unit is lost
    lost: EndReason = EndReason.UNIT_LOST
    boot_timeout_s: float = 600.0
    terminate_s: float = 5.0
    tick_s: float = 1.0


def play(grid: Simulated, world: World, *, most_ticks: int, look: Callable[[], None] | None = None) -> float:
    """Until the planner says that it has ended; returns the seconds it took. Ticks come every `tick_s` at most.

    A tick is left out where nothing has happened since the last one.
    """
    began = grid.now
    events: list[tuple[float, int, str, str, int]] = []  # (when, count, what, unit, cell)
    count = 0
    begun: dict[tuple[str, int], float] = {}

    def at(when: float, what: str, name: str, cell: int = -1) -> None:
        nonlocal count
        if when < math.inf:
            count += 1
            heappush(events, (when, count, what, name, cell))

    for _ in range(most_ticks):
        before = grid.launched
        for name, cell in grid.tick():
            seconds = world.cell_s(cell)
            begun[name, cell] = seconds
            at(grid.now + seconds, "ends", name, cell)
        for number in range(before + 1, grid.launched + 1):
            name = f"i-{number}"
            boot_s = world.boot_s()
            at(grid.now + boot_s, "boots", name)
            at(grid.now + world.boot_timeout_s, "boot timeout", name)
            at(grid.now + world.life_s(), "lost", name)
            at(grid.last.deadline, "deadline", name)
        for name in grid.last.drain:
            at(grid.now + world.terminate_s, "gone", name)
        for name, until in grid.last.extend:
            at(until, "deadline", name)
        if look is not None:
            look()
        if grid.last.ended:
            return grid.now - began
        assert events, f"nothing will ever happen again: {grid.last}"
        until = max(grid.now + world.tick_s, events[0][0])
        while events and events[0][0] <= until:
            when, _, what, name, cell = heappop(events)
            _happen(grid, world, begun, when, what, name, cell)
        grid.now = until
    raise AssertionError(f"{most_ticks} ticks, and no end: {grid.last}")


def _happen(
    grid: Simulated, world: World, begun: dict[tuple[str, int], float], when: float, what: str, name: str, cell: int
) -> None:
    view = grid.views.get(name)
    if view is None:
        return
    grid.now = max(grid.now, when)
    if what == "ends" and cell in grid.on_units[name]:
        grid.ends_cell(name, cell, EndReason.COMPLETED, begun.pop((name, cell)))
    elif what == "boots":
        grid.boots(name)
    elif what == "gone" or (what == "boot timeout" and view.state == "launching"):
        grid.goes(name, EndReason.PROVISION_FAILED)
    elif what == "lost":
        grid.goes(name, world.lost)
    elif what == "deadline" and grid.held[name] <= when:
        grid.goes(name, EndReason.DEADLINE)


def exactly(values: Iterable[float]) -> Callable[[], float]:
    """One after the other."""
    each = iter(values)
    return lambda: next(each)


def varied(rng: random.Random, mean_s: float, sigma: float = 0.5) -> Callable[..., float]:
    """Log-normal seconds of that mean."""
    return lambda *_: mean_s * math.exp(rng.gauss(-sigma * sigma / 2, sigma))
