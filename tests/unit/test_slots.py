"""Slots of a unit: so many tasks at a time; others wait there, and are sent back where their turn does not come."""

from __future__ import annotations

from threading import Event, Thread

import pytest

from cloudrun.core.errors import Cancelled
from cloudrun.runs import slots
from cloudrun.runs.slots import Recalled, Slots, Turn

WAIT_S = 60.0


def waiting(turn: Turn, outcome: list[BaseException | bool]) -> Thread:
    def wait() -> None:
        try:
            outcome.append(turn.take())
        except Recalled as error:
            outcome.append(error)

    thread = Thread(target=wait)
    thread.start()
    return thread


def test_a_task_waits_until_the_one_before_needs_its_slot_no_more() -> None:
    shared, told = Slots(1), Event()
    first, second = Turn(shared, told.set), Turn(shared)
    assert first.take()
    assert first.take(), "it has it already"
    assert not second.take(wait=False)
    outcome: list[BaseException | bool] = []
    thread = waiting(second, outcome)
    first.end()
    thread.join(WAIT_S)
    assert outcome == [True]
    assert told.is_set()
    first.give_back()
    assert not Turn(shared).take(wait=False), "a slot is given back once"


def test_the_slot_of_a_task_that_did_not_end_well_is_free_when_somebody_has_judged_it() -> None:
    shared = Slots(1)
    failed, following = Turn(shared), Turn(shared)
    failed.take()
    assert not following.take(wait=False)
    failed.give_back()
    assert following.take(wait=False)


def test_whoever_waits_on_a_unit_that_begins_nothing_more_is_sent_back() -> None:
    shared = Slots(1)
    Turn(shared).take()
    outcome: list[BaseException | bool] = []
    thread = waiting(Turn(shared), outcome)
    shared.recall()
    thread.join(WAIT_S)
    assert isinstance(outcome[0], Recalled)
    with pytest.raises(Recalled):
        Turn(shared).take()


def test_nobody_waits_long_for_a_task_that_takes_longer_than_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "PATIENCE_S", 0.0)
    shared = Slots(1)
    Turn(shared).take()
    with pytest.raises(Recalled, match="takes longer"):
        Turn(shared).take()


def test_whoever_waits_is_sent_back_where_others_have_a_slot_for_him_and_may_come_again() -> None:
    shared = Slots(1)
    Turn(shared).take()
    outcome: list[BaseException | bool] = []
    thread = waiting(Turn(shared), outcome)
    while not outcome:
        shared.send_back()
        thread.join(0.01)
    assert isinstance(outcome[0], Recalled)
    thread = waiting(Turn(shared), outcome)
    shared.free()
    thread.join(WAIT_S)
    assert outcome[1] is True


def test_what_is_stopped_meanwhile_waits_no_longer() -> None:
    def stopped() -> None:
        raise Cancelled("stopped")

    shared = Slots(1)
    Turn(shared).take()
    with pytest.raises(Cancelled, match="stopped"):
        Turn(shared).take(check=stopped)


def test_a_task_that_is_called_off_has_no_turn_though_there_is_a_slot() -> None:
    turn = Turn(Slots(1))
    turn.unless(lambda: "")
    turn.unless(lambda: "the first three have failed alike")
    with pytest.raises(Recalled, match="the first three"):
        turn.take()
    turn.give_back()


def test_tasks_that_run_there_already_have_their_slots() -> None:
    shared = Slots(1)
    running = [Turn(shared, has_slot=True) for _ in range(2)]
    shared.occupy()
    shared.occupy()
    running[0].end()
    assert not Turn(shared).take(wait=False), "there was one more than there are slots"
    running[1].end()
    assert Turn(shared).take(wait=False)
