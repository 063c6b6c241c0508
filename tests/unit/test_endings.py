"""How runs are recorded to have ended."""

from __future__ import annotations

import pytest

from cloudrun.core import errors
from cloudrun.core.records import JobStatus
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.plan.endings import interruption, verdict


@pytest.mark.parametrize(
    ("status", "state", "reason"),
    [
        (JobStatus("exited", exit_code=0), RunState.SUCCEEDED, EndReason.COMPLETED),
        (JobStatus("exited", exit_code=3), RunState.FAILED, EndReason.EXITED),
        (JobStatus("exited", signal=9), RunState.FAILED, EndReason.SIGNALLED),
        (JobStatus("exited", error="no such file"), RunState.FAILED, EndReason.EXITED),
        (JobStatus("exited"), RunState.LOST, EndReason.UNIT_LOST),
    ],
)
def test_a_job_that_ended_by_itself(status: JobStatus, state: RunState, reason: EndReason) -> None:
    ending = verdict(status)
    assert (ending.state, ending.reason) == (state, reason)
    assert bool(ending.detail) == (state is not RunState.SUCCEEDED)


def test_signals_are_named() -> None:
    assert "SIGKILL" in verdict(JobStatus("exited", signal=9)).detail


@pytest.mark.parametrize(
    ("error", "cause", "words"),
    [
        (KeyboardInterrupt(), None, "interrupted by Ctrl-C after 12 s; again"),
        (errors.Cancelled("while waiting"), KeyboardInterrupt(), "interrupted by Ctrl-C after 12 s; again"),
        (errors.Cancelled("while waiting"), SystemExit(143), "ended by SIGTERM after 12 s; again"),
        (errors.Cancelled("while waiting"), errors.Cancelled("g-1 was cancelled"), "g-1 was cancelled after 12 s"),
    ],
)
def test_what_the_user_stopped_says_how_and_what_to_do(
    error: BaseException, cause: BaseException | None, words: str
) -> None:
    ending = interruption(error, started=True, cause=cause, ran_s=12.0, again="again")
    assert (ending.state, ending.detail) == (RunState.CANCELLED, words)


@pytest.mark.parametrize(
    ("error", "started", "state", "reason"),
    [
        (KeyboardInterrupt(), True, RunState.CANCELLED, EndReason.CANCELLED),
        (SystemExit(143), True, RunState.CANCELLED, EndReason.CANCELLED),
        (errors.Cancelled("told to stop"), False, RunState.CANCELLED, EndReason.CANCELLED),
        (errors.DeadlineReached("time is up"), True, RunState.FAILED, EndReason.DEADLINE),
        (errors.ConnectionLost("gone"), True, RunState.LOST, EndReason.UNIT_LOST),
        (errors.ConnectionLost("gone"), False, RunState.LOST, EndReason.SHIP_FAILED),
        (errors.ProvisionError("no such package"), False, RunState.FAILED, EndReason.PROVISION_FAILED),
        (errors.TransferError("short"), False, RunState.FAILED, EndReason.SHIP_FAILED),
        (errors.TransferError("short"), True, RunState.FAILED, EndReason.PULL_FAILED),
    ],
)
def test_an_attempt_that_was_interrupted(
    error: BaseException, started: bool, state: RunState, reason: EndReason
) -> None:
    ending = interruption(error, started=started)
    assert (ending.state, ending.reason) == (state, reason)
    assert ending.detail
    assert is_terminal(ending.state)
