"""Calls as a pool's work: which of them count, and who is told what when the pool ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import QuotaError
from cloudrun.core.events import Event, Note
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.functions.calls import Call, Calls, RunFuture
from cloudrun.ledger import Ledger
from cloudrun.runs.slots import Recalled, Slots, Turn


@dataclass
class Told:
    calls: Calls
    ledger: Ledger
    said: list[Event]
    forgotten: list[str]

    def add(self, run_id: str, *, is_begun: bool = False) -> RunFuture:
        parcel: Any = SimpleNamespace(name=f"f of {run_id}")
        future = RunFuture(self.ledger, run_id)
        self.calls.add(Call(future, parcel, datetime.now(UTC), is_begun=is_begun))
        return future


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    ledger, said, forgotten = Ledger(tmp_path), list[Event](), list[str]()
    forget = cast("Callable[[Any], None]", lambda parcel: forgotten.append(parcel.name))
    yield Told(Calls(ledger, said.append, retries=0, forget=forget), ledger, said, forgotten)
    ledger.close()


def test_what_was_cancelled_while_it_waited_is_no_work_wherever_it_stood_in_the_queue(told: Told) -> None:
    futures = [told.add(f"r-{number}") for number in range(4)]
    assert told.calls.backlog().queued == 4
    assert all(futures[number].cancel() for number in (1, 3))
    assert told.calls.backlog().queued == 2
    assert told.forgotten == ["f of r-1", "f of r-3"]
    assert [told.calls.take(()).future for _ in range(2)] == [futures[0], futures[2]]
    assert told.calls.backlog().queued == 0


def test_one_that_was_cancelled_before_it_was_added_is_no_work_either(told: Told) -> None:
    future = RunFuture(told.ledger, "r-1")
    assert future.cancel()
    told.calls.add(Call(future, cast("Any", SimpleNamespace(name="f")), datetime.now(UTC)))
    assert told.calls.backlog().queued == 0


def test_at_the_end_all_learn_the_first_cause_whatever_else_goes_wrong(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    told.ledger.add_run(RunRecord("r-1", "f", "called.py", RunState.QUEUED, datetime.now(UTC)))
    futures = [told.add("r-1", is_begun=True), told.add("r-2")]

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(told.ledger, "attempts", full)
    first = QuotaError("VcpuLimitExceeded")
    told.calls.close(first)
    assert [future.exception(0) for future in futures] == [first, first]
    assert [event.text for event in told.said if isinstance(event, Note)] == [
        "r-1 is left as it was: no space left on device"
    ]


def test_one_that_waits_for_a_slot_can_still_be_cancelled_and_one_that_is_sent_back_is_the_next(told: Told) -> None:
    first, second = told.add("r-1"), told.add("r-2")
    call = told.calls.take(())
    slots = Slots(1)
    Turn(slots).take()
    slots.recall()
    with pytest.raises(Recalled) as raised:
        told.calls.carry_out(cast("Any", SimpleNamespace(check_cancelled=lambda: None)), call, Turn(slots))
    assert not first.running()
    told.calls.ended(call, raised.value)
    assert told.calls.take(()).future is first
    assert told.said == []
    told.calls.ended(call, raised.value)
    assert first.cancel()
    assert told.calls.backlog().queued == 1
    assert told.calls.take(()).future is second
