"""Ctrl-C wherever the main thread goes into a block of the ledger's, or out of it: the turn is never left taken."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from cloudrun.ledger import Ledger, database, store
from cloudrun.units.lifeline import LIFELINE

WAIT_S = 20.0
FILES = (database.__file__, store.__file__, contextlib.__file__)


class CtrlC:
    """Pressed once, at the `number`th step of what begins and ends blocks."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename not in FILES or frame.f_code.co_name == "together":
            return None
        frame.f_trace_opcodes = frame.f_code.co_filename == contextlib.__file__
        self._step()
        return self._of_frame

    def _of_frame(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == ("opcode" if frame.f_trace_opcodes else "line"):
            self._step()
        return self._of_frame

    def _step(self) -> None:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def is_free() -> bool:
    """Whether another thread may have its turn."""
    got: list[bool] = []

    def take() -> None:
        got.append(database._turn.acquire(timeout=WAIT_S))
        if got[0]:
            database._turn.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join()
    return got[0]


def pressed(act: Callable[[], object], number: int) -> tuple[BaseException, bool]:
    """Ctrl-C at that step of `act`. Returns what came of it, and whether it was before the end."""
    ctrl_c, before = CtrlC(number), sys.gettrace()
    try:
        sys.settrace(ctrl_c)
        try:
            act()
        finally:
            sys.settrace(before)
        give_up = time.monotonic() + WAIT_S
        while ctrl_c.left <= 0 and time.monotonic() < give_up:
            time.sleep(0.001)  # it comes late
    except KeyboardInterrupt as error:
        return error, True
    return AssertionError("it was never raised"), ctrl_c.left <= 0


@pytest.fixture
def handled() -> Any:
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, LIFELINE._on_signal)
    LIFELINE._before[signal.SIGINT] = signal.default_int_handler
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["a read", "a block"])
def test_wherever_it_comes_others_get_their_turn(
    ledger: Ledger, make: SimpleNamespace, handled: None, how: str
) -> None:
    runs = iter(range(10_000))

    def write() -> None:
        ledger.add_run(make.run(f"run-{next(runs)}"))

    def block() -> None:
        with ledger.together():
            write()

    act = {"a read": ledger.runs, "a block": block}[how]
    act()
    kept, number = list[BaseException](), 1
    while True:
        error, came = pressed(act, number)
        if not came:
            break
        kept.append(error)  # with its frames, and all that these refer to
        assert isinstance(error, KeyboardInterrupt), number
        assert is_free(), number
        number += 1
    assert len(kept) > 50
    write()
