"""Functions that were submitted to a pool, as its work: each a future for whoever waits, and a run in the ledger."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import Cancelled, CloudrunError, JobFailed, LedgerError, NotFound, UnitGone
from cloudrun.core.events import Note, Observer
from cloudrun.core.ids import new_id
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.functions.packing import Parcel, outcome, outcome_file
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.endings import Ending
from cloudrun.plan.retrying import next_step
from cloudrun.plan.scheduling import Backlog
from cloudrun.pools.pooled import PooledUnit
from cloudrun.runs import dispatch
from cloudrun.runs.homecoming import end_queued
from cloudrun.runs.slots import Recalled, Turn


class RunFuture(Future[Any]):
    """A `concurrent.futures.Future` that knows its run."""

    def __init__(self, ledger: Ledger, run_id: str) -> None:
        super().__init__()
        self._ledger = ledger
        self.run_id = run_id  # of the run that it is, or will be

    @property
    def run(self) -> Run | None:
        """The run as the ledger has it now: its logs, files and times. None until a unit has begun it; the last one
        where it was tried again."""
        with suppress(NotFound):
            return self._ledger.get(self.run_id)
        return None


@dataclass(eq=False)
class Call:
    """Calls of one function that are one run, written down when a unit begins it. `single`: the future gives the value
    of the only one, else a list."""

    future: RunFuture
    parcel: Parcel
    asked_at: datetime
    single: bool = True
    key: str = ""
    is_begun: bool = False  # its run is in the ledger, and waits for another attempt
    is_failed: bool = False  # it is to be tried again, as another run
    took_s: float | None = None
    ends: list[EndReason] = field(default_factory=list)  # of all attempts of its earlier runs


class Calls:
    """`Source` for a pool's standing work, never over by itself. `forget` is called with each parcel at its end."""

    def __init__(self, ledger: Ledger, observe: Observer, *, retries: int, forget: Callable[[Parcel], None]) -> None:
        self._ledger = ledger
        self._observe = observe
        self._retries = retries
        self._forget = forget
        self._queue: deque[Call] = deque()
        self._running = 0
        self._took_s = 0.0
        self._timed = 0
        self._some_cancelled = False  # of those that wait, since somebody looked

    def add(self, call: Call) -> None:
        self._queue.append(call)
        call.future.add_done_callback(self._note_cancelled)

    def _note_cancelled(self, future: Future[Any]) -> None:
        """In whichever thread cancels it."""
        self._some_cancelled = self._some_cancelled or future.cancelled()

    def cancel(self) -> None:
        """Those that no unit has come to."""
        for call in self._queue:
            call.future.cancel()

    # -- what the pool asks --------------------------------------------------------------------------------------------

    def backlog(self) -> Backlog:
        if self._some_cancelled:
            self._some_cancelled = False  # first: what is cancelled meanwhile is seen the next time
            waiting, self._queue = self._queue, deque()
            for call in waiting:
                if call.future.cancelled():
                    self._drop(call)
                else:
                    self._queue.append(call)
        return Backlog(len(self._queue), self._running, self._took_s / self._timed if self._timed else None)

    def take(self, beside: Sequence[Call]) -> Call:  # noqa: ARG002  # it does not matter which they are
        self._running += 1
        return self._queue.popleft()

    def stopped(self) -> str:
        return ""

    def check(self) -> None:
        """Nobody else can end or take it."""

    def is_open(self) -> bool:
        return False

    def is_over(self) -> bool:
        return False

    def begin(self, given: Sequence[tuple[str, Call]]) -> list[Call]:
        """Each is written down once it is sure that nobody cancels it any more."""
        return [task for _, task in given]

    def carry_out(self, unit: PooledUnit, task: Call, turn: Turn) -> None:
        turn.take(check=unit.check_cancelled)  # as long as it waits it can be cancelled
        if not task.future.running() and not task.future.set_running_or_notify_cancel():
            return
        plan, run_id = task.parcel.plan(), task.future.run_id
        if task.is_begun:
            run = dispatch.execute(unit, plan, check=False, run_id=run_id, turn=turn)
        else:
            new = replace(dispatch.new_run(plan, task.asked_at), run_id=run_id, cell_key=task.key)
            run = dispatch.execute(unit, plan, check=False, new=new, turn=turn)
        task.is_failed = run.state is RunState.FAILED and self._step(task) == "again"
        if not task.is_failed:
            self._settle(task, run)

    def ended(self, task: Call, error: BaseException | None) -> None:
        self._running -= 1
        if error is not None and not isinstance(error, CloudrunError):
            self._fail(task, error)
            raise error  # a bug, or the interpreter's end
        if isinstance(error, Recalled):
            self._queue.appendleft(task)  # it has not begun
        elif task.is_failed:
            self._again(task)
        elif error is not None and not task.future.done():
            self._judge(task, error)
        else:
            self._forget(task.parcel)
        if task.took_s is not None:
            self._took_s += task.took_s
            self._timed += 1
        if isinstance(error, LedgerError):
            raise error  # where nothing can be written down, nothing more may be started

    def given_up(self, why: str, error: BaseException | None) -> None:  # noqa: ARG002  # the error says it
        self.close(error)

    def close(self, error: BaseException | None) -> None:
        """All that wait are told, whatever goes wrong on the way: nobody shall wait for ever, nor learn a later cause
        than the first."""
        while self._queue:
            call = self._queue.popleft()
            if call.is_begun:
                ending = Ending(RunState.CANCELLED, EndReason.CANCELLED, "no machine was there for another attempt")
                try:
                    end_queued(self._ledger, call.future.run_id, ending)
                except Exception as failure:  # noqa: BLE001
                    self._observe(Note(f"{call.future.run_id} is left as it was: {failure}", "warning"))
            self._fail(call, error or Cancelled(f"the pool ended before {call.parcel.name} was called"))

    # -- what becomes of a call ----------------------------------------------------------------------------------------

    def _settle(self, call: Call, run: Run) -> None:
        """It is over: tell whoever waits. In a thread of the unit's, since unpickling and callbacks are the user's."""
        try:
            values = outcome(run)
        except BaseException as error:  # noqa: BLE001  # the function may have raised anything
            self._tell(call, partial(call.future.set_exception, error.with_traceback(None)))  # our frames say nothing
        else:
            call.took_s = run.timings.ship_s + run.timings.run_s + run.timings.pull_s
            self._tell(call, partial(call.future.set_result, values[0] if call.single else values))

    def _tell(self, call: Call, act: Callable[[], None]) -> None:
        """The future logs what its callbacks raise, but for what is to end a program, which ends nothing here."""
        try:
            act()
        except BaseException as error:  # noqa: BLE001
            self._observe(Note(f"a callback of {call.parcel.name} raised {type(error).__name__}: {error}", "warning"))

    def _judge(self, call: Call, error: CloudrunError) -> None:
        """Something else than the function went wrong."""
        try:
            run = self._ledger.get(call.future.run_id)
        except NotFound:
            if isinstance(error, Cancelled | UnitGone):  # its machine went before it had begun
                self._queue.append(call)
            else:
                self._fail(call, error)
            return
        if run.state is RunState.QUEUED:
            self._once_more(call, error)
        elif is_terminal(run.state) and outcome_file(run) is not None:  # it was over, and only its way home was not
            self._settle(call, run)
            self._forget(call.parcel)
        elif is_terminal(run.state) and self._step(call) == "again":
            self._again(call)
        else:
            self._fail(call, error)

    def _step(self, call: Call) -> str:
        attempts = self._ledger.attempts(call.future.run_id)
        return next_step(
            [*call.ends, *(each.end_reason for each in attempts if each.end_reason)], retries=self._retries
        )

    def _once_more(self, call: Call, error: CloudrunError) -> None:
        """Its machine failed it: another one gets it, unless it has taken too many down."""
        name, run_id = call.parcel.name, call.future.run_id
        if self._ledger.attempts(run_id) and self._step(call) == "quarantine":
            why = "it was there when several machines went down, and is not tried on another"
            end_queued(self._ledger, run_id, Ending(RunState.FAILED, EndReason.UNIT_LOST, why))
            failure = JobFailed(f"{name}: {why}", run=self._ledger.get(run_id), next_step=f"cloudrun show {run_id}")
            failure.__cause__ = error
            self._fail(call, failure)
            return
        self._observe(Note(f"{name} ({run_id}) goes to another machine: {error}", "warning"))
        call.is_begun = True
        self._queue.append(call)

    def _again(self, call: Call) -> None:
        """As another run."""
        attempts = self._ledger.attempts(call.future.run_id)
        call.ends += [each.end_reason for each in attempts if each.end_reason]
        call.is_failed = call.is_begun = False
        call.future.run_id = new_id("r")
        call.asked_at = SystemClock().now()
        self._observe(Note(f"{call.parcel.name} failed; it is tried again", "warning"))
        self._queue.append(call)

    def _fail(self, call: Call, error: BaseException) -> None:
        self._forget(call.parcel)
        if call.future.running() or call.future.set_running_or_notify_cancel():
            self._tell(call, partial(call.future.set_exception, error))

    def _drop(self, call: Call) -> None:
        """It was cancelled while it waited: whoever waits for several is told."""
        self._forget(call.parcel)
        call.future.set_running_or_notify_cancel()
