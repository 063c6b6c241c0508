"""What a pool does about machines that are of no use: nobody gets in, or nobody needs them any more."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from cloudrun.core.errors import Cancelled, ConnectionLost, LaunchError, UnitGone
from cloudrun.core.events import Event, Note
from cloudrun.ledger import Ledger
from cloudrun.pools import fleet
from cloudrun.pools import pool as pools
from cloudrun.pools.pooled import PooledUnit
from cloudrun.pools.work import Joined
from tests.fakes import Ec2
from tests.pooling import USD_PER_HOUR, Cells, Lingering, Unit, a_pool, joined_unit


class Shut(Unit):
    """It lets nobody in."""

    def open(self) -> None:
        self._hand_back()
        raise ConnectionLost("it lets nobody in")


class Booting(Unit):
    """It never gets further, and goes when it is told to; EC2 says so before anybody else."""

    def open(self) -> None:
        self.stop.wait()
        self._hand_back()
        raise LaunchError("it went to shutting-down before it let us in")


def test_the_cells_of_a_machine_that_lets_nobody_in_are_told_and_the_others_go_on(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is on its way out it is nobody's to extend, however near its deadline is."""
    monkeypatch.setattr(fleet, "PooledUnit", Shut)
    unit = joined_unit(ledger, ec2 := Lingering(), timedelta(minutes=2))
    cells, decisions = Cells(running=2), 0

    def changed(pool: pools.Pool) -> None:
        nonlocal decisions
        decisions += bool(cells.errors)
        if decisions == 2:
            ec2.gone.set()
        elif decisions > 2:
            cells.over.set()

    a_pool(ledger, ec2, changed).run(cells, Joined(((unit, USD_PER_HOUR, ("one", "two")),)))
    assert [type(error) for error in cells.errors] == [UnitGone, UnitGone]


def test_machines_that_get_ready_for_what_was_stopped_are_spared_and_nobody_is_warned(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "PooledUnit", Booting)
    said: list[Event] = []
    unit = joined_unit(ledger, ec2 := Ec2(), timedelta(hours=2))
    cells = Cells(running=0)
    cells.why_stopped = "all cells fail"
    cells.over.set()
    a_pool(ledger, ec2, lambda _: None, observe=said.append).run(cells, Joined(((unit, USD_PER_HOUR, ()),)))
    assert ec2.states[unit.instance_id] == "terminated"
    assert not [each.text for each in said if isinstance(each, Note) and each.level == "warning"]


@pytest.mark.parametrize("begins_jobs", [True, False])
def test_where_no_further_cell_is_begun_those_that_run_go_on_and_those_that_wait_for_an_environment_do_not(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, begins_jobs: bool
) -> None:
    monkeypatch.setattr(fleet, "PooledUnit", Unit)
    unit = joined_unit(ledger, ec2 := Ec2(), timedelta(hours=2))

    def carry_out(machine: PooledUnit) -> None:
        machine.begins_jobs = begins_jobs
        cells.why_stopped = "all cells fail"
        machine.stop.wait(1.0 if begins_jobs else 30.0)
        machine.check_cancelled()

    cells: Any = Cells(running=1, carry_out=carry_out)
    cells.over.set()
    a_pool(ledger, ec2, lambda _: None).run(cells, Joined(((unit, USD_PER_HOUR, ("cell",)),)))
    assert [type(error) for error in cells.errors] == [type(None) if begins_jobs else Cancelled]
