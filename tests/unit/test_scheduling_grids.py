"""How near whole grids come to what is possible, in a simulated EC2."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.planning import LIMITS, limits
from tests.simulated import Simulated, World, play, varied


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    cells=st.integers(1, 120),
    units=st.integers(1, 8),
    slots=st.integers(1, 4),
    sigma=st.sampled_from([0.0, 0.5, 1.5]),
    learn=st.booleans(),
)
def test_a_grid_ends_no_later_than_list_scheduling_on_units_that_took_as_long_to_boot(
    seed: int, cells: int, units: int, slots: int, sigma: float, learn: bool
) -> None:
    """Graham's bound, with every slot free from the slowest boot on, and one tick lost a cell in a row."""
    rng = random.Random(seed)
    draw, tick_s = varied(rng, 40.0, sigma), 0.25
    seconds = [draw() for _ in range(cells)]
    boots = [rng.uniform(20.0, 90.0) for _ in range(units)]
    grid = Simulated(cells, limits(min_units=units, max_units=units, slots=slots), learn=learn)
    remaining = iter(boots)
    world = World(lambda cell: seconds[cell], lambda: next(remaining), tick_s=tick_s, terminate_s=0.0)
    took = play(grid, world, most_ticks=100_000)
    used = min(units, -(-cells // slots))
    rounds = -(-cells // (used * slots)) + 1
    assert grid.launched == used
    bound = max(boots) + sum(seconds) / (used * slots) + max(seconds) + tick_s * (cells if sigma else rounds + 2)
    assert took <= bound
    assert len(grid.final) == cells


@pytest.mark.parametrize("mean_s", [1.0, 20.0, 200.0])
def test_growing_with_the_queue_takes_at_most_twice_as_long_as_any_number_of_units_and_half_is_worked_in(
    mean_s: float,
) -> None:
    rng = random.Random(1)
    grid = Simulated(3000, limits(max_units=500), expected_s=mean_s, learn=True)
    boot_s = LIMITS.boot_s
    took = play(grid, World(varied(rng, mean_s, 0.2), lambda: boot_s, tick_s=0.1), most_ticks=100_000)
    ideal_s = boot_s + max(mean_s, 3000 * mean_s / (500 * 2))
    paid_slot_s = grid.spent_usd / LIMITS.usd_per_hour * 3600 * LIMITS.slots
    assert took <= 2.05 * ideal_s + 2 * mean_s  # a tick is lost a cell
    assert grid.cells_s >= 0.45 * paid_slot_s


def test_a_grid_that_its_budget_just_pays_for_is_done_within_it() -> None:
    rng = random.Random(3)
    work_h = 200 * 60.0 / 2 / 3600  # of units with two slots
    grid = Simulated(200, limits(budget_usd=1.35 * 0.1 * work_h, max_units=8), learn=True)
    play(grid, World(varied(rng, 60.0), varied(rng, 60.0, 0.2)), most_ticks=100_000, look=grid.check)
    assert set(grid.final.values()) == {"done"}
    assert len(grid.final) == 200
