"""A deadline that is moved: what the ledger says of it at every moment, and what is counted on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from cloudrun.core.errors import ConnectionLost
from cloudrun.core.events import nobody
from cloudrun.core.records import UnitOrders
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Backlog, Limits, UnitView, decide
from cloudrun.runs.deadlines import move_deadline
from tests.fakes import Ec2, ManualClock, cloud_of, launch_one

HOUR = timedelta(hours=1)


class Died(BaseException):
    """The process, by kill -9: nothing after it happens."""


def move(ledger: Ledger, clock: ManualClock, by: timedelta, then: Callable[[], Any]) -> tuple[datetime, datetime]:
    """(the old deadline, the new one). `then` happens when the machine is told."""
    unit = launch_one(ledger, clock, ec2 := Ec2())
    agent: Any = SimpleNamespace(standing_orders=lambda: UnitOrders(0.0), orders=lambda _: None)
    session: Any = SimpleNamespace(run=lambda *_, **__: then())
    deadline = unit.deadline + by
    with suppress(Died, ConnectionLost):
        move_deadline(cloud_of(ec2), ledger, unit, deadline, session, agent, nobody)
    return unit.deadline, deadline


def died() -> None:
    raise Died


def cut() -> None:
    raise ConnectionLost("cut")


@pytest.mark.parametrize("by", [HOUR, -HOUR])
def test_whoever_dies_while_the_machine_is_told_leaves_the_later_of_the_two(
    ledger: Ledger, clock: ManualClock, by: timedelta
) -> None:
    old, new = move(ledger, clock, by, died)
    assert ledger.unit("i-l-1").deadline == max(old, new)


def test_what_a_machine_did_not_take_is_not_what_its_agent_will_be_told(ledger: Ledger, clock: ManualClock) -> None:
    old, _ = move(ledger, clock, HOUR, cut)
    assert ledger.unit("i-l-1").deadline == old


def test_a_deadline_that_nobody_confirmed_is_paid_for_and_not_counted_on() -> None:
    limits = Limits(max_units=2, slots=1, usd_per_hour=1.0, boot_s=10.0, deadline_s=7200.0, budget_usd=1.05)
    unit = UnitView("i-1", "ready", 1, 0, 0.0, 3600.0, 1.0)
    doubtful = UnitView("i-1", "ready", 1, 0, 0.0, 3600.0, 1.0, sure_until=600.0)
    for now, given in ((0.0, (("i-1", 1),)), (500.0, ())):
        assert decide(now, Backlog(1, 0, 300.0), [doubtful], limits, 0.0).assign == given
        assert decide(now, Backlog(1, 0, 300.0), [unit], limits, 0.0).assign == (("i-1", 1),)
    assert decide(500.0, Backlog(1, 0, 300.0), [doubtful], limits, 0.0).launch == 0  # its hour is paid for
