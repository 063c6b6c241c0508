"""The 144 cells of jobs/progressive.toml: the jobs, a cell or a feature space a run, beside a notebook (`notebook`).

Ours are `cloudrun submit` in the sandbox, on one unit with a slot a core, from the command to its return. Beside them
the same scripts without cloudrun, as many at a time: new interpreters, or forks of one that has imported the libraries,
which is how a unit starts them. Every side has one BLAS thread a process, and its packages installed before it begins:
the sandbox keeps an environment that it has built once.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

from sklearn.model_selection import ParameterGrid

from cloudrun.ledger import Ledger
from cloudrun.sandbox.state import state_dir
from tests.bench.rounds import Noise, Row, measure, rows, timed
from tests.bench.server import run
from tests.waiting import until

CHECKOUT = Path(__file__).parents[2]
JOBS = CHECKOUT / "jobs"
MODULES = ("progressive.py", "progressive_data.py", "progressive_model.py", "progressive_stream.py")
NOTEBOOK = "a notebook"
FUSED, CELLS = "144 cells, fused", "144 cells, a cell a run"
TARGETS = {FUSED: 1 / 10, CELLS: 1 / 2}
MODELS_BYTES = 5_000_000
Scores = dict[str, dict[str, float]]  # by cell


def cells(grid: str) -> list[dict[str, Any]]:
    written = tomllib.loads((JOBS / grid).read_text())
    return list(ParameterGrid({name: value if isinstance(value, list) else [value] for name, value in written.items()}))


def called(params: dict[str, Any]) -> str:
    return json.dumps({name: params[name] for name in ("features", "n_features", "degree", "l1_ratio", "alpha")})


class Grid:
    """Runs it each way in folders of its own, and remembers what came out: scores, bytes of models, and CPU seconds,
    which say more than time does where others use the machine too."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.data = folder / "progressive.csv"
        self.scores: dict[str, Scores] = {}
        self.bytes: dict[str, int] = {}
        self.cpu_s: dict[str, float] = {}
        self._folder = folder / "runs"
        self._stored = 0  # bytes of models in a ledger
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._environment = {**os.environ, **threads, "PYTHONPATH": str(CHECKOUT)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)
        run([sys.executable, str(JOBS / "progressive_data.py"), str(self.data), "--rows", str(rows)])

    def side(self, name: str, work: Callable[[], Scores]) -> Callable[[], float]:
        def once() -> float:
            self._folder.mkdir()
            told: list[Scores] = []
            before = os.times()
            took = timed(lambda: told.append(work()))
            after = os.times()
            self.cpu_s[name] = sum(after[2:4]) - sum(before[2:4])  # of children that have ended, and theirs
            self.scores[name] = told[0]
            models = sum(path.stat().st_size for path in self._folder.rglob("*.joblib"))
            self.bytes[name], self._stored = models + self._stored, 0
            shutil.rmtree(self._folder)
            return took

        return once

    def notebook(self) -> Scores:
        asked = cells("progressive.toml")
        told = self._python("tests.bench.notebook", str(self.data), text=json.dumps(asked))
        return dict(zip(map(called, asked), json.loads(told), strict=True))

    def furnish(self) -> None:
        """Have the sandbox build the environment, and keep it for the machines to come."""
        self._folder.mkdir()
        self.submitted("progressive_fused.toml")
        shutil.rmtree(self._folder)
        self._stored = 0
        kept = state_dir().cache / "environments"
        until(lambda: any(kept.iterdir()) and not any(kept.glob("building-*")))

    def scripts(self, grid: str) -> Scores:
        commands = self._commands(grid)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self._script, commands))
        return self._home(grid, commands)

    def submitted(self, grid: str) -> Scores:
        """All of it through cloudrun, on a unit that is launched for it, into a ledger of its own."""
        project = self._folder / "project"
        project.mkdir()
        for name in (grid, *MODULES):
            shutil.copy(JOBS / name, project)
        (project / "cloudrun.toml").touch()
        os.link(self.data, project / "progressive.csv")
        words = ["submit", MODULES[0], "--grid", grid, "--slots", str(os.cpu_count()), "--json"]
        run([sys.executable, "-m", "cloudrun", *words, "--", "--data", "progressive.csv"], cwd=project)
        found: Scores = {}
        with closing(Ledger(project)) as ledger:
            for each in ledger.runs():
                artifacts = {artifact.path: artifact for artifact in each.artifacts}
                self._stored += sum(it.size for path, it in artifacts.items() if path.endswith(".joblib"))
                if "cells.json" in artifacts:
                    with ledger.artifacts.open(artifacts["cells.json"].sha256) as file:
                        found |= {called(row["params"]): row["scores"] for row in json.load(file)}
                else:
                    found[called(dict(each.params))] = dict(ledger.get(each.run_id).scores)
        return found

    def forks(self, grid: str) -> Scores:
        commands = self._commands(grid)
        self._python("tests.bench.forked", text=json.dumps(commands))
        return self._home(grid, commands)

    def _commands(self, grid: str) -> list[list[str]]:
        """Working directory (made), script, arguments."""
        commands = []
        for number, params in enumerate(cells(grid)):
            folder = self._folder / str(number)
            folder.mkdir()
            words = [str(word) for name, value in params.items() for word in (f"--{name}", value)]
            commands.append([str(folder), str(JOBS / "progressive.py"), "--data", str(self.data), *words])
        return commands

    def _home(self, grid: str, commands: Sequence[Sequence[str]]) -> Scores:
        found: Scores = {}
        for params, (folder, *_) in zip(cells(grid), commands, strict=True):
            table = Path(folder) / "cells.json"
            if table.exists():
                found |= {called(row["params"]): row["scores"] for row in json.loads(table.read_text())}
            else:
                found[called(params)] = json.loads((Path(folder) / "scores.json").read_text())
        return found

    def _script(self, command: list[str]) -> None:
        folder, *words = command
        subprocess.run([sys.executable, *words], cwd=folder, env=self._environment, check=True, capture_output=True)

    def _python(self, module: str, *words: str, text: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=self._folder, env=self._environment, input=text, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return done.stdout


def compared(folder: Path, rounds: int, noise: Noise, *, quick: bool) -> tuple[list[Row], dict[str, Any]]:
    """Times as rows; and of each side how many cells, CPU seconds, their models' bytes, its scores' largest difference
    from the notebook's. `quick`: a tenth of the rows, which says nothing about targets.
    """
    grid = Grid(folder, 10_000 if quick else 100_000)
    grid.furnish()
    ways = {
        (FUSED, "cloudrun"): lambda: grid.submitted("progressive_fused.toml"),
        (CELLS, "cloudrun"): lambda: grid.submitted("progressive.toml"),
        (FUSED, "scripts"): lambda: grid.scripts("progressive_fused.toml"),
        (FUSED, "forks"): lambda: grid.forks("progressive_fused.toml"),
        (CELLS, "scripts"): lambda: grid.scripts("progressive.toml"),
        (CELLS, "forks"): lambda: grid.forks("progressive.toml"),
    }
    sides = {f"{what}, {line}": grid.side(f"{what}, {line}", work) for (what, line), work in ways.items()}
    taken = measure({**sides, NOTEBOOK: grid.side(NOTEBOOK, grid.notebook)}, rounds, noise, warm_up=0)
    made = []
    for what, line in ways:
        both = {"ours": taken[f"{what}, {line}"], NOTEBOOK: taken[NOTEBOOK]}
        made += rows(what, line, both, {} if quick else {NOTEBOOK: TARGETS[what]})
    facts = {
        name: {
            "cells": len(found),
            "cpu_s": grid.cpu_s[name],
            "models_bytes": grid.bytes[name],
            "scores_differ_by": max(
                abs(value - grid.scores[NOTEBOOK][cell][score])
                for cell, each in found.items()
                for score, value in each.items()
            ),
        }
        for name, found in grid.scores.items()
    }
    return made, facts
