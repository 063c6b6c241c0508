"""A pool's work that grows: grids and functions that come one after the other, and take turns while several wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cloudrun.core.errors import LaunchError
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.pooled import PooledUnit
from cloudrun.pools.work import Work
from cloudrun.runs.slots import Turn


class Source(Work, Protocol):
    """Work that is one of several. All but `carry_out` is called by the deciding thread."""

    def check(self) -> None:
        """Called now and then, to see whether it still is this client's."""

    def is_over(self) -> bool:
        """Whether it may be forgotten: nothing of it waits or runs, and nothing comes."""

    def close(self, error: BaseException | None) -> None:
        """It is over, or `error` keeps it from ever being so."""


@dataclass(frozen=True)
class Task:
    source: Source
    task: Any


class Standing:
    """`Work` for a pool that others add to, by `Pool.tell`, until it is shut."""

    def __init__(self) -> None:
        self._sources: deque[Source] = deque()  # the one whose turn it is first
        self._open = True

    def add(self, source: Source) -> None:
        self._sources.append(source)
        self._forget_what_is_over()

    def shut(self) -> None:
        """Nothing is added any more; what waits is still done."""
        self._open = False

    def close(self, error: BaseException | None) -> None:
        """The pool is over: all hear it, also where closing one fails. Raises what the first such one raised."""
        failure: BaseException | None = None
        while self._sources:
            try:
                self._sources.popleft().close(error)
            except BaseException as cause:  # noqa: BLE001
                failure = failure or cause
        if failure is not None:
            raise failure

    def check(self) -> None:
        for source in tuple(self._sources):
            source.check()
        self._forget_what_is_over()

    # -- what the pool asks --------------------------------------------------------------------------------------------

    def is_open(self) -> bool:
        return self._open

    def stopped(self) -> str:
        return ""

    def backlog(self) -> Backlog:
        queued = running = timed = 0
        waiting_s = 0.0
        longest_s: float | None = None
        for source in self._sources:
            one = source.backlog()
            running += one.running
            if source.stopped():
                continue
            queued += one.queued
            if one.expected_s is not None:
                timed += one.queued
                waiting_s += one.queued * one.expected_s
            if one.queued and one.next_s is not None:
                longest_s = max(longest_s or 0.0, one.next_s)
        return Backlog(queued, running, waiting_s / timed if timed else None, longest_s)

    def take(self, beside: Sequence[Task]) -> Task | None:
        for _ in range(len(self._sources)):
            source = self._sources[0]
            self._sources.rotate(-1)
            own = [each.task for each in beside if each.source is source]
            if not source.stopped() and source.backlog().queued and (task := source.take(own)) is not None:
                return Task(source, task)
        return None  # whoever waited has cancelled it

    def begin(self, given: Sequence[tuple[str, Task]]) -> list[Task]:
        begun: dict[int, Task] = {}
        for source in tuple(self._sources):
            places = [place for place, (_, task) in enumerate(given) if task.source is source]
            if places:
                tasks = source.begin([(given[place][0], given[place][1].task) for place in places])
                begun.update((place, Task(source, task)) for place, task in zip(places, tasks, strict=True))
        return [begun.get(place, task) for place, (_, task) in enumerate(given)]

    def carry_out(self, unit: PooledUnit, task: Task, turn: Turn) -> None:
        task.source.carry_out(unit, task.task, turn)

    def ended(self, task: Task, error: BaseException | None) -> None:
        task.source.ended(task.task, error)
        self._forget_what_is_over()

    def given_up(self, why: str, error: BaseException | None) -> None:
        """Whoever waits learns it; what is added later may fare better."""
        if error is None or str(error) not in why:  # an earlier one, which did not end it
            failure = LaunchError(why or "no machine could be had", next_step="cloudrun units, then try again")
            failure.__cause__ = error
            error = failure
        for source in tuple(self._sources):
            if source.backlog().queued and not source.stopped():
                source.given_up(why, error)
        self._forget_what_is_over()

    def _forget_what_is_over(self) -> None:
        for source in [each for each in self._sources if each.is_over()]:
            self._sources.remove(source)
            source.close(None)
