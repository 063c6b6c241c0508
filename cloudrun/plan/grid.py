"""Grids: tables of parameters whose values are crossed to cells, counted without making them, made one at a time."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any

from cloudrun.core.errors import UsageError
from cloudrun.plan.fingerprint import params_digest
from cloudrun.plan.parameters import check_name, check_value
from cloudrun.plan.quantities import counted
from cloudrun.plan.sampling import Distribution, Values, count, draw

Table = Mapping[str, Values]
# Where a table's parameter is written, as the beginning of a message: "grid.toml:3: "; the name is "" for the table.
Where = Callable[[int, str], str]

ASK_ABOVE = 100_000  # cells that nobody has by accident


@dataclass(frozen=True)
class Grid:
    """Tables whose cells follow each other; with `sample` that many of them, drawn with `seed`. Made by `make_grid`."""

    tables: tuple[Table, ...]
    sample: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sample is not None and self.sample < 1:
            raise UsageError(f"a sample of {self.sample} cells is none", next_step="--sample 100")
        if self.seed < 0:
            raise UsageError(f"the seed {self.seed} is less than zero", next_step="--seed 0")

    @property
    def size(self) -> int:
        """How many cells there are, exactly. Raises UsageError for distributions without a sample."""
        counts = [count(table) for table in self.tables]
        total = None if None in counts else sum(each or 0 for each in counts)
        if self.sample is not None:
            return self.sample if total is None else min(self.sample, total)
        for table in self.tables:
            for name, values in table.items():
                if isinstance(values, Distribution):
                    raise UsageError(
                        f"{name} is a distribution, and nobody said how many cells to draw", next_step="--sample 100"
                    )
        return total or 0

    def __len__(self) -> int:
        """As `size`; beyond 2^63 only that can say it."""
        return self.size

    def cells(self) -> Iterator[dict[str, Any]]:
        """All cells, one after the other: cell 0, cell 1, ... Parameters keep the order they were written in, and the
        last changes fastest; a sample comes as it is drawn. Values are the grid's own: not to be changed.

        Raises UsageError for distributions without a sample.
        """
        if self.sample is not None:
            return draw(self.tables, self.sample, self.seed)
        _ = self.size
        return (dict(zip(table, values, strict=True)) for table in self.tables for values in product(*_lists(table)))

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads; pairs, because a table's order numbers its cells."""
        tables = [[[name, _written(values)] for name, values in table.items()] for table in self.tables]
        return {"tables": tables, "sample": self.sample, "seed": self.seed}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Grid:
        """The grid that `to_json` wrote."""
        tables = make_grid([dict(pairs) for pairs in document["tables"]]).tables
        return cls(tables, document["sample"], document["seed"])


def make_grid(tables: Any, where: Where = lambda _table, _name: "") -> Grid:
    """Of a table {"alpha": [0.1, 1], "seed": 7}, or a list of such tables, whose cells then follow each other.

    A list's items are the values, a list among them is one value, and what is no list is one value too (a text is never
    taken apart); {"uniform": [0, 1]} is a distribution, see `Distribution`. An empty table is one cell without
    parameters, as in scikit-learn's ParameterGrid. Raises UsageError, with `where` in front, for anything else.
    """
    listed = [tables] if isinstance(tables, Mapping) else tables
    if not _is_list(listed) or not all(isinstance(table, Mapping) for table in listed):
        raise UsageError(
            f"{where(0, '')}a grid is a table of parameters, or a list of such tables",
            next_step='write alpha = [0.1, 1] (TOML), alpha: [0.1, 1] (YAML) or {"alpha": [0.1, 1]} (JSON)',
        )
    if not listed:
        raise UsageError(f"{where(0, '')}this grid is empty", next_step="give a parameter a value: alpha = [0.1, 1]")
    return Grid(tuple(_table(table, number, where) for number, table in enumerate(listed)))


def cross(grid: Grid, sets: Grid) -> Grid:
    """The grid with the parameters of `sets`, a grid of one table, in each of its tables: more of them, or instead."""
    (more,) = sets.tables
    return Grid(tuple({**table, **more} for table in grid.tables), grid.sample, grid.seed)


def check_size(grid: Grid, yes: bool) -> None:
    """Raises UsageError for more cells than anybody means by accident, unless `yes`."""
    size = grid.size
    if size > ASK_ABOVE and not yes:
        cells = f"{size:,}" if size < 10**15 else f"some 10^{round(math.log10(size))}"
        raise UsageError(
            f"this grid has {cells} cells, and each would be a run",
            next_step="add --yes if that is meant, or --sample 1000 to run some of them",
        )


def check_cells(grid: Grid) -> None:
    """Raises UsageError for two cells that are the same, and names both; also as `size` does.

    No parameter of a table has a value twice, so cells of one table differ. Those of several tables with the same
    names are compared one by one, at some 50 bytes and a microsecond each; those of a sample by their digests.
    """
    _ = grid.size  # a distribution without a sample has no cells
    for keys in _sampled_keys(grid) if grid.sample is not None else _keys_by_names(grid.tables):
        seen = set()
        for number, key in keys():
            if key in seen:
                first = next(number for number, other in keys() if other == key)
                cell = next(cell for place, cell in enumerate(grid.cells()) if place == number)
                text = textwrap.shorten(" ".join(f"{name}={value!r}" for name, value in cell.items()), 200)
                raise UsageError(
                    f"cells {first + 1} and {number + 1} of this grid are the same: {text or 'no parameters'}",
                    next_step="take one of them out: the same work is done once",
                )
            seen.add(key)


Keys = Callable[[], Iterator[tuple[int, object]]]


def _sampled_keys(grid: Grid) -> Iterator[Keys]:
    """Cells of one table without end, or of several, may have been drawn twice."""
    if len(grid.tables) > 1 or count(grid.tables[0]) is None:
        yield lambda: ((number, params_digest(cell)) for number, cell in enumerate(grid.cells()))


def _keys_by_names(tables: Sequence[Table]) -> Iterator[Keys]:
    """For each set of names that several tables have: their cells' numbers, with what says all values of one."""
    sizes = [count(table) or 0 for table in tables]
    alike: dict[frozenset[str], list[tuple[int, Table]]] = {}
    for start, table in zip(accumulate(sizes, initial=0), tables, strict=False):
        alike.setdefault(frozenset(table), []).append((start, table))
    for group in alike.values():
        if len(group) > 1:
            yield _places(group)


def _places(group: Sequence[tuple[int, Table]]) -> Keys:
    """A cell is one number: its values' places in the lists of all values of their parameters, as the digits."""
    lists = [(start, dict(zip(table, _identities(table), strict=True))) for start, table in group]
    digits: dict[str, dict[str, int]] = {}
    stride = 1
    for name in lists[0][1]:
        every = dict.fromkeys(value for _, table in lists for value in table[name])
        digits[name] = {value: place * stride for place, value in enumerate(every)}
        stride *= len(every)

    def keys() -> Iterator[tuple[int, object]]:
        for start, table in lists:
            places = ([digits[name][value] for value in values] for name, values in table.items())
            yield from enumerate(map(sum, product(*places)), start)

    return keys


def _identities(table: Table) -> Iterator[list[str]]:
    return ([check_value(value, name) for value in values] for name, values in zip(table, _lists(table), strict=True))


def _lists(table: Table) -> Iterator[tuple[Any, ...]]:
    return (values for values in table.values() if not isinstance(values, Distribution))


# -- what is written, taken as values ---------------------------------------------------------------------------------


def _table(written: Mapping[Any, Any], number: int, where: Where) -> Table:
    table: dict[str, Values] = {}
    for name, value in written.items():
        try:
            table[check_name(name)] = _values(value, name)
        except UsageError as error:
            raise UsageError(f"{where(number, str(name))}{error}", next_step=error.next_step) from error
    return table


def _values(written: Any, name: str) -> Values:
    if isinstance(written, Mapping):
        return _distribution(written, name)
    listed = _plain(written)
    values = tuple(map(_plain, listed)) if _is_list(listed) else (listed,)
    _check_values(values, name)
    return values


def _distribution(written: Mapping[Any, Any], name: str) -> Distribution:
    if len(written) != 1:
        raise UsageError(
            f"{name} is a table of {counted(len(written), 'entry', 'entries')}, neither a list of values nor a"
            " distribution",
            next_step=f"write {name} = [{{...}}] where it is a value, [[grid]] above a table of parameters",
        )
    ((kind, arguments),) = written.items()
    if not _is_list(arguments):
        raise UsageError(f"{name}: {kind!r} has no list behind it", next_step='write {"uniform": [0, 1]}')
    try:
        distribution = Distribution(kind, tuple(map(_plain, arguments)))
    except UsageError as error:
        raise UsageError(f"{name}: {error}", next_step=error.next_step) from error
    if distribution.kind == "choice":
        _check_values(distribution.arguments, name)
    return distribution


def _check_values(values: Iterable[Any], name: str) -> None:
    places: dict[str, int] = {}
    for place, value in enumerate(values, 1):
        identity = check_value(value, name)
        if identity in places:
            raise UsageError(
                f"{name} has {textwrap.shorten(identity, 80)} twice, as its values {places[identity]} and {place}: "
                "cells would be the same",
                next_step="take one of them out",
            )
        places[identity] = place
    if not places:
        raise UsageError(
            f"{name} has no value, so this grid is empty", next_step=f"give {name} a value, or leave it out"
        )


def _written(values: Values) -> Any:
    return {values.kind: list(values.arguments)} if isinstance(values, Distribution) else list(values)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray))


def _plain(value: Any) -> Any:
    """NumPy's arrays and numbers as Python's: `np.logspace(-4, -1, 4)` is what a list of alphas is made with."""
    return value.tolist() if hasattr(value, "tolist") else value
