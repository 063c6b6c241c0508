"""Prospects: what is done about a quota, a shortage and machines that are of no use; and when it is given up."""

from __future__ import annotations

import pytest

from cloudrun.core.errors import CapacityError, CloudrunError, CredentialsError, LaunchError, QuotaError, UnitGone
from cloudrun.core.events import Event
from cloudrun.plan.offers import Offer
from cloudrun.pools.prospects import PATIENCE_S, QUOTA_PATIENCE_S, Prospects
from cloudrun.pools.renting import Launched
from tests.fakes import ManualClock

OFFER = Offer("m7i.large")


class Told:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.said: list[Event] = []
        self.prospects = Prospects(self.clock, self.said.append)

    def refused(self, error: CloudrunError, machines: int = 0, count: int = 1) -> None:
        event = Launched("l-1", OFFER, count, error=error)
        self.prospects.refused(event, lambda: None, machines=machines)


def test_a_quota_leaves_it_at_the_machines_that_there_are_until_one_has_ended() -> None:
    told = Told()
    told.prospects.launched()
    told.refused(QuotaError("VcpuLimitExceeded", next_step="ask for more"), machines=2)
    assert not told.prospects.hopeless
    assert told.prospects.most_units(8) == 2
    assert "ask for more" in str(told.said[0])
    told.prospects.ended(worked=True)
    assert told.prospects.most_units(8) == 8


def test_a_quota_that_allows_none_at_all_is_an_error_at_once() -> None:
    told = Told()
    error = QuotaError("VcpuLimitExceeded", next_step="ask for more")
    told.refused(error)
    assert "ask for more" in told.prospects.hopeless
    assert told.prospects.cause is error


def test_machines_that_are_shutting_down_may_count_for_a_while() -> None:
    told = Told()
    told.prospects.launched()
    told.refused(QuotaError("VcpuLimitExceeded"))
    assert not told.prospects.hopeless
    told.clock.sleep(QUOTA_PATIENCE_S + 1)
    told.refused(QuotaError("VcpuLimitExceeded"))
    assert told.prospects.hopeless


def test_capacity_is_waited_for_while_something_runs_and_for_a_while_where_nothing_does() -> None:
    told = Told()
    for machines in (1, 1, 0):
        told.clock.sleep(PATIENCE_S + 1)
        told.refused(CapacityError("none"), machines=machines)
    told.clock.sleep(PATIENCE_S - 10)
    told.refused(CapacityError("none"))
    assert told.prospects.hopeless, "since the last machine went"
    assert len(told.said) == 1, "it is said once"


def test_several_at_once_are_tried_as_fewer() -> None:
    told = Told()
    told.refused(QuotaError("VcpuLimitExceeded"), count=4)
    assert not told.prospects.hopeless
    assert told.prospects.most_units(8) == 8


@pytest.mark.parametrize("error", [CredentialsError("expired"), QuotaError("no")])
def test_what_has_refused_launches_is_the_cause_and_not_what_became_of_a_machine(error: CloudrunError) -> None:
    told = Told()
    told.refused(error)
    told.prospects.failure = UnitGone("spot took it")
    assert told.prospects.cause is error


def test_machines_that_never_work_are_given_up_and_a_later_call_may_fare_better() -> None:
    told = Told()
    for _ in range(5):
        told.refused(LaunchError("it did not boot"))
    assert told.prospects.hopeless
    assert isinstance(told.prospects.cause, LaunchError)
    told.prospects.begin_anew()
    assert not told.prospects.hopeless
    assert told.prospects.cause is None
