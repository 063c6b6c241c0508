"""Draws cells from tables of lists and distributions: the same ones for a seed, on every computer.

Of Python's generator only `random()` is used, the one method that never changes between versions. What the C library's
logarithms and cosines say in the last bit differs between computers, so what went through one is rounded to
nine digits. A longer sample of the same seed begins with the shorter one: what was computed for that need not be again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

from cloudrun.core.errors import UsageError

Draw = Callable[[Random], float]


@dataclass(frozen=True)
class Distribution:
    """What a parameter is drawn from, as it is written: {"loguniform": [1e-4, 1e-1]}.

    uniform [low, high]     every number as likely as any other; low < high
    loguniform [low, high]  every order of magnitude as likely as any other; 0 < low < high
    normal [mean, deviation]
    randint [low, high]     integers, both ends among them
    choice [...]            one of these values
    """

    kind: str
    arguments: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Raises UsageError for a kind that is none, and arguments that do not fit it."""
        if self.kind not in KINDS:
            raise UsageError(
                f"{self.kind!r} is no distribution", next_step=f"use {', '.join(KINDS)}; or [{{...}}] for a value"
            )
        if self.kind == "choice":
            fits = bool(self.arguments)
        else:
            expected = int if self.kind == "randint" else (int, float)
            fits = len(self.arguments) == 2 and all(
                isinstance(each, expected) and not isinstance(each, bool) and _is_finite(each)
                for each in self.arguments
            )
            fits = fits and _ordered(self.kind, *self.arguments)
        if not fits:
            raise UsageError(
                f"{self.kind} cannot have {list(self.arguments)}",
                next_step=f'write {{"{self.kind}": {KINDS[self.kind]}}}',
            )

    @property
    def levels(self) -> Sequence[Any] | None:
        """All values it can give; None where there is no end of them."""
        if self.kind == "choice":
            return self.arguments
        return range(self.arguments[0], self.arguments[1] + 1) if self.kind == "randint" else None

    def draw(self, random: Random) -> float:
        """One value; of those without end only."""
        first, second = (float(each) for each in self.arguments)
        if self.kind == "uniform":
            return _between(first, first + (second - first) * random.random(), second)
        if self.kind == "loguniform":
            low, high = math.log(first), math.log(second)
            return _between(first, _nine_digits(math.exp(low + (high - low) * random.random())), second)
        radius, angle = math.sqrt(-2 * math.log(1 - random.random())), 2 * math.pi * random.random()
        return first + second * _nine_digits(radius * math.cos(angle))  # Box and Muller, 1958


KINDS = {
    "uniform": "[low, high] with low < high",
    "loguniform": "[low, high] with 0 < low < high",
    "normal": "[mean, deviation] with a deviation above 0",
    "randint": "[low, high], integers with low <= high",
    "choice": "[value, value, ...]",
}
Values = tuple[Any, ...] | Distribution


def levels(values: Values) -> Sequence[Any] | None:
    """All the values that a parameter of a table can have; None where there is no end of them."""
    return values.levels if isinstance(values, Distribution) else values


def count(table: Mapping[str, Values]) -> int | None:
    """How many cells a table has; None where there is no end of them."""
    finite = [levels(values) for values in table.values()]
    return None if None in finite else math.prod(_length(each) for each in finite if each is not None)


def draw(tables: Sequence[Mapping[str, Values]], sample: int, seed: int) -> Iterator[dict[str, Any]]:
    """`sample` cells; fewer where there are no more. Each is from one of the tables, all of them as likely.

    A table that has an end gives none of its cells twice, and is left out once it has given all.
    """
    random = Random(seed)  # noqa: S311 - to be repeated, not to be kept secret
    return islice(_draw_all(tables, random), sample)


def _draw_all(tables: Sequence[Mapping[str, Values]], random: Random) -> Iterator[dict[str, Any]]:
    left = [_draw_from(table, random) for table in tables]
    while left:
        chosen = _below(len(left), random)
        try:
            yield next(left[chosen])
        except StopIteration:
            del left[chosen]


def _draw_from(table: Mapping[str, Values], random: Random) -> Iterator[dict[str, Any]]:
    cells = count(table)
    if cells is not None:
        for number in _shuffled(cells, random):
            yield cell_at(table, number)
    while cells is None:
        yield {name: _one(values, random) for name, values in table.items()}


def _one(values: Values, random: Random) -> Any:
    finite = levels(values)
    if finite is not None:
        return finite[_below(_length(finite), random)]
    assert isinstance(values, Distribution)  # noqa: S101 - a list has an end
    return values.draw(random)


def cell_at(table: Mapping[str, Values], number: int) -> dict[str, Any]:
    """The cell of that number of a table that has an end; the last parameter changes fastest."""
    cell: dict[str, Any] = {}
    for name in reversed(list(table)):
        finite = levels(table[name]) or ()
        number, place = divmod(number, _length(finite))
        cell[name] = finite[place]
    return dict(reversed(cell.items()))


def _shuffled(numbers: int, random: Random) -> Iterator[int]:
    """Each of 0 .. numbers - 1 once: the shuffle of Fisher and Yates, which here keeps only what it has moved."""
    moved: dict[int, int] = {}
    last = numbers - 1
    while last >= 0:
        chosen = _below(last + 1, random)
        yield moved.get(chosen, chosen)
        moved[chosen] = moved.pop(last, last)
        last -= 1


def _below(end: int, random: Random) -> int:
    """One of 0 .. end - 1, however many. With 53 bits to spare, none is more likely than another by 2^-53 of that."""
    bits, number = 0, 0
    while bits < end.bit_length() + 53:
        bits, number = bits + 53, number << 53 | int(random.random() * (1 << 53))
    return number % end


def _length(values: Sequence[Any]) -> int:
    """As len(), which a range of more than 2^63 numbers does not have."""
    return values.stop - values.start if isinstance(values, range) else len(values)


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond all floats
        return False


def _ordered(kind: str, first: float, second: float) -> bool:
    if kind == "normal":
        return second > 0 and _is_finite(abs(first) + 9 * second)  # 53 bits never lead further from the mean than 8.6
    if kind == "randint":
        return first <= second
    return first < second and (kind == "uniform" or first > 0) and math.isfinite(float(second) - float(first))


def _between(low: float, value: float, high: float) -> float:
    return min(max(low, value), high)


def _nine_digits(value: float) -> float:
    return float(f"{value:.9g}")
