"""A job that does nothing: what everything around it costs, on an open unit and as a command of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.bench.kept import NOOP, Kept
from tests.bench.rounds import Noise, Row, measure, rows, timed
from tests.bench.server import Line, run

FRESH, SHARED = "ssh python3 noop.py", "the same over a ControlMaster"


def noop_on_an_open_unit(kept: Kept, line: Line, rounds: int, noise: Noise) -> list[Row]:
    """`unit.send_run("noop.py")`: shipped, run, its outputs and logs home, recorded durably."""
    kept.lead_to(line)
    home = line.server.home
    with kept.joined() as unit:
        sides = {
            "ours": lambda: timed(lambda: unit.send_run(kept.project / NOOP)),
            FRESH: lambda: timed(lambda: run(line.ssh("python3", f"{home}/{NOOP}"))),
            SHARED: lambda: timed(lambda: run(line.ssh("python3", f"{home}/{NOOP}", shared=True))),
        }
        taken = measure(sides, rounds, noise, warm_up=2)
    return rows("no-op job, open unit", line.name, taken, {FRESH: 0.3, SHARED: 1.0})


def noop_submitted(kept: Kept, line: Line, rounds: int, noise: Noise) -> list[Row]:
    """All of `cloudrun submit noop.py` to a kept unit, the process included."""
    kept.lead_to(line)
    command = _submit_command(kept)
    run(command, cwd=kept.project)
    for archive in (line.server.home / ".cloudrun" / "agent").glob("*.pyz"):
        os.utime(archive, (0, 0))  # as on a unit that was kept for a while: its agent has left its byte code there
    run(command, cwd=kept.project)
    sides = {
        "ours": lambda: timed(lambda: run(command, cwd=kept.project)),
        FRESH: lambda: timed(lambda: run(line.ssh("python3", f"{line.server.home}/{NOOP}"))),
    }
    return rows("submit no-op, kept unit", line.name, measure(sides, rounds, noise), {FRESH: 2.0})


def _submit_command(kept: Kept) -> list[str]:
    told = subprocess.run(
        [sys.executable, "-m", "cloudrun", "submit", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"},
    ).stdout  # fmt: skip
    for flag in ("--instance-id", "--unit"):
        if flag in told:
            words = ["-m", "cloudrun", "submit", NOOP, flag, kept.instance_id, "--on-exit", "keep", "--json"]
            return [sys.executable, *words]
    program = (
        "from cloudrun import process_unit\n"
        f"with process_unit(instance_id={kept.instance_id!r}, on_exit='keep', project='.') as unit:\n"
        f"    unit.send_run({NOOP!r})"
    )
    return [sys.executable, "-c", program]
