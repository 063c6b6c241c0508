"""The grid that the options of a command line say: `--set`, `--grid`, `--sample` and `--seed`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cloudrun.cli.printing import printable
from cloudrun.core.errors import UsageError
from cloudrun.plan.grid import Grid, check_cells, check_size, cross
from cloudrun.plan.grid_files import KINDS, read_grid
from cloudrun.plan.grid_sets import parse_sets


def grid_of(
    sets: Sequence[str] = (),
    file: Path | None = None,
    sample: int | None = None,
    seed: int | None = None,
    *,
    yes: bool = False,
) -> Grid:
    """The grid of a submission, checked; one of size 1 is a plain run, whose parameters are its only cell.

    `--set` beside a file adds parameters to each of its tables, or replaces them there, which stderr says. Raises
    UsageError for what is no grid, for two cells that are the same, and, unless `yes`, for more than 100,000 of them.
    """
    if seed is not None and sample is None:
        raise UsageError("--seed without --sample draws nothing", next_step=f"--sample 100 --seed {seed}")
    grid = parse_sets(sets)
    if file is not None:
        of_file = read_grid(_text(file), _kind(file), str(file))
        (more,) = grid.tables
        for name in more:
            if any(name in table for table in of_file.tables):
                print(f"  --set {name} is in place of what {printable(file)} says of it", file=sys.stderr)
        grid = cross(of_file, grid)
    grid = replace(grid, sample=sample, seed=seed or 0)
    check_size(grid, yes)
    check_cells(grid)
    return grid


def _kind(file: Path) -> str:
    kind = KINDS.get(file.suffix.lower())
    if kind is None:
        raise UsageError(
            f"--grid {file}: its name does not say what it is written in",
            next_step=f"call it {file.stem or 'grid'}.toml, .yaml or .json",
        )
    return kind


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UsageError(f"{file}:{line}: this is not UTF-8 text", next_step=f"save {file} as UTF-8") from error
    except OSError as error:
        raise UsageError(f"--grid {file} cannot be read: {error.strerror}", next_step="name a file that can") from error
