"""Functions that were submitted to a pool, as its work: each a future for whoever waits, and a run in the ledger."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from cloudrun import runs
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CloudrunError, LedgerError, NotFound
from cloudrun.core.events import Note, Observer
from cloudrun.core.records import RunRecord
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.functions import outcome, outcome_file
from cloudrun.homecoming import end_queued
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.endings import Ending
from cloudrun.plan.retrying import next_step
from cloudrun.plan.scheduling import Backlog
from cloudrun.pooled import PooledUnit
from cloudrun.prepared import Prepared


class RunFuture(Future[Any]):
    """A `concurrent.futures.Future` that knows its run."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger
        self.run_id = ""  # of the run that it is, or will be

    @classmethod
    def of_the_past(cls, ledger: Ledger, run_id: str, value: Any) -> RunFuture:
        """One whose result is there already."""
        future = cls(ledger)
        future.run_id = run_id
        future.set_result(value)
        return future

    @property
    def run(self) -> Run | None:
        """The run as the ledger has it now: its logs, files and times. None until a unit has begun it; the last one
        where it was tried again."""
        with suppress(NotFound):
            return self._ledger.get(self.run_id) if self.run_id else None
        return None


@dataclass(eq=False)
class Call:
    """One function with its arguments. `run` is written down when a unit begins it."""

    future: RunFuture
    plan: Prepared
    run: RunRecord
    tries: int = 1
    is_begun: bool = False  # its run is in the ledger, and waits for another attempt
    is_failed: bool = False  # it is to be tried once more

    def __post_init__(self) -> None:
        self.future.run_id = self.run.run_id


class Calls:
    """`Source` for a pool's standing work; it is never over by itself. `forget` is called with each plan at its end."""

    def __init__(self, ledger: Ledger, observe: Observer, *, retries: int, forget: Callable[[Prepared], None]) -> None:
        self._ledger = ledger
        self._observe = observe
        self._retries = retries
        self._forget = forget
        self._queue: deque[Call] = deque()
        self._running = 0
        self._took_s = 0.0
        self._timed = 0

    def add(self, call: Call) -> None:
        self._queue.append(call)

    def cancel(self) -> None:
        """Those that no unit has come to."""
        for call in self._queue:
            call.future.cancel()

    # -- what the pool asks --------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        while self._queue and self._queue[0].future.cancelled():
            self._drop(self._queue.popleft())
        return Backlog(len(self._queue), self._running, self._took_s / self._timed if self._timed else None)

    def take(self) -> Call:
        self._running += 1
        return self._queue.popleft()

    def stopped(self) -> str:
        return ""

    def is_open(self) -> bool:
        return False

    def is_over(self) -> bool:
        return False

    def carry_out(self, unit: PooledUnit, task: Call) -> None:
        if not task.future.running() and not task.future.set_running_or_notify_cancel():
            return
        if task.is_begun:
            run = runs.execute(unit, task.plan, check=False, run_id=task.run.run_id)
        else:
            run = runs.execute(unit, task.plan, check=False, new=task.run)
        self._settle(task, run)

    def ended(self, task: Call, error: BaseException | None) -> None:
        self._running -= 1
        if task.is_failed:
            self._try_again(task)
        elif error is None:
            self._forget(task.plan)
        elif isinstance(error, CloudrunError):
            self._judge(task, error)
        else:
            self._fail(task, error)
            raise error  # a bug, or the interpreter's end
        if isinstance(error, LedgerError):
            raise error  # where nothing can be written down, nothing more may be started

    def given_up(self, why: str, error: BaseException | None) -> None:  # noqa: ARG002  # the error says it
        self.close(error)

    def close(self, error: BaseException | None) -> None:
        while self._queue:
            call = self._queue.popleft()
            if call.is_begun:
                ending = Ending(RunState.CANCELLED, EndReason.CANCELLED, "no machine was there for another attempt")
                with suppress(CloudrunError):
                    end_queued(self._ledger, call.run.run_id, ending)
            self._fail(call, error or Cancelled(f"the pool ended before {call.run.name} was called"))

    # -- what becomes of a call ----------------------------------------------------------------------------------------

    def _settle(self, call: Call, run: Run) -> None:
        """It is over: tell whoever waits, unless it is to be tried again. In a thread of the unit's, since unpickling
        runs code of the user's."""
        try:
            value = outcome(run)
        except BaseException as error:  # noqa: BLE001  # the function may have raised anything
            call.is_failed = call.tries <= self._retries and run.state is RunState.FAILED
            if not call.is_failed:
                call.future.set_exception(error)
        else:
            self._took_s += run.timings.ship_s + run.timings.run_s + run.timings.pull_s
            self._timed += 1
            call.future.set_result(value)

    def _judge(self, call: Call, error: CloudrunError) -> None:
        """Something else than the function went wrong."""
        try:
            run = self._ledger.get(call.run.run_id)
        except NotFound:
            if isinstance(error, Cancelled) and not call.future.cancelled():  # no unit ever came to it
                self._queue.append(call)
            else:
                self._fail(call, error)
            return
        if run.state is RunState.QUEUED:
            self._once_more(call, error)
        elif is_terminal(run.state) and outcome_file(run) is not None:  # it was over, and only its way home was not
            self._settle(call, run)
            if call.is_failed:
                self._try_again(call)
            else:
                self._forget(call.plan)
        else:
            self._fail(call, error)

    def _once_more(self, call: Call, error: CloudrunError) -> None:
        """Its machine failed it: another one gets it, unless it has taken too many down."""
        ends = [attempt.end_reason for attempt in self._ledger.attempts(call.run.run_id) if attempt.end_reason]
        if ends and next_step(ends, retries=self._retries) == "quarantine":
            why = f"it was there when {len(ends)} machines went down, and is not tried on another"
            end_queued(self._ledger, call.run.run_id, Ending(RunState.FAILED, EndReason.UNIT_LOST, why))
            self._fail(call, error)
            return
        self._observe(Note(f"{call.run.name} ({call.run.run_id}) goes to another machine: {error}", "warning"))
        call.is_begun = True
        self._queue.append(call)

    def _try_again(self, call: Call) -> None:
        call.tries += 1
        call.is_failed = call.is_begun = False
        call.run = replace(runs.new_run(call.plan, SystemClock().now()), cell_key=call.run.cell_key)
        call.future.run_id = call.run.run_id
        self._observe(Note(f"{call.run.name} failed; it is tried again", "warning"))
        self._queue.append(call)

    def _fail(self, call: Call, error: BaseException) -> None:
        self._forget(call.plan)
        if call.future.running() or call.future.set_running_or_notify_cancel():
            call.future.set_exception(error)

    def _drop(self, call: Call) -> None:
        """It was cancelled while it waited: whoever waits for several is told."""
        self._forget(call.plan)
        call.future.set_running_or_notify_cancel()
