"""Scripts as forks of one Python that has imported the scientific libraries, as units run them; a core each.

python -m tests.bench.forked < COMMANDS         a JSON list of [working directory, script, argument...]
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import multiprocessing
import os
import runpy
import sys
from pathlib import Path

IMPORTED = (
    "joblib", "numpy", "scipy.sparse", "scipy.special", "sklearn.feature_extraction", "sklearn.linear_model",
    "sklearn.pipeline", "sklearn.preprocessing", "sklearn.random_projection",
)  # fmt: skip


def run(command: list[str]) -> None:
    os.chdir(command[0])
    sys.argv = command[1:]
    sys.path[0] = str(Path(command[1]).parent)
    with contextlib.redirect_stdout(io.StringIO()):
        runpy.run_path(command[1], run_name="__main__")


def main() -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        pool.map(run, json.load(sys.stdin), chunksize=1)


if __name__ == "__main__":
    main()
