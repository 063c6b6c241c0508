"""The grid of jobs/progressive.toml as a notebook has it: csv, a dictionary a row, FeatureHasher, a process a core.

    python -m tests.bench.notebook DATA < CELLS

It shares no code with the jobs, so it is also what their tests hold them against.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import multiprocessing
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import log_loss

BATCH, READ_AHEAD = 1000, 20


Term = tuple[tuple[str, ...], str]  # its variables, and what it is called where none of them is a category


def terms(features: Sequence[str], categories: Sequence[str], degree: int) -> list[Term]:
    """All products of up to `degree` variables; a dummy is never multiplied with one of its own variable."""
    return [
        (variables, called(variables))
        for size in range(1, degree + 1)
        for variables in itertools.combinations_with_replacement(features, size)
        if not any(variables.count(name) > 1 for name in categories)
    ]


def called(factors: Sequence[str]) -> str:
    powers = Counter(factors)
    return " ".join(name if power == 1 else f"{name}^{power}" for name, power in powers.items())


def products(row: Mapping[str, str], wanted: Sequence[Term], categories: Sequence[str]) -> dict[str, float]:
    found = {}
    for variables, name in wanted:
        value = 1.0
        for variable in variables:
            if variable in categories:
                name = called([f"{each}={row[each]}" if each in categories else each for each in variables])
            else:
                value *= float(row[variable])
        found[name] = value
    return found


def minibatches(path: Path, batch: int) -> Iterator[list[dict[str, str]]]:
    with path.open() as stream:
        reader = csv.DictReader(stream)
        while rows := list(itertools.islice(reader, batch * READ_AHEAD)):
            for start in range(0, len(rows), batch):
                yield rows[start : start + batch]


def cell(
    path: Path,
    features: Sequence[str],
    n_features: int,
    degree: int,
    *,
    categories: Sequence[str] = (),
    batch: int = BATCH,
    loss: str = "log_loss",
    penalty: str = "elasticnet",
    l1_ratio: float = 0.15,
    alpha: float = 1e-4,
) -> tuple[dict[str, float], SGDClassifier]:
    """Test, then train."""
    classifier = SGDClassifier(loss="log_loss", penalty=penalty, l1_ratio=l1_ratio, alpha=alpha, random_state=0)
    hasher = FeatureHasher(n_features)
    wanted = terms(features, categories, degree)
    losses, benchmarks = [], []
    count = ones = 0
    for rows in minibatches(path, batch):
        x = hasher.transform([products(row, wanted, categories) for row in rows])
        y = np.array([int(row["y"]) for row in rows])
        probability = classifier.predict_proba(x)[:, 1] if count else np.full(len(y), 0.5)
        mean = np.full(len(y), ones / count if count else 0.5)
        for predicted, each in ((probability, losses), (mean, benchmarks)):
            if loss == "log_loss":
                each.append(log_loss(y, predicted, labels=[0, 1]))
            else:
                each.append(np.mean((y - predicted) ** 2))
        classifier.partial_fit(x, y, classes=[0, 1])
        count += len(y)
        ones += y.sum()
    tail = math.ceil(0.3 * len(losses))
    ours, theirs = float(np.mean(losses[-tail:])), float(np.mean(benchmarks[-tail:]))
    return {loss: ours, "r2": 1 - ours / theirs, f"benchmark_{loss}": theirs}, classifier


def _saved(task: tuple[dict[str, Any], Path, Path]) -> dict[str, float]:
    params, data, model = task
    scores, classifier = cell(data, **{**params, "features": params["features"].split(",")})
    joblib.dump(classifier, model)
    return scores


def main() -> None:
    """Cells as a JSON list on standard input, their scores on standard output; models go to the working directory."""
    data = Path(sys.argv[1])
    tasks = [(params, data, Path(f"model{number}.joblib")) for number, params in enumerate(json.load(sys.stdin))]
    with multiprocessing.Pool() as pool:
        print(json.dumps(pool.map(_saved, tasks, chunksize=1)))


if __name__ == "__main__":
    main()
