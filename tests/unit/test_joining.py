"""What becomes of a unit that could not be joined after all: it is left as it was."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cloudrun.core.errors import Cancelled, CapacityError, ConnectionLost, LaunchError, UsageError
from cloudrun.core.events import nobody
from cloudrun.core.records import ClientRecord, Instance, OnExit
from cloudrun.core.settings import Settings
from cloudrun.core.states import UnitState
from cloudrun.ledger import Ledger
from cloudrun.ssh.keys import make_key
from cloudrun.units import joining, launching
from cloudrun.units.clients import this_client
from cloudrun.units.joining import start
from cloudrun.units.launching import wait_running
from cloudrun.units.rented import RentedUnit
from tests.fakes import HOUR, Ec2, ManualClock, cloud_of, intend, launch_one


class FullEc2(Ec2):
    def start(self, ids: Sequence[str]) -> None:
        raise CapacityError("EC2 has none left")

    def stop(self, ids: Sequence[str]) -> None: ...  # as EC2 does where it is stopped already

    def terminate(self, ids: Sequence[str]) -> None:
        raise AssertionError("its disk is the user's")


class StartingEc2(Ec2):
    """One that starts what it is asked to. `behind` is how many answers after that still say `stopped`; `lost`, whether
    the answer to the start is; `refused` is how many requests to stop it are, as of an instance that is still pending.
    """

    behind: int = 0
    lost: bool = False
    refused: int = 0

    def start(self, ids: Sequence[str]) -> None:
        self.states.update((each, "running") for each in ids)
        if self.lost:
            raise ConnectionLost("no answer")

    def stop(self, ids: Sequence[str]) -> None:
        if self.refused:
            self.refused -= 1
            raise LaunchError("IncorrectInstanceState")
        self.states.update((each, "stopped") for each in ids)
        self.behind = 0

    def describe(self, ids: Sequence[str]) -> dict[str, Instance]:
        found = super().describe(ids)
        if self.behind and "running" in self.states.values():
            self.behind -= 1
            return {each: replace(instance, state="stopped") for each, instance in found.items()}
        return found


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path)


def stopped(ledger: Ledger, clock: ManualClock, ec2: Ec2) -> str:
    unit = launch_one(ledger, clock, ec2)
    for state in (UnitState.BOOTING, UnitState.READY, UnitState.STOPPING, UnitState.STOPPED):
        ledger.move_unit(unit.instance_id, state)
    ledger.update_unit(unit.instance_id, client_id="", on_exit="stop")
    ec2.states[unit.instance_id] = "stopped"
    return unit.instance_id


def a_client_s(
    ledger: Ledger, clock: ManualClock, ec2: Ec2, settings: Settings | None = None
) -> tuple[RentedUnit, ClientRecord]:
    """A unit that is about to be joined, by this client."""
    unit = RentedUnit(cloud_of(ec2), ledger, settings or Settings(), nobody, clock)
    client = this_client(clock.now())
    ledger.register_client(client)
    unit.client_id = client.client_id
    return unit, client


def test_one_that_ec2_has_no_room_to_start_stays_stopped_and_is_left_to_its_owner(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), FullEc2()
    name = stopped(ledger, clock, ec2)
    unit, client = a_client_s(ledger, clock, ec2)
    with pytest.raises(CapacityError):
        unit.join(name, client)
    unit.close()
    row = ledger.unit(name)
    assert (row.state, row.on_exit, row.client_id) == (UnitState.STOPPED, "stop", "")


def test_one_whose_start_is_interrupted_is_stopped_again(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    name = stopped(ledger, clock, ec2)
    unit, client = a_client_s(ledger, clock, ec2)
    unit.cancel()
    with pytest.raises(Cancelled):
        unit.join(name, client)
    assert (ledger.unit(name).state, ec2.states[name]) == (UnitState.BOOTING, "running"), "it was too late for this"
    unit.close()
    row = ledger.unit(name)
    assert ec2.states[name] == "stopped"
    assert (row.state, row.on_exit, row.client_id) == (UnitState.STOPPED, "stop", "")


class Pressed(Ledger):
    """Ctrl-C comes when a unit has just been taken."""

    def take_unit(self, instance_id: str, client_id: str, *, of: str, on_exit: OnExit) -> bool:
        taken = super().take_unit(instance_id, client_id, of=of, on_exit=on_exit)
        signal.raise_signal(signal.SIGINT)
        return taken


def test_one_that_was_taken_when_the_user_interrupted_is_handed_back(tmp_path: Path) -> None:
    clock, ec2, ledger = ManualClock(), StartingEc2(), Pressed(tmp_path)
    name = stopped(ledger, clock, ec2)
    unit, client = a_client_s(ledger, clock, ec2)
    with pytest.raises(KeyboardInterrupt):
        unit.join(name, client)
    unit.close()
    row = ledger.unit(name)
    assert (row.state, row.on_exit, row.client_id) == (UnitState.STOPPED, "stop", ""), "or a reaper terminates it"


def test_one_whose_start_was_never_answered_is_stopped_again(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    name = stopped(ledger, clock, ec2)
    ec2.lost = True
    with pytest.raises(ConnectionLost):
        join(ledger, clock, ec2, name)
    assert (ledger.unit(name).state, ec2.states[name]) == (UnitState.STOPPED, "stopped")


def test_that_it_is_stopped_is_old_news_where_ec2_has_refused_to_stop_it(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    name = stopped(ledger, clock, ec2)
    ec2.lost, ec2.behind, ec2.refused = True, 3, 2
    with pytest.raises(ConnectionLost):
        join(ledger, clock, ec2, name)
    assert (ledger.unit(name).state, ec2.states[name]) == (UnitState.STOPPED, "stopped"), "or it bills on"


def test_a_kept_one_that_somebody_had_stopped_does_not_run_on_where_its_start_goes_wrong(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    name = stopped(ledger, clock, ec2)
    ledger.update_unit(name, on_exit="keep")
    ec2.lost = True
    with pytest.raises(ConnectionLost):
        join(ledger, clock, ec2, name)
    assert (ledger.unit(name).state, ec2.states[name]) == (UnitState.STOPPED, "stopped")


def test_one_that_ec2_calls_stopped_right_after_its_start_is_waited_for(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    name = stopped(ledger, clock, ec2)
    start(cloud_of(ec2), ledger, ledger.unit(name), Settings(), clock)
    ec2.behind = 5
    found = wait_running(cloud_of(ec2), ledger, name, timeout_s=600, clock=clock, cancelled=lambda: None, started=True)
    assert (ec2.behind, found.state, ledger.unit(name).state) == (0, "running", UnitState.BOOTING)


def test_one_that_stays_stopped_is_not_waited_for_as_long_as_for_a_boot(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    name = stopped(ledger, clock, ec2)
    ec2.behind = 10**6
    with pytest.raises(LaunchError, match="went to stopped"):
        join(ledger, clock, ec2, name)
    assert clock.slept_s < 60
    assert (ledger.unit(name).state, ec2.states[name]) == (UnitState.STOPPED, "stopped")


@pytest.mark.parametrize("budget", [0.1, 0.0001])
def test_one_that_could_cost_more_than_the_budget_until_its_new_deadline_is_not_started(
    ledger: Ledger, budget: float
) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    name = stopped(ledger, clock, ec2)
    before = ledger.unit(name)
    with pytest.raises(UsageError, match=r"a m7i\.large could cost"):
        join(ledger, clock, ec2, name, Settings(budget=budget, instance_type="t3.nano"))
    assert (ledger.unit(name), ec2.states[name]) == (before, "stopped")


def test_one_that_the_budget_pays_for_is_started(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), FullEc2()
    name = stopped(ledger, clock, ec2)
    with pytest.raises(CapacityError):  # EC2 was asked
        join(ledger, clock, ec2, name, Settings(budget=0.1, deadline_s=1800.0))


def test_one_that_ec2_has_ended_is_not_waited_for(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), FullEc2()
    name = stopped(ledger, clock, ec2)
    ec2.states[name] = "terminated"
    with pytest.raises(UsageError, match="not there any more"):
        start(cloud_of(ec2), ledger, ledger.unit(name), Settings(), clock)


def test_its_ledger_has_the_later_deadline_before_it_is_started(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), FullEc2()
    name = stopped(ledger, clock, ec2)
    before = ledger.unit(name).deadline
    clock.sleep((5 * HOUR).total_seconds())
    with pytest.raises(CapacityError):
        start(cloud_of(ec2), ledger, ledger.unit(name), Settings(deadline_s=3600.0), clock)
    assert ledger.unit(name).deadline == clock.now() + HOUR > before


@pytest.fixture
def kept(ledger: Ledger) -> tuple[ManualClock, Ec2, str]:
    """A unit that was kept an hour ago, at an address where nobody answers."""
    clock, ec2 = ManualClock(), Ec2()
    row = launch_one(ledger, clock, ec2)
    for state in (UnitState.BOOTING, UnitState.READY):
        ledger.move_unit(row.instance_id, state)
    ledger.update_unit(row.instance_id, client_id="", on_exit="keep", address="127.0.0.1", ssh_port=9)
    ledger.key_path(row.launch_id).parent.mkdir(parents=True, exist_ok=True)
    key = make_key("test")
    ledger.key_path(row.launch_id).write_text(key.private)
    ledger.update_unit(row.instance_id, host_key=" ".join(key.public.split()[:2]))
    clock.sleep(HOUR.total_seconds())
    return clock, ec2, row.instance_id


def join(ledger: Ledger, clock: ManualClock, ec2: Ec2, name: str, settings: Settings | None = None) -> None:
    unit, client = a_client_s(ledger, clock, ec2, settings)
    try:
        unit.join(name, client)
    finally:
        unit.close()


def test_a_kept_one_that_ec2_has_forgotten_is_not_waited_for_either(
    ledger: Ledger, kept: tuple[ManualClock, Ec2, str]
) -> None:
    clock, ec2, name = kept
    ec2.states.clear()
    with pytest.raises(LaunchError, match="EC2 no longer knows it"):
        join(ledger, clock, ec2, name)


def test_a_kept_one_that_somebody_has_stopped_can_be_started_next(
    ledger: Ledger, kept: tuple[ManualClock, Ec2, str]
) -> None:
    clock, ec2, name = kept
    ec2.states[name] = "stopped"
    with pytest.raises(LaunchError, match="went to stopped") as caught:
        join(ledger, clock, ec2, name)
    assert "started" in caught.value.next_step
    assert ledger.unit(name).state is UnitState.STOPPED
    assert ec2.states[name] == "stopped", "it is left as it was"


def test_one_that_was_stopped_before_it_was_seen_to_run_can_be_started_next(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), Ec2()
    name = launch_one(ledger, clock, ec2).instance_id
    ledger.update_unit(name, client_id="", on_exit="keep")
    ec2.states[name] = "stopped"
    assert ledger.unit(name).state is UnitState.LAUNCHING
    with pytest.raises(LaunchError, match="went to stopped") as caught:
        join(ledger, clock, ec2, name)
    assert "started" in caught.value.next_step
    assert ledger.unit(name).state is UnitState.STOPPED


def test_why_one_was_not_joined_is_told_also_where_ec2_does_not_say_whether_it_was_stopped(
    ledger: Ledger, kept: tuple[ManualClock, Ec2, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, ec2, name = kept
    ec2.states[name] = "stopped"

    def unanswered(*_: object) -> bool:
        raise ConnectionLost("no answer")

    monkeypatch.setattr(joining, "note_stopped", unanswered)
    with pytest.raises(LaunchError, match="went to stopped"):
        join(ledger, clock, ec2, name)


def test_a_machine_that_would_end_itself_at_its_next_start_is_not_stopped(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    launch = intend(ledger, clock, overdue_grace_s=0.0)
    (unit,) = launching.request(cloud_of(ec2), ledger, launch, clock)
    joining.check_stop(ledger, unit, Settings(on_exit="keep"))
    with pytest.raises(UsageError, match="would terminate itself"):
        joining.check_stop(ledger, unit, Settings(on_exit="stop"))


def test_a_stopped_machine_waits_for_its_owner_for_longer_than_a_boot_may_take() -> None:
    settings = Settings(boot_timeout_s=1800.0)
    assert joining.overdue_grace_s(settings) > settings.boot_timeout_s
    assert joining.overdue_grace_s(replace(settings, budget=1.0, on_exit="stop")) > settings.boot_timeout_s
    assert joining.overdue_grace_s(replace(settings, budget=1.0)) == 0, "or a reboot could cost more than the budget"


def test_a_budget_pays_for_all_the_time_that_a_started_machine_waits_for_its_owner(ledger: Ledger) -> None:
    clock, ec2 = ManualClock(), StartingEc2()
    unit = ledger.unit(stopped(ledger, clock, ec2))
    settings = Settings(budget=0.005, deadline_s=60.0)  # $0.1008 an hour: three minutes
    with pytest.raises(UsageError, match="could cost"):
        joining.check_start(ledger, unit, settings)
    joining.check_start(ledger, unit, replace(settings, budget=0.02))
