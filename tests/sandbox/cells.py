"""What tests of grids share: a script whose cells say which they were, and the command that runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Set

from cloudrun.core.records import GridRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
from tests.sandbox.conftest import Project

# Sleeps as long as it is told, and gives a score; what it makes says which cell it was.
CELL = """
import json, os, time
params = json.loads(os.environ["CLOUDRUN_PARAMS"])
open("began.txt", "w").write(str(params["n"]))
time.sleep({sleep_s})
print(json.dumps({{"accuracy": params["n"] / 100}}))
"""


def numbers(count: int) -> str:
    return "n=" + ",".join(map(str, range(count)))


def command(cells: int, *options: str) -> tuple[str, ...]:
    return ("submit", "cell.py", "--set", numbers(cells), "--slots", "1", *options)


def only_grid(project: Project) -> GridRecord:
    (grid,) = project.ledger.grids()
    return grid


def done(ledger: Ledger) -> int:
    return sum(run.state is RunState.SUCCEEDED for run in ledger.runs())


def running(ledger: Ledger) -> int:
    return sum(run.state is RunState.RUNNING for run in ledger.runs())


def each_cell_once(project: Project, cells: int, twice: Set[str] = frozenset()) -> None:
    """Every cell has one run, which succeeded at the first attempt; those that ran when something was killed may have
    had two."""
    ledger = project.ledger
    runs = ledger.runs()
    assert Counter(run.state for run in runs) == {RunState.SUCCEEDED: cells}
    assert {run.params["n"] for run in runs} == set(range(cells))
    for run in runs:
        assert run.attempts == 1 or (run.attempts == 2 and run.run_id in twice), (run.run_id, run.attempts)
