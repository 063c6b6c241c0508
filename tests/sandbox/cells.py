"""What tests of grids share: a script whose cells say which they were, and the command that runs it."""

from __future__ import annotations

from cloudrun.core.records import GridRecord
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
