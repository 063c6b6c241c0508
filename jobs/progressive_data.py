"""Rows to learn from: `python jobs/progressive_data.py data/progressive.csv` writes y, x1, x2, x3 as CSV.

x1, x2 and x3 are independent and standard normal, to six decimals. y is 1 with the probability of a logistic model
whose intercept is 0.9 and whose coefficients fall evenly from 0.9 to 0.1 over x1, x2, x3, x1x2, x1x3, x2x3, x1^2, x2^2
and x3^2.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

INTERCEPT = 0.9
COEFFICIENTS = np.linspace(0.9, 0.1, 9)


def draw(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """y, shape (rows,), of 0 and 1; x, shape (rows, 3)."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((rows, 3)).round(6)
    x1, x2, x3 = x.T
    log_odds = INTERCEPT + np.column_stack((x, x1 * x2, x1 * x3, x2 * x3, x**2)) @ COEFFICIENTS
    return (generator.random(rows) < 1 / (1 + np.exp(-log_odds))).astype(int), x


def write(path: Path, rows: int = 100_000, seed: int = 0) -> None:
    y, x = draw(rows, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as stream:
        stream.write("y,x1,x2,x3\n")
        stream.writelines(map("%d,%.6f,%.6f,%.6f\n".__mod__, zip(y.tolist(), *x.T.tolist(), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(arguments.path, arguments.rows, arguments.seed)


if __name__ == "__main__":
    main()
