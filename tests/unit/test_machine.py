"""A machine that takes another's place, and whoever ends the work meanwhile."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import Cancelled, Interrupted
from cloudrun.core.records import RunRecord
from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Ledger
from cloudrun.runs.machine import Machine
from cloudrun.units.unit import OpenUnit
from tests.fakes import RUN, Ec2, ManualClock, begun, open_unit


def interrupted_once(
    ledger: Ledger, clock: ManualClock, unit: Any, *_: object, run_id: str | None = None, **__: object
) -> Any:
    if run_id is None:
        begun(ledger, clock)
        ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=())
        error = Interrupted("taken back")
        error.run_id = RUN
        raise error
    ledger.begin_attempt(run_id, unit.instance_id, clock.now())
    return ledger.get(run_id)


def machine_of(ledger: Ledger, clock: ManualClock, ec2: Ec2) -> Machine:
    return Machine(
        lambda: open_unit(ledger, clock, ec2), lambda: cast("Any", pytest.fail("another machine was launched"))
    )


def test_a_signal_while_a_lost_machine_is_closed_is_not_forgotten(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = Ec2()
    machine = machine_of(ledger, clock, ec2)
    monkeypatch.setattr("cloudrun.runs.machine.dispatch.execute", lambda *words, **keywords: interrupted_once(
        ledger, clock, *words, **{name: value for name, value in keywords.items() if name != "check"}))  # fmt: skip
    with machine:
        close = machine.unit.close

        def signalled() -> None:
            machine.unit.cancel()
            close()

        machine.unit.close = signalled  # type: ignore[method-assign]
        with pytest.raises(Cancelled):
            machine.carry_through(cast("Any", None))
    assert ledger.run(RUN).state is RunState.LOST


def test_a_block_that_fails_while_another_machine_comes_starts_nothing_on_it(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = Ec2()
    on_its_way, failed = threading.Event(), threading.Event()

    def again() -> Any:
        on_its_way.set()
        failed.wait(120)
        first.cancelled.clear()  # it stands for another machine, which nobody has told to stop
        return first

    machine = Machine(lambda: open_unit(ledger, clock, ec2), again)
    monkeypatch.setattr("cloudrun.runs.machine.dispatch.execute", lambda *words, **keywords: interrupted_once(
        ledger, clock, *words, **{name: value for name, value in keywords.items() if name != "check"}))  # fmt: skip
    raised: list[BaseException] = []

    def carry() -> None:
        try:
            machine.carry_through(cast("Any", None))
        except BaseException as error:  # noqa: BLE001
            raised.append(error)

    with machine:
        first = machine.unit
        thread = threading.Thread(target=carry)
        thread.start()
        assert on_its_way.wait(120)
        machine.cancel()
        failed.set()
        thread.join(120)
    assert [type(error) for error in raised] == [Cancelled]
    assert ledger.run(RUN).state is RunState.LOST


def test_what_a_machine_that_was_taken_back_has_left_in_a_bucket_goes_with_it(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the runs that are home: one that goes on elsewhere may still need its own."""
    deleted: list[str] = []
    ec2, storage = Ec2(), SimpleNamespace(delete_prefix=lambda bucket, prefix: deleted.append(prefix))

    def first() -> OpenUnit:
        unit = open_unit(ledger, clock, ec2)
        unit.cloud.storage = lambda: storage  # type: ignore[misc, assignment, method-assign]
        ledger.add_run(RunRecord("r-0", "home", "train.py", RunState.QUEUED, clock.now()))
        ledger.begin_attempt("r-0", "i-l-1", clock.now(), store="s3://bucket/r-0.1/")
        ledger.move_run("r-0", RunState.FAILED, reason=EndReason.SHIP_FAILED)
        unit.run_ids += ["r-0", RUN]
        return unit

    class Enough(Exception): ...

    def again() -> OpenUnit:
        raise Enough

    machine = Machine(first, again)
    monkeypatch.setattr("cloudrun.runs.machine.dispatch.execute", lambda *words, **keywords: interrupted_once(
        ledger, clock, *words, **{name: value for name, value in keywords.items() if name != "check"}))  # fmt: skip
    machine.unit = first()
    with pytest.raises(Enough):
        machine.carry_through(cast("Any", None))
    assert deleted == ["r-0.1/"]
