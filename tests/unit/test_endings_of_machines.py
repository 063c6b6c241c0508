"""What is said of a run whose machine is gone with what it had written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cloudrun.core.records import Instance
from cloudrun.core.states import EndReason, RunState
from cloudrun.plan.endings import at_its_deadline, with_its_machine

DEADLINE = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
LATER = DEADLINE + timedelta(hours=1)


def instance(state_reason: str) -> Instance:
    return Instance("i-1", "terminated", "m7i.large", None, None, state_reason=state_reason)


def test_a_machine_that_is_gone_after_its_deadline_went_at_it() -> None:
    assert at_its_deadline(DEADLINE, None, LATER)
    assert at_its_deadline(DEADLINE, instance("Client.InstanceInitiatedShutdown: Instance initiated shutdown"), LATER)


def test_one_that_was_terminated_or_is_gone_before_did_not() -> None:
    assert not at_its_deadline(DEADLINE, instance("Client.UserInitiatedShutdown: User initiated shutdown"), LATER)
    assert not at_its_deadline(DEADLINE, instance("Server.InternalError: the hardware failed"), LATER)
    assert not at_its_deadline(DEADLINE, None, DEADLINE - timedelta(minutes=1))


def test_the_deadline_is_named_and_what_would_have_helped() -> None:
    ending = with_its_machine(DEADLINE, None, LATER, bucket=False)
    assert (ending.state, ending.reason) == (RunState.LOST, EndReason.DEADLINE)
    for word in ("2026-01-02 03:04 UTC", "--bucket", "--deadline", "cloudrun extend"):
        assert word in ending.detail


def test_a_bucket_is_not_recommended_to_who_had_one() -> None:
    detail = with_its_machine(DEADLINE, None, LATER, bucket=True).detail
    assert "--bucket" not in detail
    assert "not in its bucket" in detail


def test_without_a_deadline_that_has_passed_nothing_is_said_of_it() -> None:
    ending = with_its_machine(DEADLINE, None, DEADLINE - timedelta(hours=1), bucket=False)
    assert (ending.state, ending.reason) == (RunState.LOST, EndReason.CLIENT_LOST)
    assert "deadline" not in ending.detail
