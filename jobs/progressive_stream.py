"""A CSV stream in blocks of rows, and its polynomial terms as the columns that scikit-learn's FeatureHasher gives them.

Terms are called as PolynomialFeatures calls them: `x1`, `x1^2`, `x1 x2`; a dummy is `colour=red`, and `colour=red x1`
its interaction with a number.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from sklearn.feature_extraction import FeatureHasher

Term = tuple[str, ...]  # variables in order, one that is squared twice


class NoSuchColumn(Exception):
    """A variable that the file's header doesn't have."""


class BadData(Exception):
    """What a file holds can't be read as asked; says the row, counted from 1 below the header, blank lines not."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows. All arrays have one value a row."""

    target: np.ndarray  # 0.0 or 1.0
    numbers: Mapping[str, np.ndarray]  # float64, finite
    categories: Mapping[str, np.ndarray]  # texts


def blocks(path: Path, target: str, numbers: Sequence[str], categories: Sequence[str], rows: int) -> Iterator[Block]:
    """The file in blocks of `rows` (the last may be shorter), of which one at a time is in memory.

    A line is a row, blank ones are skipped. Raises OSError, NoSuchColumn and BadData.
    """
    with path.open(encoding="utf-8-sig") as stream:
        try:
            lines = filter(str.strip, stream)
            header = [name.strip() for name in next(csv.reader(lines), ())]
            table = _Table(path, header, [target, *numbers], categories)
            while chunk := list(itertools.islice(lines, rows)):
                values, texts = table.parse(chunk)
                yield Block(values[0], dict(zip(numbers, values[1:], strict=True)), texts)
        except UnicodeDecodeError as error:
            raise BadData(f"{path} is no UTF-8 text: {error.reason}") from None
        except csv.Error as error:
            raise BadData(f"{path} is no CSV: {error}") from None
    if not table.rows:
        raise BadData(f"{path} has no rows below its header")


class _Table:
    def __init__(self, path: Path, header: list[str], numbers: list[str], categories: Sequence[str]) -> None:
        if not header:
            raise BadData(f"{path} is empty; its first line should name the columns")
        for name in (*numbers, *categories):
            if header.count(name) != 1:
                times = "twice" if name in header else "not"
                raise NoSuchColumn(f"{name!r} is {times} among the columns of {path}: {', '.join(header)}")
        self.rows = 0  # parsed so far
        self._path = path
        self._width = len(header)
        self._numbers = {name: header.index(name) for name in numbers}
        self._categories = {name: header.index(name) for name in categories}

    def parse(self, lines: list[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Numbers, (variables, rows) with the target first, and texts by variable."""
        if set(map(str.count, lines, itertools.repeat(","))) != {self._width - 1}:
            self._complain(lines)  # unless the further commas are inside quotes
        try:
            values = np.loadtxt(
                lines, delimiter=",", quotechar='"', comments=None, usecols=list(self._numbers.values()), ndmin=2
            ).T
        except ValueError as error:
            self._complain(lines)
            raise BadData(f"{self._path}, below row {self.rows}: {error}") from None
        if not np.isfinite(values).all() or not np.isin(values[0], (0.0, 1.0)).all():
            self._complain(lines)
        texts = {}
        if self._categories:
            columns = list(zip(*csv.reader(lines), strict=True))
            texts = {name: np.array(columns[place]) for name, place in self._categories.items()}
        self.rows += len(lines)
        return values, texts

    def _complain(self, lines: list[str]) -> None:
        """Raises BadData for the first row that is wrong; slow, and so only where something is."""
        target = next(iter(self._numbers))
        for number, row in enumerate(csv.reader(lines), start=self.rows + 1):
            where = f"{self._path}, row {number}"
            if len(row) != self._width:
                raise BadData(f"{where}: {len(row)} values in {self._width} columns")
            for name, place in self._numbers.items():
                value = _number(row[place])
                if not math.isfinite(value):
                    hint = "" if name == target else "; if it is a category, say so with --categorical"
                    raise BadData(f"{where}: {name} is {row[place].strip()!r}, which is no finite number{hint}")
                if name == target and value not in (0.0, 1.0):
                    raise BadData(f"{where}: {name} is {row[place].strip()}, where 0 or 1 is what can be learned")


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def terms(variables: Sequence[str], categories: Sequence[str], degree: int) -> list[Term]:
    """All products of 1 to `degree` variables, in PolynomialFeatures' order.

    A category is in a term at most once: a dummy's square is the dummy, and of one variable's dummies only one is 1.
    """
    return [
        term
        for size in range(1, degree + 1)
        for term in itertools.combinations_with_replacement(variables, size)
        if all(term.count(name) == 1 for name in categories if name in term)
    ]


def term_name(factors: Sequence[str]) -> str:
    """`x1^2 x2` for `x1`, `x1`, `x2`."""
    powers = {factor: factors.count(factor) for factor in factors}
    return " ".join(factor if power == 1 else f"{factor}^{power}" for factor, power in powers.items())


class HashedSpace:
    """Rows as sparse vectors of the columns that were ever seen, of the 2^20 or so that names are hashed to.

    A column that was never seen has only zeros, and so has its coefficient: leaving such columns out changes no score.
    Those that are seen get places in the order in which they come; `columns` says which column has which place.
    Names that share a column are added up in it, with FeatureHasher's signs.
    """

    def __init__(self, variables: Sequence[str], categories: Sequence[str], degree: int, n_features: int) -> None:
        self.n_features = n_features
        self.columns = np.empty(0, np.int64)  # by place
        self.seen: dict[Term, tuple[int, float]] = {}  # factors (dummies in full) -> column and sign
        self._categories = frozenset(categories)
        self._terms = terms(variables, categories, degree)
        self._hasher = FeatureHasher(n_features, input_type="pair")
        self._places = np.zeros(n_features, np.int32)  # by column, from 1; memory is used only where columns are seen

    def rows(self, block: Block) -> csr_array:
        """Shape (rows, columns seen so far). A row's values are in the order of their columns, as FeatureHasher's are,
        so that sums over them are the same to the last bit.
        """
        shape = (len(block.target), len(self._terms))
        columns, values = np.empty(shape, np.int32), np.empty(shape)
        dummies = {name: np.unique(texts, return_inverse=True) for name, texts in block.categories.items()}
        for place, term in enumerate(self._terms):
            columns[:, place], values[:, place] = self._hashed(term, block, dummies)
        there = values != 0  # FeatureHasher leaves zeros out
        starts = np.concatenate(([0], there.sum(axis=1).cumsum()), dtype=np.int32)
        hashed = csr_array((values[there], columns[there], starts), shape=(len(block.target), self.n_features))
        hashed.sum_duplicates()
        places = self._placed(hashed.indices)
        return csr_array((hashed.data, places, hashed.indptr), shape=(len(block.target), len(self.columns)))

    def _hashed(
        self, term: Term, block: Block, dummies: Mapping[str, tuple[np.ndarray, np.ndarray]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of one term: each row's column, and its value there."""
        product = np.ones(len(block.target))
        codes = np.zeros(len(block.target), np.int64)  # which combination of categories a row has
        choices: list[list[str]] = []
        for name in term:
            if name in self._categories:
                texts, code = dummies[name]
                codes = codes * len(texts) + code
                choices.append([f"{name}={text}" for text in texts.tolist()])
            else:
                with np.errstate(over="ignore"):
                    product = product * block.numbers[name]
                choices.append([name])
        if not np.isfinite(product).all():
            raise BadData(f"{term_name(term)} is too large for a number in some row; scale the columns")
        present, inverse = np.unique(codes, return_inverse=True) if self._categories.intersection(term) else ([0], 0)
        numbers = zip(
            *(each.tolist() for each in np.unravel_index(present, [len(each) for each in choices])), strict=True
        )
        columns, signs = self._look_up([tuple(map(list.__getitem__, choices, each)) for each in numbers])
        return columns[inverse], product * signs[inverse]

    def _look_up(self, combinations: Sequence[Term]) -> tuple[np.ndarray, np.ndarray]:
        """Column and sign of each."""
        if new := [factors for factors in combinations if factors not in self.seen]:
            hashed = self._hasher.transform([(term_name(factors), 1.0)] for factors in new)
            self.seen.update(zip(new, zip(hashed.indices.tolist(), hashed.data.tolist(), strict=True), strict=True))
        columns, signs = zip(*(self.seen[factors] for factors in combinations), strict=True)
        return np.array(columns), np.array(signs)

    def _placed(self, columns: np.ndarray) -> np.ndarray:
        new = np.unique(columns[self._places[columns] == 0])
        self._places[new] = len(self.columns) + 1 + np.arange(len(new))
        self.columns = np.concatenate((self.columns, new))
        return self._places[columns] - 1
