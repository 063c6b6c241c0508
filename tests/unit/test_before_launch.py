"""What is said to whoever interrupts a command before it has launched anything."""

from __future__ import annotations

import signal
from contextlib import suppress
from copy import copy

import pytest

from cloudrun.core.errors import Cancelled, UsageError, before_launch, notes_of
from cloudrun.core.events import nobody
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.units.opening import close_behind
from cloudrun.units.rented import RentedUnit
from tests.fakes import Ec2, ManualClock, cloud_of


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SystemExit(143)])
def test_an_interruption_is_told_that_nothing_was_launched(interruption: BaseException) -> None:
    with pytest.raises(type(interruption)) as caught, before_launch():
        raise interruption
    assert caught.value is interruption
    assert caught.value.__notes__ == ["nothing was launched: nothing runs, and nothing is billed"]
    assert caught.value.next_step == "the same command begins again"  # type: ignore[attr-defined]


def loads_by_a_library() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        raise ImportError("it could not be loaded") from error


def test_ctrl_c_that_a_library_swallows_while_it_is_loaded_is_not_lost() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught, before_launch(), suppress(BaseException):
            signal.raise_signal(signal.SIGINT)
        assert caught.value.__notes__ == ["nothing was launched: nothing runs, and nothing is billed"]
        with pytest.raises(KeyboardInterrupt), before_launch():
            loads_by_a_library()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Cancelled("told to stop")])
def test_where_a_machine_goes_before_a_run_was_begun_there_is_none_to_be_shown(
    ledger: Ledger, clock: ManualClock, error: BaseException
) -> None:
    for run_ids, next_step in (([], "the same command begins again"), (["r-1"], "cloudrun show r-1")):
        unit = RentedUnit(cloud_of(Ec2()), ledger, Settings(), nobody, clock)
        unit.run_ids = run_ids
        close_behind(unit, again := copy(error))
        assert again.next_step == next_step  # type: ignore[attr-defined]


def test_a_machine_that_was_to_be_used_again_is_not_said_to_cost_nothing() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, before_launch("i-1"):
        raise KeyboardInterrupt
    (note,) = caught.value.__notes__
    assert "i-1" in note
    assert "nothing is billed" not in note


def test_nor_is_it_where_its_client_was_about_to_take_it(ledger: Ledger, clock: ManualClock) -> None:
    error = KeyboardInterrupt()
    close_behind(RentedUnit(cloud_of(Ec2()), ledger, Settings(), nobody, clock), error, "i-1")
    (note,) = error.__notes__
    assert "i-1" in note
    assert "nothing is billed" not in note


def test_an_error_goes_on_as_it_is() -> None:
    with pytest.raises(UsageError) as caught, before_launch():
        raise UsageError("no")
    assert notes_of(caught.value) == []
