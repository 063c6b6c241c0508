"""How a pool ends its machines: nobody waits for another's end, and what EC2 did not do is asked for again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloudrun.core.errors import CleanupIncomplete, CloudrunError
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.pools.endings import Endings
from tests.fakes import Ec2, ManualClock, cloud_of, launch_one
from tests.waiting import until


class Slow(Ec2):
    """`away`: cannot be reached. What it is asked to terminate goes when `let_go` is called."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked: list[list[str]] = []

    def terminate(self, ids: Sequence[str]) -> None:
        self.asked.append(list(ids))
        if self.away:
            raise CloudrunError("EC2 cannot be reached")
        self.states.update((each, "shutting-down") for each in ids)

    def let_go(self) -> None:
        self.states = dict.fromkeys(self.states, "terminated")


@pytest.fixture
def ec2() -> Slow:
    return Slow()


def endings(ledger: Ledger, clock: ManualClock, ec2: Ec2, timeout_s: float = 60.0) -> Endings:
    return Endings(cloud_of(ec2), ledger, timeout_s, clock, "c-1")


def machine(ledger: Ledger, clock: ManualClock, ec2: Ec2, number: int) -> str:
    return launch_one(ledger, clock, ec2, f"l-{number}").instance_id


def test_a_machine_is_asked_to_go_while_the_one_before_it_is_still_going(
    ledger: Ledger, clock: ManualClock, ec2: Slow
) -> None:
    first, second = (machine(ledger, clock, ec2, number) for number in (1, 2))
    ending = endings(ledger, clock, ec2)
    try:
        ending.add(first)
        until(lambda: ec2.asked == [[first]])
        ending.add(second)
        until(lambda: ec2.asked == [[first], [second]])
        assert ending.is_ending(first)
        ec2.let_go()
        until(lambda: not ending.is_ending(first) and not ending.is_ending(second))
    finally:
        ec2.let_go()
        ending.finish([])
    assert {ledger.unit(each).state for each in (first, second)} == {UnitState.TERMINATED}


def test_what_could_not_be_asked_for_is_asked_again_while_the_pool_runs(
    ledger: Ledger, clock: ManualClock, ec2: Slow
) -> None:
    name = machine(ledger, clock, ec2, 1)
    ec2.away = True
    ending = endings(ledger, clock, ec2, timeout_s=5.0)
    try:
        ending.add(name)
        until(lambda: ec2.asked)
        clock.sleep(600.0)
        until(lambda: len(ec2.asked) > 1)
        assert ending.is_ending(name)
        ec2.away = False
        until(lambda: ec2.states[name] == "shutting-down")
    finally:
        ec2.away = False
        ec2.let_go()
        ending.finish([])
    assert not ending.is_ending(name)


def test_the_end_names_every_machine_that_is_left(ledger: Ledger, clock: ManualClock, ec2: Slow) -> None:
    names = [machine(ledger, clock, ec2, number) for number in (1, 2)]
    ec2.away = True
    ending = endings(ledger, clock, ec2, timeout_s=0.0)
    for name in names:
        ending.add(name)
    with pytest.raises(CleanupIncomplete) as left:
        ending.finish([])
    assert sorted(left.value.ids) == names


def test_a_machine_that_another_client_took_meanwhile_is_left_to_it(
    ledger: Ledger, clock: ManualClock, ec2: Slow
) -> None:
    name = machine(ledger, clock, ec2, 1)
    ledger.update_unit(name, client_id="c-2")
    ending = endings(ledger, clock, ec2)
    ending.add(name)
    ending.finish([])
    assert ec2.asked == []
    assert ledger.unit(name).state is UnitState.LAUNCHING
