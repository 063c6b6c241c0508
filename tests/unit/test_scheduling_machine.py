"""The planner against whatever may happen, in any order: cells, money and units are all accounted for at every step."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloudrun.core.states import EndReason
from cloudrun.plan.scheduling import Limits
from tests.simulated import Simulated, World, play, varied

limits = st.builds(
    Limits,
    max_units=st.integers(1, 6),
    slots=st.integers(1, 4),
    usd_per_hour=st.sampled_from([0.0, 0.0832, 0.1008, 1.006]),
    boot_s=st.sampled_from([0.0, 3.0, 60.0, 200.0]),
    deadline_s=st.sampled_from([900.0, 4 * 3600.0]),
    min_units=st.integers(0, 6),
    budget_usd=st.none() | st.floats(0, 2) | st.sampled_from([0.01, 0.1, 1000.0]),
    min_lifetime_s=st.sampled_from([1.0, 60.0]),
)
ENDS = st.sampled_from([EndReason.COMPLETED] * 4 + [EndReason.EXITED, EndReason.MEMORY, EndReason.PULL_FAILED])


class Events(RuleBasedStateMachine):
    grid: Simulated

    @initialize(
        cells=st.integers(0, 25),
        limits=limits,
        expected_s=st.none() | st.sampled_from([0.0, 0.5, 30.0, 400.0]),
        learn=st.booleans(),
        retries=st.integers(0, 2),
    )
    def begins(self, cells: int, limits: Limits, expected_s: float | None, learn: bool, retries: int) -> None:
        self.grid = Simulated(cells, limits, expected_s=expected_s, learn=learn, retries=retries)

    def _units(self, state: str) -> list[str]:
        return [name for name, view in self.grid.views.items() if view.state == state]

    @rule()
    def the_client_looks(self) -> None:
        self.grid.tick()
        self.grid.check_after_tick()

    @rule(seconds=st.sampled_from([1.0, 20.0, 59.5, 300.0, 3000.0]))
    def time_passes_without_a_client(self, seconds: float) -> None:
        self.grid.passes(seconds)

    @precondition(lambda self: self._units("launching"))
    @rule(pick=st.integers(0), all_of_them=st.booleans())
    def a_unit_is_ready(self, pick: int, all_of_them: bool) -> None:
        names = self._units("launching")
        for name in names if all_of_them else [names[pick % len(names)]]:
            self.grid.boots(name)

    @precondition(lambda self: self.grid.running)
    @rule(pick=st.integers(0), reason=ENDS, seconds=st.floats(0.1, 1000))
    def a_cell_ends(self, pick: int, reason: EndReason, seconds: float) -> None:
        pairs = [(name, cell) for name, cells in self.grid.on_units.items() for cell in sorted(cells)]
        name, cell = pairs[pick % len(pairs)]
        self.grid.ends_cell(name, cell, reason, seconds if reason is EndReason.COMPLETED else None)

    @precondition(lambda self: self.grid.views)
    @rule(pick=st.integers(0), reason=st.sampled_from([EndReason.UNIT_LOST, EndReason.INTERRUPTED]))
    def a_unit_is_lost(self, pick: int, reason: EndReason) -> None:
        names = list(self.grid.views)
        self.grid.goes(names[pick % len(names)], reason)

    @rule()
    def ended_units_are_seen_to_be_gone(self) -> None:
        self.grid.confirm()

    @rule(units=st.integers(0, 3))
    def ec2_refuses_the_next(self, units: int) -> None:
        self.grid.refuse = units

    @rule(deaf=st.booleans())
    def new_deadlines_arrive_or_not(self, deaf: bool) -> None:
        self.grid.deaf = deaf

    @invariant()
    def all_is_accounted_for(self) -> None:
        if hasattr(self, "grid"):
            self.grid.check()

    def teardown(self) -> None:
        if not hasattr(self, "grid"):
            return
        grid = self.grid
        grid.refuse = 0
        for _ in range(400):  # from wherever it was, in a world where things work
            grid.tick()
            grid.check_after_tick()
            grid.check()
            if grid.last.ended:
                break
            grid.confirm()
            for name in self._units("launching"):
                grid.boots(name)
            for name, cells in list(grid.on_units.items()):
                for cell in sorted(cells):
                    grid.ends_cell(name, cell, EndReason.COMPLETED, 1.0)
            grid.passes(1.0)
        assert grid.last.ended, f"no end: {grid.last}"
        assert not grid.views
        assert grid.last.why or len(grid.final) == grid.cells


TestEvents = Events.TestCase
TestEvents.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    limits=limits,
    cells=st.integers(1, 60),
    mean_s=st.sampled_from([1.0, 30.0, 300.0]),
    known=st.booleans(),
    reason=st.sampled_from([EndReason.UNIT_LOST, EndReason.INTERRUPTED]),
    life_s=st.sampled_from([500.0, 5000.0, 1e9]),
)
def test_a_grid_on_machines_that_boot_slowly_and_die_ends_with_every_cell_accounted_for(
    seed: int, limits: Limits, cells: int, mean_s: float, known: bool, reason: EndReason, life_s: float
) -> None:
    rng = random.Random(seed)
    grid = Simulated(cells, limits, learn=known)
    boot_s = varied(rng, max(limits.boot_s, 1.0))
    world = World(
        cell_s=varied(rng, mean_s, 1.0),
        boot_s=lambda: boot_s() if rng.random() < 0.9 else float("inf"),
        life_s=lambda: rng.expovariate(1 / life_s),
        lost=reason,
    )

    def look() -> None:
        grid.check()
        grid.check_after_tick()

    play(grid, world, most_ticks=50_000, look=look)
    assert not grid.views
    assert grid.last.why or len(grid.final) == cells
    if limits.budget_usd is not None:
        assert grid.spent_usd <= limits.budget_usd
