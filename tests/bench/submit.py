"""What `cloudrun submit` adds to a script, on a warm sandbox: `python tests/bench/submit.py [--runs 5]`.

Runs the script here and on a machine of its own in turn, and prints minimum, median and maximum of both, of what is
added, and of every phase.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIGITS = Path(__file__).parents[2] / "jobs" / "digits.py"
WARM_S = 60.0  # at most, for the region to keep the environment that the first run built


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    began = time.monotonic()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return time.monotonic() - began, done.stdout


def row(name: str, seconds: list[float]) -> str:
    return f"{name:<22}{min(seconds):>9.2f}{statistics.median(seconds):>9.2f}{max(seconds):>9.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--script", type=Path, default=DIGITS)
    arguments = parser.parse_args()
    submit = [sys.executable, "-m", "cloudrun", "submit", arguments.script.name, "--json"]
    here, there, phases = [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / arguments.script.name).write_bytes(arguments.script.read_bytes())
        cold_s, _ = timed(submit, folder)
        end = time.monotonic() + WARM_S
        while json.loads(timed(submit, folder)[1])["timings"]["provision_s"] and time.monotonic() < end:
            time.sleep(1)
        for _ in range(arguments.runs):
            here.append(timed([sys.executable, arguments.script.name], folder)[0])
            took, printed = timed(submit, folder)
            there.append(took)
            phases.append(json.loads(printed)["timings"])
    added = [b - a for a, b in zip(here, there, strict=True)]
    print(f"{arguments.script.name}, {arguments.runs} runs, {os.cpu_count()} cores; seconds; cold: {cold_s:.2f}")
    print(f"{'':<22}{'min':>9}{'median':>9}{'max':>9}")
    print(row("the script, here", here))
    print(row("cloudrun submit", there))
    print(row("added", added))
    for phase in phases[0]:
        print(row(f"  {phase.removesuffix('_s')}", [each[phase] for each in phases]))
    print(row("  outside the phases", [b - each["total_s"] for b, each in zip(there, phases, strict=True)]))


if __name__ == "__main__":
    main()
