"""Whose turn it is among the cells of a grid that wait: longest expected first, or by number where nothing is known."""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass

from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
from cloudrun.plan.expecting import Expectation

AHEAD = 500  # cells that are read from the ledger at once


@dataclass(frozen=True)
class Cell:
    """One combination on its way. `on_unit`: the attempt runs already, begun by a client that is dead. `attempt`: the
    number of the one that was begun here, 0 before that."""

    number: int
    run: RunRecord
    on_unit: bool = False
    attempt: int = 0
    expected_s: float | None = None


class Turns:
    """The queue is in the ledger; in memory is an order, of two numbers a cell, and the next few cells."""

    def __init__(self, ledger: Ledger, grid_id: str, expectation: Expectation) -> None:
        self._ledger = ledger
        self._grid_id = grid_id
        self._expectation = expectation
        self._ready: deque[Cell] = deque()
        self._read_to = -1
        self._order: deque[tuple[float, int]] = deque()  # (seconds, number), where something is expected
        self._expected_s = 0.0  # of all that wait
        self._is_read = False  # all that waits is in memory
        self.queued = 0
        self.gone = 0  # that waited when they were counted, and were ended by others before their turn

    @property
    def expected_s(self) -> float | None:
        """The mean of what a waiting cell takes; None where nobody knows, or none waits."""
        return self._expected_s / self.queued if self._expectation.mean_s is not None and self.queued else None

    @property
    def next_s(self) -> float | None:
        """What the cell takes whose turn it is."""
        if self._expectation.mean_s is None:
            return None
        return self._ready[0].expected_s if self._ready else self._order[0][0] if self._order else None

    def each_s(self) -> list[float] | None:
        """What each that waits takes, those first whose turn is next; None where nobody knows."""
        if self._expectation.mean_s is None:
            return None
        return [cell.expected_s or 0.0 for cell in self._ready] + [seconds for seconds, _ in self._order]

    def refresh(self) -> None:
        """Count anew what waits: something was queued by others."""
        self._ready.clear()
        self._read_to = -1
        self._is_read = False
        self._expected_s = 0.0
        if self._expectation.mean_s is None:
            self.queued = self._ledger.counts(self._grid_id)[RunState.QUEUED]
            return
        expected = [(self._expectation.seconds(run.params) or 0.0, number) for number, run in self._waiting()]
        expected.sort(key=lambda pair: -pair[0])  # stable: by number where the same is expected
        self._order = deque(expected)
        self.queued = len(expected)
        self._expected_s = sum(seconds for seconds, _ in expected)

    def next(self, leaving: Container[int] = ()) -> Cell | None:
        """The first whose number is not among `leaving`. None where there is none: another process has ended what did
        wait, or the rest has to wait for another moment."""
        if all(cell.number in leaving for cell in self._ready):
            self._read()
        for place, cell in enumerate(self._ready):
            if cell.number not in leaving:
                del self._ready[place]
                self.queued -= 1
                self._expected_s -= cell.expected_s or 0.0
                return cell
        if self._is_read:
            self.gone += self.queued - len(self._ready)
            self.queued = len(self._ready)
        return None

    def put_back(self, cell: Cell) -> None:
        """It waits again, and has waited the longest."""
        self._ready.appendleft(cell)
        self.queued += 1
        self._expected_s += cell.expected_s or 0.0

    def _read(self) -> None:
        if self._expectation.mean_s is None:
            found = self._ledger.queued_cells(self._grid_id, AHEAD, after=self._read_to)
            self._ready.extend(Cell(number, run) for number, run in found)
            self._read_to = found[-1][0] if found else self._read_to
            self._is_read = not found
            return
        before = len(self._ready)
        while self._order and len(self._ready) == before:
            following = [self._order.popleft() for _ in range(min(AHEAD, len(self._order)))]
            runs = dict(self._ledger.queued_cells(self._grid_id, AHEAD, numbers=[number for _, number in following]))
            gone_s = sum(seconds for seconds, number in following if number not in runs)
            self.gone += len(following) - len(runs)
            self.queued -= len(following) - len(runs)
            self._expected_s -= gone_s
            self._ready.extend(
                Cell(number, runs[number], expected_s=seconds) for seconds, number in following if number in runs
            )
        self._is_read = not self._order

    def _waiting(self) -> Iterator[tuple[int, RunRecord]]:
        after = -1
        while found := self._ledger.queued_cells(self._grid_id, AHEAD, after=after):
            yield from found
            after = found[-1][0]
