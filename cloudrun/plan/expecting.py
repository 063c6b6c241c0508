"""How long a cell will take, told from cells of the same script that have run, so that the longest can go first.

A cell with parameters that have been timed takes what it took. For any other, each value of a parameter makes all cells
so many times slower or faster: log(seconds) = mean + the sum of one effect a parameter, fitted by going round the
parameters (backfitting, a Gauss-Seidel iteration for least squares). A number that was never tried has the effect of
the nearest one that was, another value that was never tried has none.
"""

from __future__ import annotations

import json
import math
import sys
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

ROUNDS = 10
_LEAST_S = 1e-3  # what is quicker than that is as good as nothing, and has a logarithm
_SHRINK = 0.5  # an effect seen n times counts n / (n + 0.5): one odd timing is not believed whole


class Expectation:
    """Seconds by parameters. Without history it expects nothing: None."""

    def __init__(self, history: Iterable[tuple[Mapping[str, Any], float]]) -> None:
        """`history`: parameters and seconds of cells that ended well. Seconds that none can be do not count."""
        timed: dict[str, list[float]] = defaultdict(list)
        rows: list[tuple[dict[str, str], float]] = []
        for params, seconds in history:
            if not 0 <= seconds < math.inf:
                continue
            timed[_text(params)].append(seconds)
            rows.append(({name: _text(value) for name, value in params.items()}, math.log(max(seconds, _LEAST_S))))
        self._timed = {key: sum(each) / len(each) for key, each in timed.items()}
        self.mean_s = sum(map(sum, timed.values())) / len(rows) if rows else None
        self._mean_log = sum(log for _, log in rows) / len(rows) if rows else 0.0
        self._effects = _fitted(rows, self._mean_log)
        self._numbers = {name: _numbers(effects) for name, effects in self._effects.items()}

    def seconds(self, params: Mapping[str, Any]) -> float | None:
        if self.mean_s is None:
            return None
        known = self._timed.get(_text(params))
        if known is not None:
            return known
        return math.exp(self._mean_log + sum(self._effect(name, value) for name, value in params.items()))

    def _effect(self, name: str, value: Any) -> float:
        effects = self._effects.get(name)
        if effects is None:
            return 0.0
        found = effects.get(_text(value))
        if found is None and _is_number(value):
            found = _nearest(self._numbers[name], float(value))
        return found or 0.0


def order(cells: Iterable[tuple[int, Mapping[str, Any]]], expectation: Expectation) -> list[int]:
    """The numbers of the cells, longest expected first, and as they come where nothing or the same is expected.

    `cells`: number and parameters. List scheduling in this order ends at most 4/3 as late as the best there is
    (Graham 1969), in any other at most twice.
    """
    expected = [(-(expectation.seconds(params) or 0.0), number) for number, params in cells]
    expected.sort(key=lambda pair: pair[0])  # stable
    return [number for _, number in expected]


def _fitted(rows: Sequence[tuple[dict[str, str], float]], mean: float) -> dict[str, dict[str, float]]:
    effects: dict[str, dict[str, float]] = defaultdict(dict)
    for params, _ in rows:
        for name, value in params.items():
            effects[name][value] = 0.0
    rests = [log - mean for _, log in rows]  # what the effects so far do not explain
    for _ in range(ROUNDS):
        for name, by_value in effects.items():
            if len(by_value) < 2:
                continue
            sums: dict[str, float] = defaultdict(float)
            counts: dict[str, int] = defaultdict(int)
            for (params, _), rest in zip(rows, rests, strict=True):
                if name in params:
                    sums[params[name]] += rest
                    counts[params[name]] += 1
            change = {
                value: (total + counts[value] * by_value[value]) / (counts[value] + _SHRINK) - by_value[value]
                for value, total in sums.items()
            }
            for value, more in change.items():
                by_value[value] += more
            rests = [
                rest - change.get(params.get(name, ""), 0.0) for (params, _), rest in zip(rows, rests, strict=True)
            ]
    return dict(effects)


def _numbers(effects: Mapping[str, float]) -> list[tuple[float, float]]:
    """(value, effect) of those values that are numbers, sorted."""
    parsed = ((json.loads(value), effect) for value, effect in effects.items())
    return sorted((float(value), effect) for value, effect in parsed if _is_number(value))


def _nearest(sorted_effects: Sequence[tuple[float, float]], value: float) -> float | None:
    if not sorted_effects:
        return None
    at = bisect_left(sorted_effects, (value, -math.inf))
    return min(sorted_effects[max(0, at - 1) : at + 1], key=lambda pair: abs(pair[0] - value))[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
