"""What a pool's machines count for: the money of each is taken until EC2 says that it is gone."""

from __future__ import annotations

from datetime import timedelta
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import CleanupIncomplete, ConnectionLost
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Backlog, UnitView, decide
from cloudrun.pools import fleet
from cloudrun.pools import pool as pools
from cloudrun.pools.extending import extend
from cloudrun.pools.hands import Hand
from cloudrun.pools.pooled import PooledUnit
from cloudrun.pools.work import Joined
from tests.fakes import Ec2
from tests.pooling import USD_PER_HOUR, Cells, Lingering, Unit, a_pool, joined_unit
from tests.waiting import until


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[UnitView], float]]:
    """(units, what the others have cost) of each decision."""
    decisions: list[tuple[list[UnitView], float]] = []

    def watched(now: float, backlog: Backlog, units: list[UnitView], *args: Any, **words: Any) -> Any:
        decisions.append((list(units), args[1]))
        return decide(now, backlog, units, *args, **words)

    monkeypatch.setattr(pools, "decide", watched)
    monkeypatch.setattr(fleet, "PooledUnit", Unit)
    return decisions


def test_a_machine_counts_until_ec2_says_that_it_is_gone(
    ledger: Ledger, seen: list[tuple[list[UnitView], float]]
) -> None:
    ec2 = Lingering()
    unit = joined_unit(ledger, ec2, timedelta(hours=2))
    cells = Cells(running=1)
    spent: list[float] = []

    def changed(pool: pools.Pool) -> None:
        if not pool.hands and not ec2.gone.is_set():
            spent.append(pool.spent_usd)
            ec2.gone.set()
        elif not pool.hands and not seen[-1][0]:
            cells.over.set()

    pool = a_pool(ledger, ec2, changed)
    pool.run(cells, Joined(((unit, USD_PER_HOUR, ("cell",)),)))

    closed = [units for units, _ in seen if units and units[0].state == "draining" and not units[0].busy]
    assert closed
    assert {view.deadline for (view,) in closed} == {unit.deadline.timestamp()}
    assert spent[0] > 0
    assert spent[0] <= pool.bill.ended_usd < USD_PER_HOUR  # it did not live for its two hours after all


def test_a_machine_that_is_left_to_its_deadline_keeps_its_money(
    ledger: Ledger, seen: list[tuple[list[UnitView], float]]
) -> None:
    ec2 = Ec2()
    unit = joined_unit(ledger, ec2, timedelta(hours=2))

    def outputs_wait(machine: PooledUnit) -> None:
        machine.keep_until_deadline = True

    cells = Cells(1, outputs_wait)
    cells.over.set()
    pool = a_pool(ledger, ec2, lambda _: None)
    pool.run(cells, Joined(((unit, USD_PER_HOUR, ("cell",)),)))
    assert ec2.states[unit.instance_id] == "running"
    assert not seen[-1][0], "it would take the place of another until its deadline"
    assert seen[-1][1] == pytest.approx(pool.bill.ended_usd)
    assert pool.bill.ended_usd >= 2 * USD_PER_HOUR


def test_a_machine_that_nobody_saw_go_is_counted_until_its_deadline(
    ledger: Ledger, seen: list[tuple[list[UnitView], float]]
) -> None:
    unit = joined_unit(ledger, ec2 := Lingering(), timedelta(hours=2))
    cells = Cells(running=1)
    cells.over.set()
    pool = a_pool(ledger, ec2, lambda _: None, timeout_s=0.5)
    with pytest.raises(CleanupIncomplete) as left:
        pool.run(cells, Joined(((unit, USD_PER_HOUR, ("cell",)),)))
    assert left.value.ids == (unit.instance_id,)
    assert pool.bill.ended_usd >= 2 * USD_PER_HOUR


def test_a_machine_that_was_not_told_of_its_new_deadline_is_counted_on_until_the_old_one(ledger: Ledger) -> None:
    unit = joined_unit(ledger, ec2 := Ec2(), timedelta(hours=1))
    old, new = unit.deadline.timestamp(), unit.deadline.timestamp() + 3600.0
    pool = a_pool(ledger, ec2, lambda _: None)
    hand = Hand(unit, 1, USD_PER_HOUR, unit.created_at.timestamp(), old)

    def cut(*_: object, **__: object) -> None:
        raise ConnectionLost("cut")

    session = SimpleNamespace(run=cut)
    hand.unit = cast("Any", SimpleNamespace(instance_id=unit.instance_id, session=session, agent=None, opened=True))
    extend(pool.cloud, ledger, pool.observe, hand, new, pool.tell)
    until(lambda: pool._events)
    pool.do_what_was_told()
    assert (hand.view().deadline, hand.view().sure_until) == (new, old)


@pytest.mark.parametrize("takes_it", [True, False])
def test_a_nearer_deadline_is_planned_with_at_once_and_paid_for_once_the_machine_has_it(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, takes_it: bool
) -> None:
    unit = joined_unit(ledger, ec2 := Ec2(), timedelta(hours=2))
    old, new = unit.deadline.timestamp(), unit.deadline.timestamp() - 3600.0
    pool = a_pool(ledger, ec2, lambda _: None)
    hand = Hand(unit, 1, USD_PER_HOUR, unit.created_at.timestamp(), old)
    asked = Event()

    def move(*_: object) -> None:
        asked.wait(120)
        if not takes_it:
            raise ConnectionLost("cut")

    monkeypatch.setattr("cloudrun.pools.extending.move_deadline", move)
    hand.unit = cast("Any", SimpleNamespace(instance_id=unit.instance_id, session=None, agent=None, opened=True))
    extend(pool.cloud, ledger, pool.observe, hand, new, pool.tell)
    assert (hand.view().deadline, hand.view().sure_until) == (old, new)
    asked.set()
    until(lambda: pool._events)
    pool.do_what_was_told()
    assert (hand.view().deadline, hand.view().sure_until) == ((new, None) if takes_it else (old, new))


def test_a_machine_that_nobody_has_logged_into_yet_is_extended_later(ledger: Ledger) -> None:
    unit = joined_unit(ledger, ec2 := Ec2(), timedelta(hours=1))
    old = unit.deadline.timestamp()
    pool = a_pool(ledger, ec2, lambda _: None)
    hand = Hand(unit, 1, USD_PER_HOUR, unit.created_at.timestamp(), old)
    hand.unit = cast("Any", SimpleNamespace(instance_id=unit.instance_id, opened=False))
    extend(pool.cloud, ledger, pool.observe, hand, old + 3600.0, pool.tell)
    assert hand.deadline == old, "it is asked for again once somebody can tell it"
