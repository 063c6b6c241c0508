"""The real grid, all of it: 144 cells of jobs/progressive.toml on four machines, its client killed twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudrun.core.states import GridState, RunState, UnitState
from cloudrun.ledger import Ledger
from tests.sandbox.conftest import Project, Start, wait_for

JOBS = Path(__file__).parents[2] / "jobs"
CELLS = 144
MODELS_BYTES = 5_000_000  # of all of them together; the notebook's are 2.8 GB


def done(ledger: Ledger) -> int:
    return ledger.counts(ledger.grids()[0].grid_id)[RunState.SUCCEEDED] if ledger.grids() else 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_ends_complete_though_its_client_is_killed_at_a_third_and_at_two_thirds(
    project: Project, start: Start, nothing_left: Callable[[Project], None]
) -> None:
    for path in JOBS.glob("progressive*"):
        if path.is_file():
            shutil.copy(path, project.root)
    rows = [sys.executable, "progressive_data.py", "progressive.csv"]
    subprocess.run(rows, cwd=project.root, check=True, capture_output=True)
    words = ("submit", "progressive.py", "--grid", "progressive.toml", "--units", "4", "--slots", "1")
    script = ("--", "--data", "progressive.csv")
    ledger = project.ledger
    at_work: set[str] = set()
    for share in (CELLS // 3, 2 * CELLS // 3):
        submitting = start("-m", "cloudrun", *words, *script)
        wait_for(
            lambda share=share: done(ledger) >= share and ledger.runs(states=[RunState.RUNNING]) != [],  # type: ignore[misc]
            f"{share} cells",
            timeout_s=600,
        )
        os.kill(submitting.pid, signal.SIGKILL)
        submitting.wait()
        at_work |= {run.run_id for run in ledger.runs() if run.state not in (RunState.SUCCEEDED, RunState.QUEUED)}
    before = done(ledger)
    assert before < CELLS, "it was killed too late to prove anything"
    said = project.cloudrun(*words, "--json", *script, timeout_s=900)
    assert said.returncode == 0, said.stderr
    document = json.loads(said.stdout)
    assert (document["summary"]["succeeded"], document["summary"]["failed"]) == (CELLS, 0)
    assert document["summary"]["taken"] >= before
    runs = ledger.runs()
    assert Counter(run.state for run in runs) == {RunState.SUCCEEDED: CELLS}
    assert len({tuple(sorted(map(str, run.params.items()))) for run in runs}) == CELLS
    twice = {run.run_id for run in runs if run.attempts > 1}
    assert twice <= at_work, "only what ran when its client was killed may have run twice"
    assert all(run.attempts <= 2 for run in runs)
    assert all(unit.state is UnitState.TERMINATED for unit in ledger.units(live=False))
    assert [grid.state for grid in ledger.grids()] == [GridState.DONE]
    models = [each for run in runs for each in run.artifacts if each.path.endswith(".joblib")]
    assert len(models) == CELLS
    assert sum(model.size for model in models) < MODELS_BYTES
    nothing_left(project)
