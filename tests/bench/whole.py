"""`cloudrun submit` from nothing, warm and cold, beside a script that a careful user would write (`by_hand`)."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudrun.provisioning.environment import environment_for
from cloudrun.sandbox import client
from tests.bench.rounds import Noise, Row, Spread, measure, rows, timed
from tests.bench.server import run

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "jobs" / "digits.py"
BY_HAND = "boto3, ansible-playbook, scp, ssh"
WARM_S = 120.0  # at most, for the sandbox to keep the environment that the first run built

Phases = dict[str, dict[str, Spread]]  # by side, by phase


@contextmanager
def sandbox(folder: Path, machines: str | None) -> Iterator[str]:
    """A sandbox in a folder of its own; yields which driver its machines have. It ends with its machines."""
    os.environ["CLOUDRUN_SANDBOX_DIR"] = str(folder)
    flag = ["--machines", machines] if machines else []
    run([sys.executable, "-m", "cloudrun", "sandbox", "start", *flag])
    try:
        yield str(client.status()["driver"])
    finally:
        run([sys.executable, "-m", "cloudrun", "sandbox", "stop", "--force"])


class Submission:
    """The same script, both ways, in whichever sandbox runs."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "submitted"
        self.project.mkdir(exist_ok=True)
        (self.project / "cloudrun.toml").touch()
        shutil.copy(SCRIPT, self.project)
        self.requirements = folder / "requirements.txt"
        self.results = folder / "results"
        self.taken: dict[str, list[dict[str, float]]] = {"ours": [], BY_HAND: []}
        architecture = "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64"
        environment = environment_for(
            self.project / SCRIPT.name, self.project, architecture=architecture, cache_dir=folder / "cache"
        )
        self.requirements.write_text("\n".join(environment.requirements))

    def ours(self) -> float:
        command = [sys.executable, "-m", "cloudrun", "submit", SCRIPT.name, "--json"]
        told: list[str] = []
        took = timed(lambda: told.append(run(command, cwd=self.project)))
        timings = json.loads(told[0])["timings"]
        phases = {name.removesuffix("_s"): value for name, value in timings.items()}
        self.taken["ours"].append({**phases, "outside the phases": took - phases["total"]})
        return took

    def by_hand(self) -> float:
        words = [str(self.project / SCRIPT.name), str(self.requirements), str(self.results)]
        told: list[str] = []
        took = timed(
            lambda: told.append(
                run(
                    [sys.executable, "-m", "tests.bench.by_hand", *words],
                    cwd=CHECKOUT, env={**os.environ, **client.status()["env"]},
                )
            )
        )  # fmt: skip
        assert (self.results / "stdout.log").exists()
        shutil.rmtree(self.results)
        self.taken[BY_HAND].append(json.loads(told[0]))
        return took

    def phases(self, rounds: int) -> Phases:
        return {
            side: {name: Spread.of([each.get(name, 0.0) for each in taken[-rounds:]]) for name in taken[-1]}
            for side, taken in self.taken.items()
            if taken
        }

    def warm_up(self) -> None:
        """Until the sandbox has kept the environment: from then on a machine has it from its boot."""
        end = time.monotonic() + WARM_S
        while self.ours() and self.taken["ours"][-1]["provision"] and time.monotonic() < end:
            time.sleep(1)


def warm(folder: Path, rounds: int, noise: Noise) -> tuple[list[Row], Phases]:
    submission = Submission(folder)
    submission.warm_up()
    taken = measure({"ours": submission.ours, BY_HAND: submission.by_hand}, rounds, noise, warm_up=0)
    return rows("submit from nothing, warm", "sandbox", taken, {BY_HAND: 0.5}), submission.phases(rounds)


def cold(folder: Path, rounds: int, noise: Noise, machines: str | None) -> tuple[list[Row], Phases]:
    """Each in a sandbox that has just been started, with no package fetched and no environment kept."""
    submission = Submission(folder)
    kept = os.environ["CLOUDRUN_SANDBOX_DIR"]

    def in_a_new_one(work: str) -> float:
        with sandbox(folder / "cold", machines):
            shutil.rmtree(submission.project / ".cloudrun", ignore_errors=True)
            took: float = getattr(submission, work)()
        shutil.rmtree(folder / "cold")
        return took

    try:
        sides = {"ours": lambda: in_a_new_one("ours"), BY_HAND: lambda: in_a_new_one("by_hand")}
        taken = measure(sides, rounds, noise, warm_up=0)
    finally:
        os.environ["CLOUDRUN_SANDBOX_DIR"] = kept
    return rows("submit from nothing, cold", "sandbox", taken, {}), submission.phases(rounds)
