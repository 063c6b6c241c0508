"""Test, then train: out-of-core logistic regression on a CSV stream of any length, with hashed polynomial terms.

Each minibatch is predicted before it is learned from. The scores are the average loss of the last 30 % of minibatches,
R² against a benchmark that predicts the mean of all targets before the minibatch, and that benchmark's own loss.

    python jobs/progressive_data.py data/progressive.csv
    python jobs/progressive.py --features x1,x2,x3 --degree 2 --alpha 0.001

makes scores.json and model.joblib (see progressive_model.py). With several values of l1_ratio or alpha, as in
`--alpha 1e-4,1e-3,1e-2`, the stream is read and hashed once and a classifier for each combination is trained on it:
scores.json has the best one's scores, cells.json those of all, and models/ a model for each.

The classifiers are plain SGDClassifiers and their scores the same as with n_features columns, but they are trained on
the columns that were seen only: partial_fit sweeps all coefficients at every minibatch, and the others stay 0.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import sklearn
from progressive_model import steps_before, whole
from progressive_stream import BadData, Block, HashedSpace, NoSuchColumn, blocks
from scipy.sparse import csr_array
from scipy.special import expit
from sklearn.linear_model import SGDClassifier

TAIL = 0.3  # of the minibatches, rounded up
EPSILON = float(np.finfo(float).eps)  # how far from 0 and 1 sklearn.metrics.log_loss takes probabilities to be
LOSSES = {  # of each row, by target (0 or 1) and probability of a 1
    "log_loss": lambda y, p: -np.log(np.clip(np.where(y == 1, p, 1 - p), EPSILON, 1 - EPSILON)),
    "squared_error": lambda y, p: (y - p) ** 2,
}


@dataclass
class Cell:
    """One classifier and the loss of each minibatch before it was trained on it."""

    params: dict[str, float]
    classifier: SGDClassifier
    seed: int  # of the order of rows within a minibatch
    losses: list[float] = field(default_factory=list)


@dataclass
class Benchmark:
    """Predicts the mean of all targets so far, a half before the first."""

    count: int = 0
    ones: float = 0.0
    losses: list[float] = field(default_factory=list)

    def probability(self) -> float:
        return self.ones / self.count if self.count else 0.5

    def learn(self, y: np.ndarray) -> None:
        self.count += len(y)
        self.ones += y.sum()


def validate(cells: Sequence[Cell], space: HashedSpace, stream: Iterable[Block], batch: int, loss: str) -> Benchmark:
    """Fills in the cells' losses and trains their classifiers; returns the benchmark with its losses."""
    benchmark = Benchmark()
    for block in stream:
        rows = space.rows(block)
        for cell in cells:
            widen(cell.classifier, rows.shape[1])
        for start in range(0, rows.shape[0], batch):
            x, y = rows[start : start + batch], block.target[start : start + batch]
            test(cells, benchmark, x, y, loss)
            for cell in cells:
                train(cell, x, y)
            benchmark.learn(y)
    return benchmark


def test(cells: Sequence[Cell], benchmark: Benchmark, x: csr_array, y: np.ndarray, loss: str) -> None:
    coefficients = np.concatenate([cell.classifier.coef_ for cell in cells])
    intercepts = np.concatenate([cell.classifier.intercept_ for cell in cells])
    probabilities = expit(np.ascontiguousarray((x @ coefficients.T + intercepts).T))  # summed as one cell's alone are
    for cell, mean in zip(cells, LOSSES[loss](y, probabilities).mean(axis=1).tolist(), strict=True):
        cell.losses.append(mean)
    benchmark.losses.append(float(LOSSES[loss](y, benchmark.probability()).mean()))


def train(cell: Cell, x: csr_array, y: np.ndarray) -> None:
    known = hasattr(cell.classifier, "classes_")
    cell.classifier.random_state.seed(cell.seed)
    try:
        cell.classifier.partial_fit(x, y, classes=None if known else [0, 1])
    except ValueError as error:  # the data are finite, so it has diverged
        raise BadData(f"training with {cell.params} failed: {error}") from None


def widen(classifier: SGDClassifier, width: int) -> None:
    """Coefficients of 0 for columns that are seen for the first time: what they would have had all along."""
    coefficients = np.zeros((1, width))
    if hasattr(classifier, "coef_"):
        coefficients[:, : classifier.coef_.shape[1]] = classifier.coef_
    else:
        classifier.intercept_ = np.zeros(1)
    classifier.coef_, classifier.n_features_in_ = coefficients, width


def tail_mean(losses: Sequence[float]) -> float:
    return float(np.mean(losses[-math.ceil(TAIL * len(losses)) :]))


def scores(cell: Cell, benchmark: Benchmark, loss: str) -> dict[str, float]:
    ours, theirs = tail_mean(cell.losses), tail_mean(benchmark.losses)
    return {loss: ours, "r2": 1 - ours / max(theirs, EPSILON), f"benchmark_{loss}": theirs}


def save(
    cells: Sequence[Cell], benchmark: Benchmark, space: HashedSpace, asked: argparse.Namespace
) -> dict[str, float]:
    """Scores and models, to the working directory; returns what is in scores.json."""
    before = steps_before(space, asked.degree)
    for cell in cells:
        cell.classifier.set_params(random_state=cell.seed)
    told = [scores(cell, benchmark, asked.loss) for cell in cells]
    best = min(range(len(cells)), key=lambda number: told[number][asked.loss])
    if len(cells) == 1:
        dump(whole(before, cells[0].classifier, space), Path("model.joblib"))
        summary = told[0]
    else:
        names = [
            f"models/{','.join(f'{name}={value}' for name, value in cell.params.items())}.joblib" for cell in cells
        ]
        Path("models").mkdir(exist_ok=True)
        for cell, name in zip(cells, names, strict=True):
            dump(whole(before, cell.classifier, space), Path(name))
        shared = {name: getattr(asked, name) for name in ("n_features", "degree", "penalty", "seed")}
        shared["features"] = ",".join(asked.features)
        table = [
            {"params": {**shared, **cell.params}, "scores": each, "model": name}
            for cell, each, name in zip(cells, told, names, strict=True)
        ]
        Path("cells.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        summary = told[best] | {f"best_{name}": value for name, value in cells[best].params.items()}
    Path("scores.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def dump(model: Any, path: Path) -> None:
    joblib.dump(model, path, compress=3)


def run(asked: argparse.Namespace) -> dict[str, float]:
    space = HashedSpace(asked.features, asked.categorical, asked.degree, asked.n_features)
    order = np.random.RandomState()  # seeded before each step, as a seed in its place is: to make one takes far longer
    cells = [
        Cell(
            {"l1_ratio": l1_ratio, "alpha": alpha},
            SGDClassifier(loss="log_loss", penalty=asked.penalty, l1_ratio=l1_ratio, alpha=alpha, random_state=order),
            asked.seed,
        )
        for l1_ratio, alpha in itertools.product(asked.l1_ratio, asked.alpha)
    ]
    numbers = [name for name in asked.features if name not in asked.categorical]
    stream = blocks(asked.data, asked.target, numbers, asked.categorical, asked.batch * asked.read_ahead)
    with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):  # both looked at here already
        benchmark = validate(cells, space, stream, asked.batch, asked.loss)
    print(f"{benchmark.count} rows, {len(space.columns)} of {asked.n_features} columns seen", flush=True)
    return save(cells, benchmark, space, asked)


def listed(text: str) -> list[str]:
    """Names with a comma between each, or as a JSON list."""
    names = [name.strip(" \"'") for name in text.strip("[] ").split(",") if name.strip()]
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text} names one twice")
    return names


def number(low: float, high: float, kind: type = int, *, above: bool = False) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not low <= value <= high or (above and value == low):
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return read


def numbers(low: float, high: float, *, above: bool = False) -> Callable[[str], list[float]]:
    one = number(low, high, float, above=above)

    def read(text: str) -> list[float]:
        values = [one(each) for each in listed(text)]
        if not values or len(set(values)) < len(values):
            raise argparse.ArgumentTypeError(f"{text} has no value, or one twice")
        return values

    return read


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=Path("data/progressive.csv"), metavar="FILE", help="CSV with a header")
    add("--target", default="y", help="the column of 0 and 1 to predict")
    add("--features", type=listed, default=["x1", "x2", "x3"], help="columns to predict it from: x1,x2")
    add("--categorical", type=listed, default=[], help="those among them whose values are categories")
    add("--n_features", type=number(1, 2**31 - 1), default=2**20, help="how many columns names are hashed to")
    add("--degree", type=number(1, 9), default=2, help="the most variables in an interaction")
    add("--penalty", choices=("elasticnet", "l1", "l2"), default="elasticnet")
    add("--l1_ratio", type=numbers(0, 1), default=[0.15], help="of elastic net; several train several classifiers")
    add("--alpha", type=numbers(0, math.inf, above=True), default=[1e-4], help="the penalty's weight; one or several")
    add("--loss", choices=tuple(LOSSES), default="log_loss", help="the score; what is trained is logistic regression")
    add("--batch", type=number(1, 10**9), default=1000, help="rows of a minibatch")
    add("--read_ahead", "--read-ahead", type=number(1, 10**6), default=20, help="minibatches read at once")
    add("--seed", type=number(0, 2**32 - 1), default=0, help="of the order of rows within a minibatch")
    asked = parser.parse_args(words)
    asked.features.sort()  # their order changes nothing
    if not asked.features or asked.target in asked.features:
        parser.error("--features should name columns, and not the target")
    if strangers := set(asked.categorical) - set(asked.features):
        parser.error(f"--categorical names what --features does not: {', '.join(sorted(strangers))}")
    if not asked.data.is_file():
        parser.error(f"there is no file {asked.data}; progressive_data.py makes one")
    return asked


def main() -> None:
    asked = parse()
    try:
        print(json.dumps(run(asked)))
    except NoSuchColumn as error:
        print(f"progressive.py: {error}", file=sys.stderr)
        sys.exit(2)
    except (BadData, OSError) as error:
        sys.exit(f"progressive.py: {error}")


if __name__ == "__main__":
    main()
