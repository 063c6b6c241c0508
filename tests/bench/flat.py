"""From submit to all units working, for 1 to 16 units: the environment built once and copied, or built on each of them.

Each measurement is a grid in a process of its own (`python -m tests.bench.flat PROJECT UNITS WAY`): as many cells as
units, one on each; it is over when every unit has its cell running. What units do themselves (boot, build, send and
receive 210 MB) they do on this computer's processors, all of them at once: the wall time of many is that of a computer
too small for them, to be read beside that of units that boot with the environment ("kept"). The controller's CPU time
is what it is anywhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.rounds import Noise
from tests.bench.server import run
from tests.bench.whole import CHECKOUT, sandbox

UNITS = (1, 2, 4, 8, 16)
WAYS = ("copied", "ansible")
TARGET_CPU_S = 0.3  # of the controller, for each further unit
WARM_S = 120.0  # at most, for the sandbox to keep the environment

# The environment has scikit-learn in it; the cell does not import it: a unit has processors of its own, and here all
# units share this computer's.
CELL = """
import time

def never():
    import sklearn

time.sleep(900)
"""


def measured(folder: Path, noise: Noise, machines: str | None, *, quick: bool) -> list[dict[str, Any]]:
    """A dict for each number of units and way: units, way, wall_s, cpu_s (of the controller and its children).

    Each is in a new sandbox, where no package was ever fetched; "kept" in one that has kept the environment, so that
    machines boot with it.
    """
    former = os.environ.get("CLOUDRUN_SANDBOX_DIR")
    found = []
    try:
        for units in UNITS[: 3 if quick else None]:
            for way in WAYS:
                with sandbox(folder / "flat-sandbox", machines):
                    found.append(_one(folder, units, way))
                shutil.rmtree(folder / "flat-sandbox", ignore_errors=True)
                noise.look()
        with sandbox(folder / "flat-sandbox", machines):
            _keep(folder)
            for units in UNITS[: 3 if quick else None]:
                found.append({**_one(folder, units, "copied"), "way": "kept"})
                noise.look()
    finally:
        if former is not None:
            os.environ["CLOUDRUN_SANDBOX_DIR"] = former
    return found


def table(found: list[dict[str, Any]]) -> str:
    """For people."""
    told = [f"{'environment':<12}{'units':>6}{'wall s':>9}{'/ 1 unit':>10}{'CPU s':>8}{'per further unit':>18}  target"]
    for way in (*WAYS, "kept"):
        first, *_ = ours = [each for each in found if each["way"] == way]
        for each in ours:
            per_unit = target = ""
            if each["units"] > 1:
                further_s = (each["cpu_s"] - first["cpu_s"]) / (each["units"] - 1)
                per_unit = f"{further_s:.2f}"
                target = (
                    f"{TARGET_CPU_S} {'met' if further_s <= TARGET_CPU_S else 'MISSED'}" if way != "ansible" else ""
                )
            told.append(
                f"{way:<12}{each['units']:>6}{each['wall_s']:>9.1f}{each['wall_s'] / first['wall_s']:>10.2f}"
                f"{each['cpu_s']:>8.2f}{per_unit:>18}  {target}"
            )
    return "\n".join(told)


def _one(folder: Path, units: int, way: str) -> dict[str, Any]:
    project = folder / f"flat-{units}-{way}-{time.monotonic_ns()}"
    project.mkdir()
    (project / "cloudrun.toml").touch()
    (project / "cell.py").write_text(CELL)
    words = [sys.executable, "-m", "tests.bench.flat", str(project), str(units), way]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    told = run(words, cwd=CHECKOUT, env=env)
    return {"units": units, "way": way, **json.loads(told.splitlines()[-1])}


def _keep(folder: Path) -> None:
    """Have the sandbox keep the environment: from then on no unit has to get it."""
    end = time.monotonic() + WARM_S
    while _one(folder, 1, "copied")["provisioned"] and time.monotonic() < end:
        time.sleep(1)


# -- the process that is measured --------------------------------------------------------------------------------------


class _Enough(Exception):
    """Every unit works."""


def main(place: str, count: str, way: str) -> None:
    began = time.monotonic()
    os.chdir(place)
    units = int(count)
    from cloudrun.core.events import Event, PhaseEnded
    from cloudrun.core.settings import Settings
    from cloudrun.grids.grid import Wishes, run_grid
    from cloudrun.ledger import Ledger
    from cloudrun.plan.grid import make_grid
    from cloudrun.pools.spreading import Spreading
    from cloudrun.runs.attempt import Attempt
    from cloudrun.runs.prepared import Job

    working: dict[str, float] = {}
    provisioned: list[float] = []  # seconds that units waited for their environments, or built or copied them
    cpu_s: list[float] = []
    mark_running = Attempt.mark_running

    def running(attempt: Attempt) -> None:
        mark_running(attempt)
        working.setdefault(attempt.unit.instance_id, time.monotonic() - began)

    def seen(event: Event) -> None:
        if isinstance(event, PhaseEnded) and event.phase == "provision":
            provisioned.append(round(event.elapsed_s, 2))

    def look(*_: object) -> None:
        if len(working) == units:
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            cpu_s.append(sum(each.ru_utime + each.ru_stime for each in used))
            raise _Enough

    Attempt.mark_running = running  # type: ignore[method-assign]
    if way == "ansible":  # as it was: each unit for itself
        Spreading.provide = lambda _self, _unit, _fingerprint, _phases, build: build()  # type: ignore[method-assign]
    grid = make_grid({"n": list(range(units))})
    with contextlib.suppress(_Enough):
        run_grid(
            Job(Path("cell.py"), (), {}, None), grid, Settings(grace_s=0.1), Wishes(units=units, slots=1),
            ledger=Ledger(), observe=seen, changed=look,
        )  # fmt: skip
    print(json.dumps({"wall_s": max(working.values()), "cpu_s": cpu_s[0], "provisioned": provisioned}))


if __name__ == "__main__":
    main(*sys.argv[1:])
