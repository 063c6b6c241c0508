"""One attempt of a run on an open unit: followed to its end, brought home, and recorded whatever interrupts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar

from cloudrun.core import rundir
from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    ConnectionLost,
    DeadlineReached,
    HostKeyMismatch,
    Interrupted,
    LedgerError,
    ManifestRefused,
    TransferError,
    UnitGone,
    mark_incomplete,
)
from cloudrun.core.events import Note
from cloudrun.core.records import JobStatus, RunRecord
from cloudrun.core.states import EndReason, RunState
from cloudrun.plan.endings import Ending, interruption
from cloudrun.runs.homecoming import Homecoming, logs_at_home
from cloudrun.runs.prepared import submitted_settings
from cloudrun.runs.printed import Printed
from cloudrun.runs.pulling import pull_stored
from cloudrun.units.phases import Phases

if TYPE_CHECKING:
    from cloudrun.ssh.agent import Finished
    from cloudrun.units.unit import OpenUnit

# The client ends a job itself this long before the unit's deadline, so that what was written can still come home.
HOMEWARD_S = 60.0
RESCUES = 5  # connections on which an interrupted run is brought home
LAST_WORDS_S = 3.0  # for a job that has printed scores to end by itself, before it is asked to
LOOK_S = 0.1  # between two looks at whether it has
AGAIN = "run the same command again to go on"
LOOK_EVERY_S = 15.0  # at the ledger, whether the deadline was moved

T = TypeVar("T")


class Attempt:
    """From wherever it is to its end in the ledger. It knows how far it came, so that a rescue does."""

    def __init__(self, unit: OpenUnit, run: RunRecord, number: int) -> None:
        self.unit = unit
        self.run = run
        self.number = number
        self.place = rundir.run_dir(run.run_id, number)
        # Launch and boot count for the run they were done for, the first.
        self.phases = unit.phases if unit.run_ids == [run.run_id] else Phases(unit.observe, unit.clock)
        earlier = unit.ledger.attempts(run.run_id)[number - 2].outputs if number > 1 else ()
        self.home = Homecoming(
            unit.ledger,
            run,
            self.place,
            self.phases,
            unit.observe,
            unit.clock,
            unit.settings.output_max_bytes,
            unit.settings.output_max_files,
            number,
            earlier,
        )
        self.folder = unit.ledger.home / "runs" / f"{run.run_id}.{number}"
        self.printed = Printed(self.folder, unit.observe)
        self.provision_log: Path | None = None
        self.started = False
        self.over = False  # the job has ended: what is left is its way home

    def mark_running(self) -> None:
        """The job runs on the unit: from here on it has to be ended or fetched."""
        if not self.started:
            self.started = True
            if self.unit.ledger.run(self.run.run_id).state is RunState.SHIPPING:
                self.unit.ledger.move_run(self.run.run_id, RunState.RUNNING)

    def has_begun(self) -> bool:
        """Whether its job was started, be it that whoever asked for that was interrupted before the answer came."""
        if not self.started and not self.unit.hurried.is_set():
            with suppress(CloudrunError):  # a unit that does not answer has nothing for us either
                if self.unit.agent.status(self.place) is not None:
                    self.mark_running()
        return self.started

    def follow(self) -> Finished:
        """Hand on what the job prints until it has ended, over a new connection where one is lost."""
        return self.despite_cuts(
            lambda: self.unit.agent.follow_home(
                self.place, self.printed, offsets=self.printed.offsets, cancelled=self.unit.stop
            )
        )

    def conclude(self, status: JobStatus, finished: Finished | None = None) -> None:
        """Bring home what it made and record its end. Raises Interrupted where the run waits for another attempt."""
        unit = self.unit
        self.over = True
        if status.reason == "interrupted":
            detail = "the provider took the machine back"
            self.home.requeue(unit.agent, detail, status, self._logs(), finished)
            self._discard_copies()
            raise Interrupted(f"{unit.instance_id} was taken back by the provider")
        self.despite_cuts(lambda: self.home.bring(unit.agent, status, logs=self._logs(), finished=finished))
        unit.is_home(self.place)
        self._discard_copies()

    def despite_cuts(self, act: Callable[[], T]) -> T:
        """Do it, over a new connection where the old one is lost: the job does not depend on either."""
        unit = self.unit
        while True:
            session = unit.session
            try:
                return act()
            except Interrupted:
                raise
            except ConnectionLost as lost:
                if unit.stop.is_set():
                    raise
                unit.observe(Note("the connection is lost; the job goes on, connecting again", "warning"))
                try:
                    unit.reconnect(lost=session)
                except Interrupted:
                    raise
                except CloudrunError as failure:
                    raise lost from failure

    def _logs(self) -> dict[str, Path]:
        """Logs that are on this computer already, by name. The unit's own take their place where they come home."""
        logs = dict(self.printed.logs())
        if self.provision_log is not None and self.provision_log.exists():
            logs["provision.log"] = self.provision_log
        return logs

    def _discard_copies(self) -> None:
        """Of the logs that are home: of one that found no room there the copy is the only one."""
        with suppress(CloudrunError):  # what cannot be looked up stays
            self.printed.discard(logs_at_home(self.unit.ledger, self.run.run_id, self.number))

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """Stop following a little before the unit's deadline, and say so rather than that the machine vanished."""
        unit = self.unit
        over, late = Event(), Event()
        margin_s = min(HOMEWARD_S, unit.seconds_left() / 10)

        def watch() -> None:
            while (left_s := unit.seconds_left() - margin_s) > 0:  # asked again: the deadline may be moved meanwhile
                if over.wait(min(left_s, LOOK_EVERY_S)):
                    return
            if over.is_set():
                return
            late.set()
            unit.stop.set()

        Thread(target=watch, name="cloudrun-deadline", daemon=True).start()
        try:
            yield
        except Interrupted:
            raise
        except (Cancelled, ConnectionLost) as error:
            # `stop` without `cancelled` is only set in here: by this watch, or by that of a run beside it
            if (late.is_set() or unit.stop.is_set()) and not unit.cancelled.is_set():
                raise DeadlineReached(
                    f"{unit.instance_id} reached its deadline of {unit.record.deadline:%H:%M:%S} UTC",
                    next_step="submit again with a later --deadline",
                ) from error
            raise
        finally:
            over.set()

    # -- where something interrupts it ---------------------------------------------------------------------------

    def rescue(self, error: BaseException) -> None:
        """Bring home what there is and record the end; failing at it is a note on `error`, which goes on its way."""
        unit, run_id = self.unit, self.run.run_id
        if unit.is_let_go:
            error.add_note(f"{run_id} goes on; cloudrun attach {run_id} comes back to it, cloudrun cancel ends it")
            return
        if not unit.holds():
            error.add_note(f"another client has taken {unit.instance_id} over: the run is left to it")
            return
        if isinstance(error, Interrupted) or (isinstance(error, DeadlineReached) and self._is_for_another()):
            self._requeue(error)
            return
        if isinstance(error, LedgerError | TransferError) and self._can_be_pulled_later(error):
            return
        if self.started and self._goes_on(error):
            return
        is_stopped = isinstance(error, Cancelled) or not isinstance(error, Exception)
        try:
            if (self.has_begun() if is_stopped else self.started) and not unit.hurried.is_set():
                self._end_and_bring(error)
                self._discard_copies()
                error.add_note(f"{run_id} is recorded as {unit.ledger.run(run_id).state}; what it had written is home")
                return
        except Exception as failure:  # noqa: BLE001 - whatever it is, it must not take the place of the first cause
            if self._came_by_bucket(error):
                return
            error.add_note(f"what the run had written could not be brought home: {failure}")
            if isinstance(failure, LedgerError | TransferError) and self._can_be_pulled_later(failure):
                error.add_note(f"next: {failure.next_step}")
                mark_incomplete(error)
                return
        try:
            ending = self._ending(error)
            self.home.end(ending, logs=self._logs())
            self._discard_copies()
            error.add_note(f"{run_id} is recorded as {ending.state}")
        except Exception as failure:  # noqa: BLE001
            error.add_note(f"the run's end could not be recorded: {failure}")

    def _ending(self, error: BaseException, status: JobStatus | None = None) -> Ending:
        """How it is recorded. A thread that works for others hears no more than that it shall stop: its unit knows
        why."""
        cause = self.unit.stopped_by if isinstance(error, Cancelled) else None
        ran_s = self.phases.timings().run_s
        if status is not None and status.started_at is not None and status.ended_at is not None:
            ran_s = status.ended_at - status.started_at
        again = AGAIN if self.run.grid_id is not None else ""
        return interruption(error, started=self.started, cause=cause, ran_s=max(0.0, ran_s), again=again)

    def _let_end(self) -> None:
        """The scores that it has printed may be all that was left to do, and an interpreter that has imported much
        takes a moment to end: what ends by itself is judged by how it does."""
        give_up = self.unit.clock.monotonic() + LAST_WORDS_S
        while self.printed.has_scores() and self.unit.clock.monotonic() < give_up:
            status = self.unit.agent.status(self.place)
            if status is None or status.state == "exited" or self.unit.hurried.wait(LOOK_S):
                return

    def _end_and_bring(self, error: BaseException) -> None:
        """End the job and bring home what it wrote, over a new connection where one is lost. Only a second signal ends
        this early: the first is why we are here."""
        unit = self.unit
        reason = "deadline" if isinstance(error, DeadlineReached) else "cancelled"
        session = unit.session
        lost = not session.is_alive
        for left in reversed(range(RESCUES)):
            if lost:
                unit.reconnect(unit.hurried, lost=session)
            session = unit.session
            try:
                if reason != "deadline":  # then each second is for what it saves
                    self._let_end()
                grace_s = (submitted_settings(self.run) or unit.settings).grace_s
                status = unit.agent.cancel(self.place, grace_s, reason)
                self.over = True
                # A job that had ended by itself is what it was, whatever happened on its way home.
                forced = self._ending(error, status) if status.reason else None
                self.home.bring(unit.agent, status, forced, logs=self._logs())
                return
            except ConnectionLost:
                if not left or unit.hurried.is_set():
                    raise
                lost = True

    def _came_by_bucket(self, error: BaseException) -> bool:
        """A unit that does not answer may have put everything into its bucket before it went."""
        unit, run_id = self.unit, self.run.run_id
        try:
            run, attempt = unit.ledger.run(run_id), unit.ledger.attempts(run_id)[-1]
            if not pull_stored(unit.cloud, unit.ledger, run, attempt, unit.observe, unit.clock, self.phases):
                return False
        except CloudrunError as failure:
            error.add_note(f"its bucket could not be read: {failure}")
            return False
        self._discard_copies()
        error.add_note(f"{run_id} is recorded as {unit.ledger.run(run_id).state}: its bucket had what it had written")
        return True

    def _goes_on(self, error: BaseException) -> bool:
        """Whether the job may well run on, on a machine that this computer cannot reach at the moment: then it does."""
        unit, run_id = self.unit, self.run.run_id
        if not isinstance(error, ConnectionLost) or isinstance(error, HostKeyMismatch):
            return False
        if unit.cancelled.is_set() or unit.is_gone():
            return False
        unit.keep_until_deadline = True
        error.next_step = f"cloudrun attach {run_id}, when {unit.instance_id} can be reached again"
        error.add_note(f"{run_id} is left to go on until {unit.record.deadline:%Y-%m-%d %H:%M} UTC at most")
        mark_incomplete(error)  # it is billing until then
        return True

    def _is_for_another(self) -> bool:
        """Whether it had no part in what became of its machine, and another one takes its place."""
        return self.unit.replaceable and not self.has_begun()

    def _requeue(self, error: Interrupted | DeadlineReached) -> None:
        """The machine went before its job could be asked what it has: the next attempt begins where this one did, or
        with what is in the bucket. Only one that had begun can have brought the machine down."""
        unit = self.unit
        try:
            if unit.ledger.run(self.run.run_id).state is RunState.QUEUED:
                return  # by `conclude`, with what was saved
            if self._came_by_bucket(error):
                return
            is_suspect = isinstance(error, UnitGone) and self.started
            reason = EndReason.UNIT_LOST if is_suspect else EndReason.INTERRUPTED
            self.home.requeue(None, str(error), logs=self._logs(), reason=reason)
            self._discard_copies()
        except CloudrunError as failure:
            error.add_note(f"the run could not be queued again: {failure}")

    def _can_be_pulled_later(self, error: LedgerError | TransferError) -> bool:
        """The work is done and does not fit, or did not arrive: the unit keeps it until its deadline."""
        unit, run_id = self.unit, self.run.run_id
        if isinstance(error, ManifestRefused) or not self.over:
            return False
        try:
            if unit.ledger.run(run_id).state not in (RunState.RUNNING, RunState.PULLING):
                return False
            unit.ledger.move_run(run_id, RunState.PULL_PENDING, detail=str(error))
        except CloudrunError:
            pass  # the ledger cannot even write that; the unit is kept all the same
        unit.keep_until_deadline = True
        error.next_step = f"{error.next_step + ', then: ' if error.next_step else ''}cloudrun pull {run_id}"
        error.add_note(f"{unit.instance_id} keeps the outputs until {unit.record.deadline:%Y-%m-%d %H:%M} UTC")
        mark_incomplete(error)  # it is billing until then
        return True
