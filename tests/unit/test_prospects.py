"""Prospects: what is done about a quota, a shortage and machines that are of no use; and when it is given up."""

from __future__ import annotations

import pytest

from cloudrun.core.errors import CapacityError, CloudrunError, CredentialsError, LaunchError, QuotaError, UnitGone
from cloudrun.core.events import Event, Note
from cloudrun.plan.offers import Offer, Offers
from cloudrun.pools.prospects import FIRST_PATIENCE_S, PATIENCE_S, QUOTA_PATIENCE_S, Prospects
from cloudrun.pools.renting import Launched
from tests.fakes import ManualClock

OFFER = Offer("m7i.large")


class Told:
    """`types` are what may be asked for, and EC2 has none of them in any of its zones."""

    def __init__(self, *types: str) -> None:
        self.clock = ManualClock()
        self.said: list[Event] = []
        self.prospects = Prospects(self.clock, self.said.append)
        self.offers = Offers(types or [OFFER.instance_type])

    @property
    def warnings(self) -> list[str]:
        return [event.text for event in self.said if isinstance(event, Note) and event.level == "warning"]

    def refused(self, error: CloudrunError, machines: int = 0, count: int = 1, offer: Offer = OFFER) -> None:
        event = Launched("l-1", offer, count, error=error)
        self.prospects.refused(event, lambda: self.offers.best(self.clock.monotonic(), 10.0), machines=machines)

    def refused_everywhere(self, machines: int = 0) -> None:
        """A round through all that is allowed."""
        self.clock.sleep(10.0)
        while (offer := self.offers.best(self.clock.monotonic(), 10.0)) is not None:
            self.offers.refuse(offer, self.clock.monotonic())
            self.offers.learn(offer.instance_type, ("us-east-1a", "us-east-1b"))
            self.refused(CapacityError("InsufficientInstanceCapacity"), machines, offer=offer)


def test_a_quota_leaves_it_at_the_machines_that_there_are_until_one_has_ended() -> None:
    told = Told()
    told.prospects.launched()
    told.refused(QuotaError("VcpuLimitExceeded", next_step="ask for more"), machines=2)
    assert not told.prospects.hopeless
    assert told.prospects.most_units(8) == 2
    told.refused(QuotaError("VcpuLimitExceeded", next_step="ask for more"), machines=2)
    assert told.warnings == ["VcpuLimitExceeded; going on with 2: ask for more"]
    told.prospects.ended(worked=True)
    assert told.prospects.most_units(8) == 8


def test_a_quota_that_allows_none_at_all_is_an_error_at_once() -> None:
    told = Told()
    error = QuotaError("VcpuLimitExceeded", next_step="ask for more")
    told.refused(error)
    assert "ask for more" in told.prospects.hopeless
    assert told.prospects.cause is error
    assert told.warnings == [], "the error says it"


def test_machines_that_are_shutting_down_may_count_for_a_while() -> None:
    told = Told()
    told.prospects.launched()
    told.refused(QuotaError("VcpuLimitExceeded"))
    assert not told.prospects.hopeless
    told.clock.sleep(QUOTA_PATIENCE_S + 1)
    told.refused(QuotaError("VcpuLimitExceeded"))
    assert told.prospects.hopeless
    assert told.warnings == [
        "VcpuLimitExceeded; asking again for 2 min, since machines that have ended may still count"
    ]


def test_capacity_is_waited_for_while_something_runs_and_for_a_while_where_nothing_does() -> None:
    told = Told()
    told.prospects.launched()
    for _ in range(2):
        told.clock.sleep(PATIENCE_S + 1)
        told.refused_everywhere(machines=1)
    told.clock.sleep(PATIENCE_S - 30)
    told.refused_everywhere()
    assert not told.prospects.hopeless
    told.clock.sleep(30)
    told.refused_everywhere()
    assert told.prospects.hopeless, "since the last machine went"
    none = "no m7i.large in us-east-1a, b: asking again"
    assert told.warnings == [f"{none} while 1 go on", f"{none} for 10 min (Ctrl-C ends it)"]


def test_what_never_had_a_machine_is_given_up_while_its_user_still_looks() -> None:
    told = Told("m7i.large", "m6i.large")
    while not told.prospects.hopeless:
        told.refused_everywhere()
    assert FIRST_PATIENCE_S < told.clock.monotonic() <= 2 * FIRST_PATIENCE_S
    cause = told.prospects.cause
    assert isinstance(cause, CapacityError)
    assert cause.exit_code == 6
    assert "--fallback-types" in cause.next_step
    assert "no m7i.large in us-east-1a, b or m6i.large in us-east-1a, b, asked for" in str(cause)
    assert told.warnings == [
        "no m7i.large in us-east-1a, b: trying m6i.large",
        "no m7i.large in us-east-1a, b or m6i.large in us-east-1a, b: asking again for 1 min (Ctrl-C ends it)",
    ]


def test_several_at_once_are_tried_as_fewer() -> None:
    told = Told()
    told.refused(QuotaError("VcpuLimitExceeded"), count=4)
    assert not told.prospects.hopeless
    assert told.prospects.most_units(8) == 8
    assert told.warnings == []


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
