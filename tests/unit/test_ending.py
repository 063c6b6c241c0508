"""The end of a launch against an EC2 that is late, forgetful or gone, and a ledger that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cloudrun.core.errors import CleanupIncomplete, CloudrunError, LedgerError, UsageError
from cloudrun.core.events import Event, nobody
from cloudrun.core.records import LaunchRecord, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, UnitState
from cloudrun.ledger import Ledger
from cloudrun.units import launching, terminating
from cloudrun.units.clients import this_client
from cloudrun.units.opening import close_behind
from cloudrun.units.rented import RentedUnit
from tests.fakes import Ec2, ManualClock, Network, cloud_of, intend, launch_one, open_unit


def end(ledger: Ledger, clock: ManualClock, ec2: Ec2, instance_id: str) -> None:
    terminating.terminate(cloud_of(ec2), ledger, [instance_id], reason=EndReason.COMPLETED, timeout_s=60, clock=clock)


class Full(Ledger):
    """A ledger on a disk without room, from the moment it is said."""

    full = False
    gone = False

    def resolve_launch(self, launch_id: str, units: Sequence[UnitRecord]) -> None:
        if self.full:
            raise LedgerError("the disk is full")
        super().resolve_launch(launch_id, units)

    def launch(self, launch_id: str) -> LaunchRecord:
        if self.gone:
            raise LedgerError("the ledger is locked")
        return super().launch(launch_id)

    def unit(self, instance_id: str) -> UnitRecord:
        if self.gone:
            raise LedgerError("the ledger is locked")
        return super().unit(instance_id)

    def move_unit(self, instance_id: str, state: UnitState, *, reason: EndReason | None = None) -> None:
        if self.gone:
            raise LedgerError("the ledger is locked")
        super().move_unit(instance_id, state, reason=reason)


def test_a_request_to_end_that_came_too_early_is_made_again(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2(deaf=2)
    unit = launch_one(ledger, clock, ec2)
    end(ledger, clock, ec2, unit.instance_id)
    assert ec2.states[unit.instance_id] == "terminated"
    assert clock.slept_s < 5


def test_an_instance_that_ec2_has_forgotten_is_gone(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    clock.sleep(6 * 3600)  # the laptop slept, the deadline passed
    del ec2.states[unit.instance_id]
    end(ledger, clock, ec2, unit.instance_id)
    assert ledger.units() == []


def test_a_new_instance_that_is_not_seen_is_not_taken_for_gone(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    ec2.blind = True
    with pytest.raises(CleanupIncomplete):
        end(ledger, clock, ec2, unit.instance_id)
    assert [each.instance_id for each in ledger.units()] == [unit.instance_id]


def test_machines_that_the_ledger_cannot_hold_do_not_live(tmp_path: Path, clock: ManualClock) -> None:
    ledger, ec2 = Full(tmp_path), Ec2()
    launch = intend(ledger, clock)
    ledger.full = True
    with pytest.raises(LedgerError, match="full"):
        launching.request(cloud_of(ec2), ledger, launch, clock)
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_ledger_that_cannot_be_read_keeps_no_machine_alive(tmp_path: Path, clock: ManualClock) -> None:
    ledger, ec2 = Full(tmp_path), Ec2()
    unit = open_unit(ledger, clock, ec2)
    ledger.gone = True
    with pytest.raises(LedgerError):
        unit.close()
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_ledger_that_cannot_be_read_keeps_no_machine_from_being_stopped(tmp_path: Path, clock: ManualClock) -> None:
    ledger, ec2 = Full(tmp_path), Ec2()
    unit = open_unit(ledger, clock, ec2)
    unit.settings = Settings(on_exit="stop")
    ledger.gone = True
    with pytest.raises(LedgerError):
        unit.close()
    assert ec2.states == {"i-l-1": "stopped"}


def test_an_observer_that_fails_keeps_no_machine_alive(ledger: Ledger, clock: ManualClock) -> None:
    def observe(event: Event) -> None:
        raise RuntimeError("no more")

    ec2 = Ec2()
    open_unit(ledger, clock, ec2, observe).close()
    assert ec2.states == {"i-l-1": "terminated"}


def test_whoever_closes_second_learns_that_it_failed(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2(deaf=10_000)
    unit = open_unit(ledger, clock, ec2)
    with pytest.raises(CleanupIncomplete):
        unit.close()
    first_cause = KeyboardInterrupt()
    close_behind(unit, first_cause)
    assert getattr(first_cause, "cleanup_incomplete", False)
    assert "i-l-1" in first_cause.__notes__[0]


def test_a_forked_child_ends_nothing(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2()
    unit = open_unit(ledger, clock, ec2)
    unit._pid = os.getpid() + 1
    unit.close()
    assert ec2.states == {"i-l-1": "running"}


def test_a_machine_that_never_let_us_in_is_not_kept(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2()
    unit = open_unit(ledger, clock, ec2)
    unit.settings = Settings(on_exit="keep")
    unit.opened = False
    unit.close()
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_closed_unit_is_nobodys_though_its_process_lives(ledger: Ledger, clock: ManualClock) -> None:
    client = this_client(clock.now())
    ledger.register_client(client)
    ec2 = Ec2(deaf=10_000)
    unit = open_unit(ledger, clock, ec2)
    unit.client_id = client.client_id
    ledger.update_unit(unit.instance_id, client_id=client.client_id)
    with pytest.raises(CleanupIncomplete):
        unit.close()
    assert ledger.clients() == [], "or `cloudrun reap` would wait for this process to end"


@pytest.mark.parametrize("state", [UnitState.TERMINATING, UnitState.TERMINATED])
def test_a_unit_at_its_end_is_not_joined(ledger: Ledger, clock: ManualClock, state: UnitState) -> None:
    unit = launch_one(ledger, clock, Ec2())
    ledger.move_unit(unit.instance_id, state)
    client = this_client(clock.now())
    with pytest.raises(UsageError, match=str(state)):
        RentedUnit(cloud_of(Ec2()), ledger, Settings(), nobody, clock).join(unit.instance_id, client)


def test_a_unit_in_use_is_not_joined(ledger: Ledger, clock: ManualClock) -> None:
    client = this_client(clock.now())
    ledger.register_client(client)
    unit = launch_one(ledger, clock, Ec2(), client_id=client.client_id)
    with pytest.raises(UsageError, match="in use"):
        RentedUnit(cloud_of(Ec2()), ledger, Settings(), nobody, clock).join(unit.instance_id, this_client(clock.now()))
    assert ledger.unit(unit.instance_id) == unit


def test_all_of_a_launchs_leftovers_are_tried(ledger: Ledger, clock: ManualClock) -> None:
    intend(ledger, clock)
    network = Network(["cloudrun-l-1"], ["sg-l-1"], CloudrunError("throttled"))  # whose list misses the new group
    with pytest.raises(CleanupIncomplete, match="throttled") as caught:
        terminating.release_resources(cloud_of(Ec2(), network), ledger, "l-1", timeout_s=10, clock=clock)
    assert network.groups == []
    assert caught.value.ids == ("cloudrun-l-1",)


def test_a_machine_left_open_is_ended_at_the_interpreters_end(tmp_path: Path) -> None:
    """After every finalizer of Python's own: the ledger has to be usable still."""
    script = """
import sys
from pathlib import Path
from cloudrun.core.events import nobody
from cloudrun.ledger import Ledger
from cloudrun.units.lifeline import LIFELINE
from tests.fakes import Ec2, ManualClock, open_unit
ec2 = Ec2()
ledger, clock = Ledger(Path(sys.argv[1])), ManualClock()
unit = open_unit(ledger, clock, ec2)
LIFELINE.add(unit)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert Ledger(tmp_path).unit("i-l-1").state is UnitState.TERMINATED
