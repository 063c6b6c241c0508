"""The machine a block of work has at the moment: where the provider takes it back, another one takes its place."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from cloudrun import runs
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError, Interrupted
from cloudrun.core.events import Note, nobody
from cloudrun.homecoming import Homecoming
from cloudrun.ledger import Ledger, Run
from cloudrun.opening import close_behind
from cloudrun.phases import Phases
from cloudrun.plan.endings import interruption
from cloudrun.prepared import Prepared
from cloudrun.units import OpenUnit

ATTEMPTS_MAX = 10  # machines that may be taken back one after the other before a run gives up


class Machine:
    """Opened by `launch` on entering the block, and again after each interruption; closed at the block's end."""

    def __init__(self, launch: Callable[[], OpenUnit], again: Callable[[], OpenUnit] | None = None) -> None:
        self._launch = launch
        self._again = again or launch
        self.unit: OpenUnit

    def __enter__(self) -> Self:
        self.unit = _open(self._launch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        close_behind(self.unit, error)

    def carry_through(self, plan: Prepared, run_id: str | None = None, *, check: bool = False) -> Run:
        """As `runs.execute`, on as many machines as it takes."""
        for left in reversed(range(ATTEMPTS_MAX)):
            try:
                return runs.execute(self.unit, plan, check=check, run_id=run_id)
            except Interrupted as error:
                run_id = error.run_id or run_id
                if run_id is None or not left or self.unit.cancelled.is_set():
                    give_up(self.unit.ledger, run_id, error)
                    raise
                self._replace(run_id, error)
        raise AssertionError("the last attempt returns or raises")

    def _replace(self, run_id: str, error: Interrupted) -> None:
        lost = self.unit
        close_behind(lost, error)
        lost.observe(Note(f"{error}; {run_id} goes on with what it had saved, on another machine", "warning"))
        try:
            self.unit = _open(self._again)
        except BaseException as failure:
            failure.add_note(f"{error}, and no other machine came: {run_id} ends with what it had saved")
            give_up(lost.ledger, run_id, error)
            raise


def _open(launch: Callable[[], OpenUnit]) -> OpenUnit:
    """A machine that was not taken back while it booted."""
    for left in reversed(range(ATTEMPTS_MAX)):
        try:
            return launch()
        except Interrupted:
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def give_up(ledger: Ledger, run_id: str | None, error: Interrupted) -> None:
    """End a run that waits for an attempt that will not be; what it had saved is its outputs."""
    if run_id is None:
        return
    clock, attempts = SystemClock(), ledger.attempts(run_id)
    home = Homecoming(
        ledger,
        ledger.run(run_id),
        "",
        Phases(nobody, clock),
        nobody,
        clock,
        number=len(attempts),
        earlier=attempts[-1].outputs,
    )
    try:
        home.end(interruption(error, started=True))
    except CloudrunError as failure:
        error.add_note(f"the run's end could not be recorded: {failure}")
