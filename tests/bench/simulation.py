"""100,000 cells on 1,000 units by a clock: how fast the planner decides, and how much memory the whole takes.

    python -m tests.bench.simulation [--cells N] [--units N] [--json]

The planner is the real one; units, cells and their records are simulated (`tests/simulated.py`). A decision is a cell
given to a unit. `decide` looks at every unit once a tick, so what a decision costs is set by how many cells end in a
tick; here they do as they would for a client that looks every `--tick` seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import resource
import sys
import time
from dataclasses import dataclass

from cloudrun.plan.scheduling import Limits
from tests.simulated import Simulated, World, play, varied

DECISIONS_PER_S = 5_000  # wanted, with everything that a client does beside
MEMORY_BYTES = 300_000_000
SLOTS = 2
CELL_S = 60.0
BOOT_S = 60.0
LIFE_S = 12 * 3600.0  # a unit is lost once in so long


@dataclass(frozen=True)
class Measured:
    """Seconds are of this computer's clock, unless they are `simulated`."""

    cells: int
    units: int
    succeeded: int
    simulated_s: float
    ideal_s: float  # one boot, and all the work on all slots
    ticks: int
    decisions: int
    planning_s: float  # in `decide` alone
    total_s: float  # with the simulation around it
    ec2_calls: int  # to launch and to terminate
    spent_usd: float
    budget_usd: float
    peak_memory_bytes: int  # of this process

    @property
    def decisions_per_s(self) -> float:
        return self.decisions / self.planning_s


class _Timed(Simulated):
    """Counts what its planner takes."""

    planning_s = 0.0
    ticks = 0

    def decided(self):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        decision = super().decided()
        self.planning_s += time.perf_counter() - began
        self.ticks += 1
        return decision


def measured(cells: int = 100_000, units: int = 1_000, *, tick_s: float = 1.0, seed: int = 0) -> Measured:
    rng = random.Random(seed)
    price = 0.1008
    budget_usd = 1.5 * price * cells * CELL_S / SLOTS / 3600
    limits = Limits(
        max_units=units,
        min_units=units,
        slots=SLOTS,
        usd_per_hour=price,
        boot_s=BOOT_S,
        deadline_s=4 * 3600.0,
        budget_usd=budget_usd,
    )
    grid = _Timed(cells, limits, learn=True)
    world = World(
        cell_s=varied(rng, CELL_S),
        boot_s=varied(rng, BOOT_S, 0.3),
        life_s=lambda: rng.expovariate(1 / LIFE_S),
        tick_s=tick_s,
    )
    began = time.perf_counter()
    took = play(grid, world, most_ticks=1_000_000)
    return Measured(
        cells=cells,
        units=units,
        succeeded=sum(step == "done" for step in grid.final.values()),
        simulated_s=took,
        ideal_s=BOOT_S + grid.cells_s / (units * SLOTS),
        ticks=grid.ticks,
        decisions=grid.decisions,
        planning_s=grid.planning_s,
        total_s=time.perf_counter() - began,
        ec2_calls=grid.calls,
        spent_usd=grid.spent_usd,
        budget_usd=budget_usd,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--units", type=int, default=1_000)
    parser.add_argument("--tick", type=float, default=1.0, help="simulated seconds between two decisions")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    it = measured(arguments.cells, arguments.units, tick_s=arguments.tick)
    if arguments.json:
        print(json.dumps({"schema_version": 1, **dataclasses.asdict(it), "decisions_per_s": it.decisions_per_s}))
        return
    print(f"{it.succeeded:,} of {it.cells:,} cells succeeded on up to {it.units:,} units, {it.decisions:,} attempts")
    print(f"decisions   {it.decisions_per_s:,.0f} a second in decide() alone (wanted: {DECISIONS_PER_S:,}),")
    print(f"            {it.decisions / it.total_s:,.0f} with the simulation; {it.ticks:,} ticks in {it.total_s:.1f} s")
    print(f"memory      {it.peak_memory_bytes / 1e6:.0f} MB at most (wanted: {MEMORY_BYTES / 1e6:.0f})")
    print(f"makespan    {it.simulated_s:,.0f} s simulated, {it.simulated_s / it.ideal_s:.2f} x ideal")
    print(f"EC2 calls   {it.ec2_calls:,} to launch and terminate")
    print(f"money       {it.spent_usd:.2f} of {it.budget_usd:.2f} USD")


if __name__ == "__main__":
    main()
