"""What a pool's machines count for: the money of each is taken until EC2 says that it is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CleanupIncomplete, CloudrunError, ConnectionLost
from cloudrun.core.events import nobody
from cloudrun.core.records import Image, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.scheduling import Backlog, Limits, UnitView, decide
from cloudrun.pools import fleet
from cloudrun.pools import pool as pools
from cloudrun.pools.extending import extend
from cloudrun.pools.hands import Hand
from cloudrun.pools.pooled import PooledUnit
from cloudrun.pools.work import Joined
from cloudrun.runs.slots import Turn
from tests.fakes import Ec2, cloud_of, launch_one
from tests.waiting import until

IMAGE = Image("ami-1", "/dev/sda1", "x86_64", "/dev/sda1", "ubuntu", 8)
LIMITS = Limits(max_units=2, slots=1, usd_per_hour=1.0, boot_s=1.0, deadline_s=4 * 3600.0, budget_usd=20.0)
USD_PER_HOUR = 1.0
CLIENT = "c-1"


class Unit(PooledUnit):
    """Nobody logs in to it."""

    def open(self) -> None:
        self._ending.callback(self._hand_back)
        self.opened = True


class Lingering(Ec2):
    """What it is asked to terminate goes on until `gone` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = Event()

    def terminate(self, ids: Sequence[str]) -> None:
        if not self.gone.is_set():
            raise CloudrunError("EC2 cannot be reached")
        super().terminate(ids)


class Cells:
    """One cell for each unit, which `carry_out` says how to do; open until `over` is set."""

    def __init__(self, running: int, carry_out: Callable[[PooledUnit], None] = lambda _: None) -> None:
        self.running = running
        self.over = Event()
        self._carry_out = carry_out

    def backlog(self) -> Backlog:
        return Backlog(0, self.running, 1.0)

    def take(self, beside: Sequence[Any]) -> Any:
        return None

    def begin(self, given: Sequence[tuple[str, Any]]) -> list[Any]:
        return [task for _, task in given]

    def carry_out(self, unit: PooledUnit, task: Any, turn: Turn) -> None:
        self._carry_out(unit)

    def ended(self, task: Any, error: BaseException | None) -> None:
        self.running -= 1

    def stopped(self) -> str:
        return ""

    def is_open(self) -> bool:
        return not self.over.is_set()

    def given_up(self, why: str, error: BaseException | None) -> None: ...


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


def joined_unit(ledger: Ledger, ec2: Ec2, life: timedelta) -> UnitRecord:
    clock = SystemClock()
    unit = launch_one(ledger, clock, ec2, "l-1", CLIENT)
    ledger.move_unit(unit.instance_id, UnitState.BOOTING)
    ledger.update_unit(unit.instance_id, deadline=clock.now() + life)
    return ledger.unit(unit.instance_id)


def a_pool(ledger: Ledger, ec2: Ec2, changed: Callable[[pools.Pool], None], timeout_s: float = 60.0) -> pools.Pool:
    settings = Settings(terminate_timeout_s=timeout_s)
    return pools.Pool(cloud_of(ec2), ledger, settings, IMAGE, LIMITS, nobody, CLIENT, SystemClock(), changed=changed)


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


def test_a_machine_that_nobody_has_logged_into_yet_is_extended_later(ledger: Ledger) -> None:
    unit = joined_unit(ledger, ec2 := Ec2(), timedelta(hours=1))
    old = unit.deadline.timestamp()
    pool = a_pool(ledger, ec2, lambda _: None)
    hand = Hand(unit, 1, USD_PER_HOUR, unit.created_at.timestamp(), old)
    hand.unit = cast("Any", SimpleNamespace(instance_id=unit.instance_id, opened=False))
    extend(pool.cloud, ledger, pool.observe, hand, old + 3600.0, pool.tell)
    assert hand.deadline == old, "it is asked for again once somebody can tell it"
