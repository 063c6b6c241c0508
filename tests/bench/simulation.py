"""100,000 cells on 1,000 units by a clock: how fast it is decided and written down, and in how much memory.

    python -m tests.bench.simulation [--cells N] [--units N] [--together] [--json]

The planner and the ledger are the real ones; units and what happens on them are simulated (`tests/simulated.py`). A
decision is a cell given to a unit: decided, read from the ledger's queue, and its attempt begun there. Those of a tick
are one commit, as in a pool, where other threads write what becomes of cells: here that is a commit of its own before
it, of all that they did since the last tick (they run, they end with three scores). With `--together` both are one, and
all of it a part of what a decision takes. `decide` looks at every unit once a tick, so what a decision costs is set by
how many cells end in a tick; here they do as they would for a client that looks every `--tick` seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import resource
import sys
import tempfile
import time
from collections import deque
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Claim, Ledger, Move
from cloudrun.plan.scheduling import Limits
from tests.bench.ledger import BEGAN, begin_units, ended_well, queue_cells
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
    claiming_s: float  # in the ledger, for decisions: the queue read, attempts begun, commits
    telling_s: float  # in the ledger, for what became of them
    cpu_s: float  # of this process, with the simulation around it
    total_s: float  # with the simulation around it
    ec2_calls: int  # to launch and to terminate
    spent_usd: float
    budget_usd: float
    peak_memory_bytes: int  # of this process

    @property
    def decisions_per_s(self) -> float:
        return self.decisions / (self.planning_s + self.claiming_s)


class _WrittenDown(Simulated):
    """Counts what its planner takes, and keeps everything in a ledger."""

    together = False  # a tick is one commit
    planning_s = 0.0
    claiming_s = 0.0
    telling_s = 0.0
    ticks = 0

    def keep_in(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._running_now: list[int] = []
        self._over_now: list[int] = []
        self._lost_now: list[int] = []
        self._next: deque[int] = deque()
        self._read_to = -1
        self.run_ids = queue_cells(ledger, "g-simulated", self.cells)
        begin_units(ledger, [f"i-{number}" for number in range(1, 2 * self.limits.max_units)])

    def decided(self):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        decision = super().decided()
        self.planning_s += time.perf_counter() - began
        self.ticks += 1
        return decision

    def tick(self) -> list[tuple[str, int]]:
        with self._ledger.together() if self.together else nullcontext():
            began = time.perf_counter()
            with self._ledger.together():
                self._tell()
            self.telling_s += time.perf_counter() - began
            started = super().tick()
            began = time.perf_counter()
            if started:
                self._begin(started)
        self.claiming_s += time.perf_counter() - began  # the commit is a part of it
        return started

    def _tell(self) -> None:
        """What has become of cells since the last tick."""
        self._ledger.move_runs([Move(self.run_ids[cell], RunState.RUNNING) for cell in self._running_now])
        self._ledger.move_runs(
            [Move(self.run_ids[cell], RunState.QUEUED, EndReason.UNIT_LOST, detail="gone") for cell in self._lost_now]
        )
        self._ledger.finish_runs([ended_well(self.run_ids[cell]) for cell in self._over_now])
        for told in (self._running_now, self._over_now, self._lost_now):
            told.clear()

    def _begin(self, started: list[tuple[str, int]]) -> None:
        for _, cell in started:
            if not self._next:
                found = self._ledger.queued_cells("g-simulated", 500, after=self._read_to)
                self._next.extend(number for number, _ in found)
                self._read_to = found[-1][0] if found else self._read_to
            if self._next and self._next[0] == cell:  # one that waits for the second time is known already
                self._next.popleft()
            self._running_now.append(cell)
        self._ledger.begin_attempts([Claim(self.run_ids[cell], name) for name, cell in started], BEGAN)

    def ends_cell(self, name: str, cell: int, reason: EndReason, seconds: float | None = None) -> None:
        super().ends_cell(name, cell, reason, seconds)
        self._over_now.append(cell)

    def goes(self, name: str, reason: EndReason, at: float | None = None) -> None:
        lost = sorted(self.on_units[name])
        super().goes(name, reason, at)
        self._lost_now += lost


def measured(
    cells: int = 100_000, units: int = 1_000, *, tick_s: float = 1.0, seed: int = 0, together: bool = False
) -> Measured:
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
    grid = _WrittenDown(cells, limits, learn=True)
    grid.together = together
    world = World(
        cell_s=varied(rng, CELL_S),
        boot_s=varied(rng, BOOT_S, 0.3),
        life_s=lambda: rng.expovariate(1 / LIFE_S),
        tick_s=tick_s,
    )
    with tempfile.TemporaryDirectory() as folder, closing(Ledger(Path(folder))) as ledger:
        grid.keep_in(ledger)
        began, began_cpu = time.perf_counter(), time.process_time()
        took = play(grid, world, most_ticks=1_000_000)
        total_s, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
        assert ledger.counts("g-simulated")[RunState.SUCCEEDED] == sum(end == "done" for end in grid.final.values())
    return Measured(
        cells=cells,
        units=units,
        succeeded=sum(step == "done" for step in grid.final.values()),
        simulated_s=took,
        ideal_s=BOOT_S + grid.cells_s / (units * SLOTS),
        ticks=grid.ticks,
        decisions=grid.decisions,
        planning_s=grid.planning_s,
        claiming_s=grid.claiming_s,
        telling_s=grid.telling_s,
        cpu_s=cpu_s,
        total_s=total_s,
        ec2_calls=grid.calls,
        spent_usd=grid.spent_usd,
        budget_usd=budget_usd,
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
    )


def _told(it: Measured) -> list[str]:
    """For people, a line each."""
    whole_s = it.planning_s + it.claiming_s + it.telling_s
    return [
        f"{it.succeeded:,} of {it.cells:,} cells succeeded on up to {it.units:,} units, {it.decisions:,} attempts",
        f"decisions   {it.decisions_per_s:,.0f} a second, written down (wanted: {DECISIONS_PER_S:,});",
        f"            {it.decisions / it.planning_s:,.0f} in decide() alone,",
        f"            {it.decisions / whole_s:,.0f} with all that became of them;",
        f"            {it.ticks:,} ticks in {it.total_s:.1f} s with the simulation, {it.cpu_s:.1f} s of them CPU time",
        f"memory      {it.peak_memory_bytes / 1e6:.0f} MB at most (wanted: {MEMORY_BYTES / 1e6:.0f})",
        f"makespan    {it.simulated_s:,.0f} s simulated, {it.simulated_s / it.ideal_s:.2f} x ideal",
        f"EC2 calls   {it.ec2_calls:,} to launch and terminate",
        f"money       {it.spent_usd:.2f} of {it.budget_usd:.2f} USD",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--units", type=int, default=1_000)
    parser.add_argument("--tick", type=float, default=1.0, help="simulated seconds between two decisions")
    parser.add_argument(
        "--together", action="store_true", help="a tick is one commit, with what became of earlier cells"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    it = measured(arguments.cells, arguments.units, tick_s=arguments.tick, together=arguments.together)
    if arguments.json:
        print(json.dumps({"schema_version": 1, **dataclasses.asdict(it), "decisions_per_s": it.decisions_per_s}))
        return
    print("\n".join(_told(it)))


if __name__ == "__main__":
    main()
