"""A pool's work that grows: who is next, who is over, and who learns that no machine will come."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun import process_pool
from cloudrun.core.errors import ConfigError, LaunchError, QuotaError, UsageError
from cloudrun.functions.engine import Engine
from cloudrun.functions.standing import Standing
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.pool import Pool


class Some:
    """Numbered tasks."""

    def __init__(self, count: int, expected_s: float | None = None) -> None:
        self.queue = deque(range(count))
        self.expected_s = expected_s
        self.running = 0
        self.why_stopped = ""
        self.closed: list[BaseException | None] = []
        self.told: BaseException | None = None
        self.taken: BaseException | None = None

    def backlog(self) -> Backlog:
        return Backlog(len(self.queue), self.running, self.expected_s)

    def take(self, beside: Sequence[int]) -> int:
        self.running += 1
        return self.queue.popleft()

    def ended(self, task: int, error: BaseException | None) -> None:
        self.running -= 1

    def begin(self, given: Sequence[tuple[str, int]]) -> list[int]:
        return [task for _, task in given]

    def carry_out(self, unit: Any, task: int, turn: Any) -> None:
        raise AssertionError("there are no units here")

    def stopped(self) -> str:
        return self.why_stopped

    def check(self) -> None:
        if self.taken:
            self.told = self.taken

    def is_open(self) -> bool:
        return False

    def is_over(self) -> bool:
        return not self.running and (not self.queue or bool(self.why_stopped) or self.told is not None)

    def given_up(self, why: str, error: BaseException | None) -> None:
        self.told = error

    def close(self, error: BaseException | None) -> None:
        self.closed.append(error)


def standing(*sources: Some) -> Standing:
    work = Standing()
    for source in sources:
        work.add(source)
    return work


def test_those_that_wait_take_turns() -> None:
    one, two = Some(3), Some(1)
    work = standing(one, two)
    taken = [task for _ in range(5) if (task := work.take(())) is not None]
    assert [(task.source is one, task.task) for task in taken] == [(True, 0), (False, 0), (True, 1), (True, 2)]
    assert work.backlog() == Backlog(0, 4, None)


def test_what_is_stopped_no_longer_waits_and_is_over_with_its_last_task() -> None:
    one, two = Some(3, 2.0), Some(1, 4.0)
    work = standing(one, two)
    assert work.backlog() == Backlog(4, 0, 2.5)
    task = work.take(())
    assert task is not None
    one.why_stopped = "all fail alike"
    assert work.backlog() == Backlog(1, 1, 4.0)
    other = work.take(())
    assert other is not None
    assert other.source is two
    assert one.closed == []
    work.ended(task, None)
    assert one.closed == [None]
    assert two.closed == []


def test_work_that_is_over_from_the_start_is_closed_at_once() -> None:
    nothing = Some(0)
    work = standing(nothing)
    work.close(None)
    assert nothing.closed == [None], "once"


class Broken(Some):
    """One that cannot even be closed."""

    def close(self, error: BaseException | None) -> None:
        raise OSError("no space left on the device")


def test_all_hear_of_the_end_also_where_one_of_them_fails() -> None:
    one, two = Some(1), Some(1)
    over = LaunchError("the pool is over")
    with pytest.raises(OSError, match="no space left"):
        standing(one, Broken(1), two, Broken(1)).close(over)
    assert (one.closed, two.closed) == ([over], [over])


def test_an_engine_that_fails_at_its_end_still_ends_its_works(tmp_path: Path) -> None:
    """Else futures and loops over runs would wait for ever."""
    told: deque[Callable[[], None]] = deque()
    work, late = Some(1), Some(1)
    engine = Engine.__new__(Engine)
    engine.ledger, engine.error = Ledger(tmp_path), None
    engine._lock, engine._done, engine._standing = threading.RLock(), threading.Event(), standing(work)

    def fail() -> None:
        raise OSError("no space left on the device")

    def do_what_was_told() -> None:
        while told:
            told.popleft()()

    told += [fail, lambda: engine._standing.add(late)]
    # Costs cannot be written either: it has no `used`.
    engine._pool = cast("Pool", SimpleNamespace(run=lambda _: None, do_what_was_told=do_what_was_told))
    engine._live(ExitStack())
    engine.wait(0)
    assert str(engine.error) == "no space left on the device"
    assert (work.closed, late.closed) == ([engine.error], [engine.error])
    engine.ledger.close()


def test_whoever_waits_for_a_machine_that_never_comes_learns_why() -> None:
    refused, one = QuotaError("8 vCPUs are all you may have"), Some(1)
    standing(one).given_up(f"no further machine is launched: {refused}", refused)
    assert one.told is refused
    poor = Some(1)
    standing(poor).given_up("the budget does not pay for it", LaunchError("an earlier one"))
    assert isinstance(poor.told, LaunchError)
    assert str(poor.told) == "the budget does not pay for it"
    assert poor.closed == [None]


def test_what_another_process_has_taken_is_over_and_nothing_else() -> None:
    one, two = Some(1), Some(1)
    work = standing(one, two)
    one.taken = LaunchError("another process has it")
    work.check()
    assert (one.closed, two.closed) == ([None], [])


def test_it_is_open_until_it_is_shut() -> None:
    work = standing()
    assert work.is_open()
    work.shut()
    assert not work.is_open()


@pytest.mark.parametrize(
    "given",
    [
        {"units": 0},
        {"units": 2, "max_units": 3},
        {"slots": True},
        {"retries": -1},
        {"budget": "5"},
        {"budget": 0},
        {"budget": float("inf")},
        {"budget": float("nan")},
        {"cpus": 1.5},
        {"on_exit": "keep"},
    ],
    ids=str,
)
def test_a_pool_that_cannot_be_is_refused_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        process_pool(**given)


def test_a_keyword_that_is_none_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no setting unitz"):
        process_pool(project=tmp_path, unitz=4)


def test_a_pool_that_was_shut_before_it_was_used_takes_nothing(tmp_path: Path) -> None:
    pool = process_pool(project=tmp_path)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(len, "")
    assert list(tmp_path.iterdir()) == []
