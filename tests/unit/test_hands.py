"""The threads of a unit in a pool: the next task begins while the one before is on its way home."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import JobFailed, UnitGone
from cloudrun.ledger import Ledger
from cloudrun.pools.hands import Closed, Done, Freed, Hand, HandEvent, Opened
from cloudrun.runs.slots import Recalled, Turn
from tests.fakes import Ec2, ManualClock, launch_one

WAIT_S = 60.0


class Unit:
    instance_id = "i-1"
    begins_jobs = False

    def open(self) -> None: ...

    @contextmanager
    def at_work(self) -> Iterator[None]:
        yield

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def hand(tmp_path: Any) -> Iterator[Hand]:
    ledger = Ledger(tmp_path)
    yield Hand(launch_one(ledger, ManualClock(), Ec2()), 1, 0.1, 0.0, 3600.0)
    ledger.close()


def test_a_slot_has_its_next_task_while_the_one_before_comes_home(hand: Hand) -> None:
    events: SimpleQueue[HandEvent] = SimpleQueue()
    home, begun = Event(), Event()

    def carry_out(_unit: Any, task: str, turn: Turn) -> None:
        turn.take()
        if task == "first":
            turn.end()
            assert home.wait(WAIT_S)
        else:
            begun.set()

    hand.begin(cast("Any", Unit()), carry_out, events.put)
    hand.state = "ready"
    assert isinstance(events.get(timeout=WAIT_S), Opened)
    hand.reserve("first")
    assert hand.view().busy == 1, "before it is given out it has its slot already"
    hand.give("first", "first")
    event = events.get(timeout=WAIT_S)
    assert event == Freed("i-1", "first")
    hand.freed("first")
    assert (hand.view().busy, hand.view().homeward) == (0, 1)

    hand.reserve("second")
    hand.give("second", "second")
    assert begun.wait(WAIT_S), "it waits for the one that is on its way home"
    assert events.get(timeout=WAIT_S) == Done("i-1", "second", None, Turn())
    hand.ended("second", None)
    hand.drain()
    assert events.empty(), "it is not closed while something is on its way home"
    home.set()
    assert events.get(timeout=WAIT_S) == Done("i-1", "first", None, Turn())
    hand.ended("first", None)
    assert (hand.tasks, hand.homeward, hand.view().busy) == ([], [], 0)
    assert isinstance(events.get(timeout=WAIT_S), Closed)


def test_a_task_given_ahead_of_its_turn_begins_when_the_one_before_is_judged(hand: Hand) -> None:
    events: SimpleQueue[HandEvent] = SimpleQueue()
    begun: list[str] = []

    def carry_out(_unit: Any, task: str, turn: Turn) -> None:
        turn.take()
        begun.append(task)
        raise JobFailed(f"{task} failed")

    hand.begin(cast("Any", Unit()), carry_out, events.put)
    assert isinstance(events.get(timeout=WAIT_S), Opened)
    hand.reserve("first")
    hand.give("first", "first")
    hand.give_ahead("second")
    first = events.get(timeout=WAIT_S)
    assert isinstance(first, Done)
    assert begun == ["first"], "it is decided first whether there shall be another"
    hand.ended("first", first.error)
    first.turn.give_back()
    second = events.get(timeout=WAIT_S)
    assert isinstance(second, Done)
    assert begun == ["first", "second"]
    hand.ended("second", second.error)
    hand.drain()
    assert isinstance(events.get(timeout=WAIT_S), Closed)


def test_what_waits_for_its_turn_on_a_unit_that_ends_comes_back_as_it_was(hand: Hand) -> None:
    events: SimpleQueue[HandEvent] = SimpleQueue()
    over = Event()

    def carry_out(_unit: Any, task: str, turn: Turn) -> None:
        turn.take()
        assert task == "first"
        over.wait(WAIT_S)

    hand.begin(cast("Any", Unit()), carry_out, events.put)
    assert isinstance(events.get(timeout=WAIT_S), Opened)
    hand.reserve("first")
    hand.give("first", "first")
    hand.give_ahead("second")
    assert hand.view().busy == 2
    hand.drain()
    second = events.get(timeout=WAIT_S)
    assert isinstance(second, Done)
    assert (second.task, type(second.error)) == ("second", Recalled)
    hand.ended("second", second.error)
    assert hand.view().held_up
    over.set()
    first = events.get(timeout=WAIT_S)
    assert isinstance(first, Done)
    assert (first.task, first.error) == ("first", None)
    hand.ended("first", None)
    assert isinstance(events.get(timeout=WAIT_S), Closed)


def test_a_machine_that_went_before_anything_was_begun_on_it_was_of_no_use(hand: Hand) -> None:
    hand.unit = cast("Any", Unit())
    for task in ("first", "second"):
        hand.reserve(task)
    hand.ended("first", UnitGone("it has gone"))
    assert (hand.worked, hand.useless) == (False, True)
    hand.unit = cast("Any", SimpleNamespace(begins_jobs=True))
    hand.ended("second", UnitGone("it has gone"))
    assert hand.worked
