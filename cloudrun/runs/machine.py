"""The machine a block of work has at the moment: where the provider takes it back, another one takes its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from threading import Event
from types import TracebackType
from typing import Self

from cloudrun.core.errors import CloudrunError, Interrupted, JobFailed
from cloudrun.core.events import Note
from cloudrun.core.states import RunState, is_terminal
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.endings import interruption
from cloudrun.runs import datasets, dispatch, pulling
from cloudrun.runs.homecoming import end_queued
from cloudrun.runs.prepared import Prepared
from cloudrun.units.costs import settle
from cloudrun.units.opening import close_behind
from cloudrun.units.unit import OpenUnit

ATTEMPTS_MAX = 10  # machines that may be taken back one after the other before a run gives up


class Machine:
    """Opened by `launch` on entering the block, and again after each interruption; closed at the block's end."""

    def __init__(self, launch: Callable[[], OpenUnit], again: Callable[[], OpenUnit] | None = None) -> None:
        self._launch = launch
        self._again = again or launch
        self._cancelled = Event()
        self.unit: OpenUnit

    def __enter__(self) -> Self:
        self.unit = _open(self._launch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            close_behind(self.unit, error)
        finally:
            if self.unit.run_ids and not self.unit.is_let_go:
                settle(self.unit.ledger, [self.unit.instance_id])
        _clear_stores(self.unit)

    def cancel(self) -> None:
        """Whatever runs on it ends and nothing else is started, also where another machine is on its way."""
        self._cancelled.set()
        self.unit.cancel()

    def carry_through(
        self, plan: Prepared, run_id: str | None = None, *, check: bool = False, detach: bool = False
    ) -> Run:
        """As `dispatch.execute`, or with `detach` as `dispatch.detach`, on as many machines as it takes."""
        act = dispatch.detach if detach else partial(dispatch.execute, check=check)
        for left in reversed(range(ATTEMPTS_MAX)):
            try:
                run = act(self.unit, plan, run_id=run_id)
            except JobFailed as error:
                settle(self.unit.ledger, [self.unit.instance_id])
                error.run = self.unit.ledger.get(error.run.run_id)  # with its cost
                raise
            except Interrupted as error:
                run_id = error.run_id or run_id
                if run_id is None:
                    raise
                run = self.unit.ledger.get(run_id)
                if not is_terminal(run.state):
                    if run.state is not RunState.QUEUED:
                        raise  # another client has it, or the ledger could not be written
                    if not left or self.unit.cancelled.is_set():
                        give_up(self.unit.ledger, run_id, error)
                        raise
                    plan = self._replace(plan, run_id, error)
                    continue
                if check and run.state is not RunState.SUCCEEDED:  # it had ended, and its bucket has it all
                    raise dispatch.job_failed(run) from error
            if detach:
                return run
            settle(self.unit.ledger, [self.unit.instance_id])
            return self.unit.ledger.get(run.run_id)
        raise AssertionError("the last attempt returns or raises")

    def _replace(self, plan: Prepared, run_id: str, error: Interrupted) -> Prepared:
        """Have another machine; returns the plan as it is good for that one."""
        lost = self.unit
        try:
            close_behind(lost, error)
            _clear_stores(lost)
            lost.observe(Note(f"{error}; {run_id} goes on with what it had saved, on another machine", "warning"))
            self._check_cancelled(lost)  # while it was closed, no signal was raised
            self.unit = _open(self._again)
            self._check_cancelled(self.unit)
            return replace(plan, data=datasets.signed_again(plan.data, self.unit.cloud))
        except BaseException as failure:
            failure.add_note(f"{error}, and no other machine came: {run_id} ends with what it had saved")
            give_up(lost.ledger, run_id, error)
            raise

    def _check_cancelled(self, unit: OpenUnit) -> None:
        if self._cancelled.is_set():
            unit.cancel()
        unit.check_cancelled()


def _clear_stores(unit: OpenUnit) -> None:
    """Of a unit that is closed: now nothing on it adds to what its runs, those that are home, have in a bucket."""
    for run_id in unit.run_ids:
        pulling.clear_stores(unit.cloud, unit.ledger, run_id, unit.observe)


def _open(launch: Callable[[], OpenUnit]) -> OpenUnit:
    """A machine that was not taken back while it booted."""
    for left in reversed(range(ATTEMPTS_MAX)):
        try:
            return launch()
        except Interrupted:
            if not left:
                raise
    raise AssertionError("the last attempt returns or raises")


def give_up(ledger: Ledger, run_id: str, error: Interrupted) -> None:
    """End a run that waits for an attempt that will not be; what it had saved is its outputs."""
    try:
        end_queued(ledger, run_id, interruption(error, started=True))
    except CloudrunError as failure:
        error.add_note(f"the run's end could not be recorded: {failure}")
