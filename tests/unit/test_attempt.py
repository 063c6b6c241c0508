"""A client that follows its run, when its connection, its machine or its ledger fails."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    ConnectionLost,
    DeadlineReached,
    Interrupted,
    LedgerError,
    UnitGone,
    UsageError,
    exit_code_of,
)
from cloudrun.core.events import Event
from cloudrun.core.records import JobStatus, RunRecord
from cloudrun.core.states import EndReason, RunState
from cloudrun.ledger import Ledger
from cloudrun.plan.retrying import SUSPICIOUS, next_step
from cloudrun.runs import bucket, dispatch
from cloudrun.runs.attempt import Attempt
from tests.fakes import RUN, Agent, Ec2, ManualClock, an_attempt, open_unit


def test_a_cut_while_an_interrupted_run_comes_home_costs_nothing(ledger: Ledger, clock: ManualClock) -> None:
    agent = Agent(cuts=2)
    attempt = an_attempt(ledger, clock, Ec2(), agent)
    attempt.rescue(KeyboardInterrupt())
    assert agent.cancelled == 1
    assert (ledger.run(RUN).state, ledger.run(RUN).artifacts) == (RunState.CANCELLED, ())


class EndsSoon(Agent):
    """Its job is in its last moments: it has ended when it is looked at a second time."""

    looks = 0

    def status(self, place: str = "") -> JobStatus:
        self.looks += 1
        if self.looks > 1:
            self.now = JobStatus("exited", exit_code=0)
        return self.now or JobStatus("running")


@pytest.mark.parametrize(("printed", "state"), [(True, RunState.SUCCEEDED), (False, RunState.CANCELLED)])
def test_a_job_that_has_printed_its_scores_is_not_ended_at_its_end(
    ledger: Ledger, clock: ManualClock, printed: bool, state: RunState
) -> None:
    attempt = an_attempt(ledger, clock, Ec2(), EndsSoon())
    attempt.printed("stdout", b'{"accuracy": 0.97}\n' if printed else b"epoch 1\n")
    attempt.rescue(KeyboardInterrupt())
    assert ledger.run(RUN).state is state


def test_scores_that_are_printed_all_along_put_a_job_s_end_off_for_a_moment_only(ledger: Ledger) -> None:
    agent = Agent(JobStatus("running"))
    attempt = an_attempt(ledger, clock := ManualClock(), Ec2(), agent)
    attempt.printed("stdout", b"accuracy: 0.5\n")
    attempt.unit.hurried.wait = clock.sleep  # type: ignore[assignment, method-assign]
    attempt.rescue(KeyboardInterrupt())
    assert (agent.cancelled, ledger.run(RUN).state) == (1, RunState.CANCELLED)


@pytest.mark.parametrize("at_once", [True, False], ids=["a claim", "a run of its own"])
def test_a_job_that_ended_before_anybody_heard_that_it_had_begun_comes_home(
    ledger: Ledger, clock: ManualClock, at_once: bool
) -> None:
    unit = an_attempt(ledger, clock, Ec2(), Agent(JobStatus("exited", exit_code=0))).unit
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="")
    if at_once:
        ledger.begin_attempt(RUN, unit.instance_id, clock.now())

    def act(_: Attempt) -> None:
        unit.cancel()
        raise Cancelled("stopped while the answer was on its way")

    def begin() -> Attempt:
        if not at_once:
            ledger.begin_attempt(RUN, unit.instance_id, clock.now())
        return dispatch._again(unit, RUN, 2)

    with pytest.raises(Cancelled):
        dispatch._attempt(unit, begin, act, at_once=at_once)
    assert ledger.run(RUN).state is RunState.SUCCEEDED


def test_a_thread_that_works_for_others_records_what_stopped_them(ledger: Ledger, clock: ManualClock) -> None:
    attempt = an_attempt(ledger, clock, Ec2(), Agent())
    attempt.run = replace(attempt.run, grid_id="g-1")
    attempt.phases.count("run", 12.0)
    attempt.unit.cancel(KeyboardInterrupt())
    attempt.unit.cancel(CloudrunError("a consequence"))
    attempt.rescue(Cancelled("cancelled while waiting for the unit"))
    detail = ledger.run(RUN).detail
    assert detail == "interrupted by Ctrl-C after 12 s; run the same command again to go on"


def test_a_network_that_stays_away_ends_no_job(ledger: Ledger, clock: ManualClock) -> None:
    """EC2 says that the machine runs, or says nothing: the job does not depend on this computer."""
    ec2 = Ec2()
    agent = Agent(JobStatus("running"))
    attempt = an_attempt(ledger, clock, ec2, agent)
    error = ConnectionLost("no route to host")
    attempt.rescue(error)
    attempt.unit.close()
    assert (ledger.run(RUN).state, agent.cancelled) == (RunState.RUNNING, 0)
    assert ec2.states == {"i-l-1": "running"}
    unit = ledger.unit("i-l-1")
    assert (unit.client_id, unit.on_exit) == ("", "keep"), "anybody may come for it, and the reaper does not"
    assert f"cloudrun attach {RUN}" in error.next_step
    assert exit_code_of(error, 1) == 8, "it bills on"


def test_a_lost_connection_to_a_machine_that_is_gone_ends_the_run(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2()
    attempt = an_attempt(ledger, clock, ec2, Agent(cuts=100))
    ec2.states["i-l-1"] = "terminated"
    attempt.rescue(ConnectionLost("reset by peer"))
    assert (ledger.run(RUN).state, ledger.run(RUN).end_reason) == (RunState.LOST, EndReason.UNIT_LOST)


def test_a_run_whose_client_died_before_it_was_started_waits_again_and_its_machine_is_fine(
    ledger: Ledger, clock: ManualClock
) -> None:
    unit = an_attempt(ledger, clock, Ec2(), Agent(status=None)).unit
    assert dispatch.go_on(unit, RUN).state is RunState.QUEUED
    assert ledger.attempts(RUN)[0].end_reason is EndReason.INTERRUPTED
    unit.check_cancelled()


def test_a_claim_that_another_client_has_given_away_meanwhile_is_not_begun(ledger: Ledger, clock: ManualClock) -> None:
    unit = an_attempt(ledger, clock, Ec2(), Agent(status=None)).unit
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="it slept")
    with pytest.raises(Cancelled, match="queued again meanwhile"):
        dispatch._again(unit, RUN, 1)
    ledger.begin_attempt(RUN, unit.instance_id, clock.now())
    with pytest.raises(UsageError, match="another process goes on"):
        dispatch._again(unit, RUN, 1)
    assert dispatch._again(unit, RUN, 2).number == 2


def test_a_claim_that_was_not_begun_when_the_user_stopped_waits_again(ledger: Ledger, clock: ManualClock) -> None:
    unit = an_attempt(ledger, clock, Ec2(), Agent(status=None)).unit
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="")
    ledger.begin_attempt(RUN, unit.instance_id, clock.now())
    unit.cancel()
    with pytest.raises(Cancelled):
        dispatch._attempt(unit, lambda: dispatch._again(unit, RUN, 2), lambda _: pytest.fail("begun"), at_once=True)
    assert ledger.run(RUN).state is RunState.QUEUED


def test_what_comes_by_the_bucket_took_as_long_as_it_was_watched(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class InBucket(Agent):
        complete = True

        def status(self, place: str = "") -> JobStatus:
            return JobStatus("exited", exit_code=0, started_at=100.0, ended_at=103.0)

    ec2 = Ec2()
    attempt = an_attempt(ledger, clock, ec2, Agent(cuts=100), "s3://bucket/r-1.1/")
    attempt.unit.cloud.storage = lambda: None  # type: ignore[misc, assignment, method-assign, return-value]
    monkeypatch.setattr(bucket, "Stored", lambda *_: InBucket())
    attempt.phases.count("boot", 7.0)
    attempt.phases.count("run", 3.0)
    ec2.states["i-l-1"] = "terminated"
    attempt.rescue(ConnectionLost("reset by peer"))
    run = ledger.run(RUN)
    assert (run.state, run.timings.boot_s, run.timings.run_s) == (RunState.SUCCEEDED, 7.0, 3.0)


def test_outputs_that_the_ledger_cannot_take_wait_whatever_state_it_knows(tmp_path: Path, clock: ManualClock) -> None:
    class Locked(Ledger):
        locked = False

        def move_run(self, *words: Any, **keywords: Any) -> None:
            if self.locked:
                raise LedgerError("the ledger is locked")
            super().move_run(*words, **keywords)

        def finish_run(self, *words: Any, **keywords: Any) -> RunRecord:
            if self.locked:
                raise LedgerError("the ledger is locked")
            return super().finish_run(*words, **keywords)

    ledger, ec2 = Locked(tmp_path), Ec2()
    attempt = an_attempt(ledger, clock, ec2, Agent(JobStatus("exited", exit_code=0)))
    ledger.locked = True
    error = KeyboardInterrupt()
    attempt.rescue(error)
    attempt.unit.close()
    assert ec2.states == {"i-l-1": "running"}
    assert exit_code_of(error, 130) == 8
    ledger.locked = False
    assert ledger.run(RUN).state is RunState.RUNNING


def test_a_run_that_was_let_go_is_not_told_to_be_another_clients(ledger: Ledger, clock: ManualClock) -> None:
    attempt = an_attempt(ledger, clock, Ec2(), Agent(JobStatus("running")))
    attempt.unit._let_go = True
    ledger.update_unit("i-l-1", client_id="", on_exit="keep")
    error = KeyboardInterrupt()
    attempt.rescue(error)
    assert error.__notes__ == [f"{RUN} goes on; cloudrun attach {RUN} comes back to it, cloudrun cancel ends it"]


@pytest.mark.parametrize("error", [UnitGone("it went away"), DeadlineReached("its time was up")])
def test_only_a_cell_that_had_begun_is_suspected_of_what_became_of_its_machine(
    ledger: Ledger, clock: ManualClock, error: CloudrunError
) -> None:
    """Two machines may go while their environments are built, and the cell that was to run there is as good as ever."""
    attempt = an_attempt(ledger, clock, Ec2(), Agent(status=None))
    attempt.unit.replaceable = True
    attempt.started = False
    for number in (1, 2):
        attempt.rescue(error)
        assert ledger.run(RUN).state is RunState.QUEUED
        if number == 1:
            ledger.begin_attempt(RUN, attempt.unit.instance_id, clock.now())
            attempt.home = replace(attempt.home, number=2)
    ends = [each.end_reason for each in ledger.attempts(RUN) if each.end_reason]
    assert next_step(ends) == "again"

    ledger.begin_attempt(RUN, attempt.unit.instance_id, clock.now())
    ledger.move_run(RUN, RunState.RUNNING)
    attempt.started = True
    attempt.rescue(error)
    assert ledger.attempts(RUN)[-1].end_reason in SUSPICIOUS


@pytest.mark.parametrize("user_too", [False, True])
def test_a_run_beside_one_that_met_the_deadline_met_it_as_well(
    ledger: Ledger, clock: ManualClock, user_too: bool
) -> None:
    """Whoever of them watches sees it first, and what it sets stops all."""
    attempt = an_attempt(ledger, clock, Ec2(), Agent())
    expected: type[CloudrunError] = Cancelled if user_too else DeadlineReached
    (attempt.unit.cancel if user_too else attempt.unit.stop.set)()
    with pytest.raises(expected) as told, attempt.in_time():
        raise Cancelled("cancelled while waiting for the unit")
    attempt.rescue(told.value)
    run = ledger.run(RUN)
    reason = EndReason.CANCELLED if user_too else EndReason.DEADLINE
    assert (run.state, run.end_reason) == (RunState.CANCELLED if user_too else RunState.FAILED, reason)


def test_a_new_connection_does_not_move_a_deadline_back(ledger: Ledger, clock: ManualClock) -> None:
    unit = open_unit(ledger, clock, Ec2())
    later = unit.record.deadline + timedelta(hours=2)
    ledger.update_unit("i-l-1", deadline=later)  # by `cloudrun extend`, in another process
    assert unit._orders().deadline == later.timestamp()


@pytest.mark.parametrize("error", [RuntimeError("boom"), Interrupted("taken back")], ids=["ended", "queued again"])
@pytest.mark.parametrize("room", [True, False])
def test_a_log_that_finds_no_room_at_home_stays_where_it_is_said_to_stay(
    ledger: Ledger, clock: ManualClock, error: Exception, room: bool
) -> None:
    attempt = an_attempt(ledger, clock, Ec2(), Agent())
    attempt.started = False  # nothing is fetched: what was seen is all there is
    said: list[Event] = []
    attempt.unit._observer = said.append
    attempt.printed("stdout", b"epoch 1\n")
    copy = attempt.folder / "stdout.log"
    if not room:
        ledger.artifacts.root.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(b"epoch 1\n").hexdigest()
        (ledger.artifacts.root / digest[:2]).write_text("in the way")
    attempt.rescue(error)
    assert any(f"stdout.log stays at {copy}" in str(each) for each in said) is not room
    run = ledger.run(RUN)
    logs = ledger.attempts(RUN)[0].outputs if run.state is RunState.QUEUED else run.artifacts
    assert (copy.exists(), len(logs)) == (not room, int(room))
