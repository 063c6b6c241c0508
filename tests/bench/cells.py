"""Short cells through `cloudrun submit`, in the sandbox: what the way there and back adds to each of them."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path

from cloudrun.ledger import Ledger
from tests.bench.rounds import Cost, Noise, Spread, timed
from tests.bench.server import run

COUNT = 64
SLOTS = 2
CELL_S = 1.0
CELL = """import json, os, time
time.sleep({cell_s})
print(json.dumps({{"accuracy": json.loads(os.environ["CLOUDRUN_PARAMS"])["n"]}}))
"""
MAKESPAN = 1.10  # of the ideal, which is 64 x 1 s on 2 slots
OVERHEAD_S = 0.050


def short_cells(folder: Path, rounds: int, noise: Noise) -> list[Cost]:
    """Makespans, from the first cell's start to the last one's end; of each cell what it took beside its own second,
    where two end at the same moment all the time; and what one that does nothing takes, one after the other."""
    _submit(folder / "warm-up", 2, CELL_S, SLOTS)  # from then on machines boot with the environment
    makespans, overheads, whole, empty = [], [], [], []
    for number in range(rounds):
        noise.look()
        project = folder / f"cells-{number}"
        whole.append(_submit(project, COUNT, CELL_S, SLOTS))
        makespans.append(_makespan_s(project))
        overheads.append(SLOTS * makespans[-1] / COUNT - CELL_S)
        _submit(folder / f"empty-{number}", COUNT, 0.0, 1)
        empty.append(_makespan_s(folder / f"empty-{number}") / COUNT)
    ideal_s = COUNT * CELL_S / SLOTS
    return [
        Cost(f"{COUNT} cells of {CELL_S:.0f} s on {SLOTS} slots", Spread.of(makespans), rounds, MAKESPAN * ideal_s),
        Cost("  of each cell, what was not its own second", Spread.of(overheads), rounds, OVERHEAD_S),
        Cost("  with launch, boot and end: the whole command", Spread.of(whole), rounds),
        Cost(f"{COUNT} cells that do nothing, on one slot: each", Spread.of(empty), rounds, OVERHEAD_S),
    ]


def _makespan_s(project: Path) -> float:
    with closing(Ledger(project)) as ledger:
        attempts = ledger.attempts_of(run.run_id for run in ledger.runs())
    ends = [attempt.ended_at for attempt in attempts if attempt.ended_at is not None]
    assert len(ends) == COUNT
    shutil.rmtree(project)
    return (max(ends) - min(attempt.started_at for attempt in attempts)).total_seconds()


def _submit(project: Path, count: int, cell_s: float, slots: int) -> float:
    """Seconds that the command took."""
    project.mkdir()
    (project / "cloudrun.toml").touch()
    (project / "cell.py").write_text(CELL.format(cell_s=cell_s))
    cells = "n=" + ",".join(map(str, range(count)))
    words = ["submit", "cell.py", "--set", cells, "--slots", str(slots), "--json"]
    told: list[str] = []
    took = timed(lambda: told.append(run([sys.executable, "-m", "cloudrun", *words], cwd=project)))
    assert json.loads(told[0])["summary"]["succeeded"] == count
    return took
