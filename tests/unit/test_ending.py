"""The end of a launch against an EC2 that is late, forgetful or gone, and a ledger that cannot be used."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun import launching, reaper, wiring
from cloudrun.clients import this_client
from cloudrun.core.errors import (
    CleanupIncomplete,
    CloudrunError,
    CredentialsError,
    LedgerError,
    UnresolvedLaunch,
    UsageError,
)
from cloudrun.core.events import Event, nobody
from cloudrun.core.records import (
    ClientRecord,
    Instance,
    LaunchRecord,
    LaunchRequest,
    Leftovers,
    Place,
    RunRecord,
    UnitRecord,
)
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.opening import close_behind
from cloudrun.units import OpenUnit
from cloudrun.wiring import Cloud

PLACE = Place("aws", "eu-west-1", "111122223333")
HOUR = timedelta(hours=1)


@dataclass
class Hands:
    """A clock that is turned by whoever sleeps."""

    time: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)
    slept_s: float = 0.0

    def now(self) -> datetime:
        return self.time + timedelta(seconds=self.slept_s)

    def monotonic(self) -> float:
        return self.slept_s

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


@dataclass
class Ec2:
    """Instances by id, and what goes wrong: `deaf` is how many requests to end are lost without an error."""

    states: dict[str, str] = field(default_factory=dict)
    deaf: int = 0
    blind: bool = False
    launches: list[str] = field(default_factory=list)
    run_error: Callable[[LaunchRequest], CloudrunError | None] = lambda _: None

    def run(self, request: LaunchRequest, *, asked_before: bool = False) -> tuple[Instance, ...]:
        self.launches.append(request.client_token)
        if error := self.run_error(request):
            raise error
        instance_id = f"i-{request.client_token}"
        self.states.setdefault(instance_id, "pending")
        return (self._instance(instance_id),)

    def _instance(self, instance_id: str) -> Instance:
        return Instance(instance_id, self.states[instance_id], "m7i.large", None, "192.0.2.1")

    def describe(self, ids: Sequence[str]) -> dict[str, Instance]:
        return {} if self.blind else {each: self._instance(each) for each in ids if each in self.states}

    def owned(self, ledger_id: str, *, launch_id: str | None = None) -> list[Instance]:
        return []

    def terminate(self, ids: Sequence[str]) -> None:
        if self.deaf:
            self.deaf -= 1
            return
        self.states.update((each, "terminated") for each in ids if each in self.states)


@dataclass
class Network:
    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    key_error: CloudrunError | None = None

    def delete_key_pair(self, name: str) -> None:
        if self.key_error:
            raise self.key_error
        self.keys = [key for key in self.keys if key != name]

    def delete_security_group(self, group: str) -> bool:
        self.groups = [each for each in self.groups if each != group]
        return True

    def leftovers(self, ledger_id: str, *, launch_id: str | None = None) -> Leftovers:
        return Leftovers() if launch_id else Leftovers(tuple(self.keys), tuple(self.groups))


def cloud_of(ec2: Ec2, network: Network | None = None) -> Cloud:
    parts = SimpleNamespace(place=PLACE, instances=ec2, network=network or Network(), notes=(), exists=lambda: True)
    return cast("Cloud", parts)


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    yield opened
    opened.close()


def intend(ledger: Ledger, clock: Hands, launch_id: str = "l-1", client_id: str = "c-1") -> LaunchRecord:
    request = LaunchRequest(
        launch_id, 1, "m7i.large", "ami-1", "/dev/sda1", 20, f"cloudrun-{launch_id}", f"sg-{launch_id}", "", {}
    )
    launch = LaunchRecord(
        launch_id, PLACE, LaunchState.INTENDED, request, "ubuntu", client_id,
        clock.now() + 4 * HOUR, "terminate", "ssh-ed25519 A", clock.now(),
    )  # fmt: skip
    ledger.intend(launch)
    return launch


def launch_one(ledger: Ledger, clock: Hands, ec2: Ec2, launch_id: str = "l-1", client_id: str = "c-1") -> UnitRecord:
    launch = intend(ledger, clock, launch_id, client_id)
    (unit,) = launching.request(cloud_of(ec2), ledger, launch, clock)
    ec2.states[unit.instance_id] = "running"
    return unit


def end(ledger: Ledger, clock: Hands, ec2: Ec2, instance_id: str) -> None:
    launching.terminate(cloud_of(ec2), ledger, [instance_id], reason=EndReason.COMPLETED, timeout_s=60, clock=clock)


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


def test_a_request_to_end_that_came_too_early_is_made_again(ledger: Ledger, clock: Hands) -> None:
    ec2 = Ec2(deaf=2)
    unit = launch_one(ledger, clock, ec2)
    end(ledger, clock, ec2, unit.instance_id)
    assert ec2.states[unit.instance_id] == "terminated"
    assert clock.slept_s < 5


def test_an_instance_that_ec2_has_forgotten_is_gone(ledger: Ledger, clock: Hands) -> None:
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    clock.sleep(6 * 3600)  # the laptop slept, the deadline passed
    del ec2.states[unit.instance_id]
    end(ledger, clock, ec2, unit.instance_id)
    assert ledger.units() == []


def test_a_new_instance_that_is_not_seen_is_not_taken_for_gone(ledger: Ledger, clock: Hands) -> None:
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    ec2.blind = True
    with pytest.raises(CleanupIncomplete):
        end(ledger, clock, ec2, unit.instance_id)
    assert [each.instance_id for each in ledger.units()] == [unit.instance_id]


def test_machines_that_the_ledger_cannot_hold_do_not_live(tmp_path: Path, clock: Hands) -> None:
    ledger, ec2 = Full(tmp_path), Ec2()
    launch = intend(ledger, clock)
    ledger.full = True
    with pytest.raises(LedgerError, match="full"):
        launching.request(cloud_of(ec2), ledger, launch, clock)
    assert ec2.states == {"i-l-1": "terminated"}


def open_unit(ledger: Ledger, clock: Hands, ec2: Ec2, observe: Callable[[Event], None] = nobody) -> OpenUnit:
    unit = OpenUnit(cloud_of(ec2), ledger, Settings(), observe, clock)
    unit.record = launch_one(ledger, clock, ec2)
    unit.client_id = unit.record.client_id
    unit.opened = True
    unit._ending.callback(unit._release, "l-1")
    unit._ending.callback(unit._end_instances, "l-1")
    return unit


def test_a_ledger_that_cannot_be_read_keeps_no_machine_alive(tmp_path: Path, clock: Hands) -> None:
    ledger, ec2 = Full(tmp_path), Ec2()
    unit = open_unit(ledger, clock, ec2)
    ledger.gone = True
    with pytest.raises(LedgerError):
        unit.close()
    assert ec2.states == {"i-l-1": "terminated"}


def test_an_observer_that_fails_keeps_no_machine_alive(ledger: Ledger, clock: Hands) -> None:
    def observe(event: Event) -> None:
        raise RuntimeError("no more")

    ec2 = Ec2()
    open_unit(ledger, clock, ec2, observe).close()
    assert ec2.states == {"i-l-1": "terminated"}


def test_whoever_closes_second_learns_that_it_failed(ledger: Ledger, clock: Hands) -> None:
    ec2 = Ec2(deaf=10_000)
    unit = open_unit(ledger, clock, ec2)
    with pytest.raises(CleanupIncomplete):
        unit.close()
    first_cause = KeyboardInterrupt()
    close_behind(unit, first_cause)
    assert getattr(first_cause, "cleanup_incomplete", False)
    assert "i-l-1" in first_cause.__notes__[0]


def test_a_forked_child_ends_nothing(ledger: Ledger, clock: Hands) -> None:
    ec2 = Ec2()
    unit = open_unit(ledger, clock, ec2)
    unit._pid = os.getpid() + 1
    unit.close()
    assert ec2.states == {"i-l-1": "running"}


def test_a_machine_that_never_let_us_in_is_not_kept(ledger: Ledger, clock: Hands) -> None:
    ec2 = Ec2()
    unit = open_unit(ledger, clock, ec2)
    unit.settings = Settings(on_exit="keep")
    unit.opened = False
    unit.close()
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_closed_unit_is_nobodys_though_its_process_lives(ledger: Ledger, clock: Hands) -> None:
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
def test_a_unit_at_its_end_is_not_joined(ledger: Ledger, clock: Hands, state: UnitState) -> None:
    unit = launch_one(ledger, clock, Ec2())
    ledger.move_unit(unit.instance_id, state)
    client = this_client(clock.now())
    with pytest.raises(UsageError, match=str(state)):
        OpenUnit(cloud_of(Ec2()), ledger, Settings(), nobody, clock).join(unit.instance_id, client)


def test_a_unit_in_use_is_not_joined(ledger: Ledger, clock: Hands) -> None:
    client = this_client(clock.now())
    ledger.register_client(client)
    unit = launch_one(ledger, clock, Ec2(), client_id=client.client_id)
    with pytest.raises(UsageError, match="in use"):
        OpenUnit(cloud_of(Ec2()), ledger, Settings(), nobody, clock).join(unit.instance_id, this_client(clock.now()))
    assert ledger.unit(unit.instance_id) == unit


def test_all_of_a_launchs_leftovers_are_tried(ledger: Ledger, clock: Hands) -> None:
    intend(ledger, clock)
    network = Network(["cloudrun-l-1"], ["sg-l-1"], CloudrunError("throttled"))  # whose list misses the new group
    with pytest.raises(CleanupIncomplete, match="throttled") as caught:
        launching.release_resources(cloud_of(Ec2(), network), ledger, "l-1", timeout_s=10, clock=clock)
    assert network.groups == []
    assert caught.value.ids == ("cloudrun-l-1",)


# -- the reaper --------------------------------------------------------------------------------------------------------


def test_an_earlier_launch_that_asking_again_brings_about_is_ended(ledger: Ledger, clock: Hands) -> None:
    intend(ledger, clock)
    ledger.move_launch("l-1", LaunchState.REQUESTED)  # and its client died before the request left
    ec2 = Ec2()
    assert reaper.settle(cloud_of(ec2), ledger, clock, nobody) == []
    assert ec2.states == {"i-l-1": "terminated"}
    assert ledger.units() == []


def test_one_launch_that_stays_unknown_does_not_keep_the_reaper_from_the_rest(ledger: Ledger, clock: Hands) -> None:
    intend(ledger, clock, "l-lost")
    ledger.move_launch("l-lost", LaunchState.REQUESTED)
    ec2 = Ec2(run_error=lambda request: UnresolvedLaunch("no answer") if request.client_token == "l-lost" else None)
    unit = launch_one(ledger, clock, ec2)
    ec2.owned = lambda ledger_id, *, launch_id=None: [ec2._instance(unit.instance_id)]  # type: ignore[method-assign]
    network = Network(["cloudrun-l-lost", "cloudrun-l-1"])
    actions = reaper.reap_place(cloud_of(ec2, network), ledger, clock, nobody, dry_run=False)
    assert ec2.states[unit.instance_id] == "terminated"
    assert [action.problem for action in actions if action.problem] == ["no answer"]
    assert network.keys == ["cloudrun-l-lost"], "the same request may be made again, and names it"


def test_one_place_that_fails_does_not_keep_the_reaper_from_others(
    ledger: Ledger, clock: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = intend(ledger, clock)
    ledger.intend(replace(launch, launch_id="l-2", place=Place("aws", "us-east-1")))
    seen = []

    def reap_place(cloud: Any, *_: object, **__: object) -> list[reaper.ReapAction]:
        seen.append(cloud)
        raise CloudrunError("throttled")

    monkeypatch.setattr(wiring, "reconnect", lambda place, profile: place)
    monkeypatch.setattr(reaper, "reap_place", reap_place)
    report = reaper.reap(ledger)
    assert len(seen) == 2
    assert [action.problem for action in report.problems] == ["throttled", "throttled"]


def test_a_client_that_has_launched_nothing_yet_keeps_its_key(ledger: Ledger, clock: Hands) -> None:
    """Between the making of its key pair and its intent the ledger knows only the client."""
    client = replace(this_client(clock.now()), client_id="c-new")
    ledger.register_client(client)
    network = Network(["cloudrun-l-new"], ["sg-new"])
    assert reaper.reap_place(cloud_of(Ec2(), network), ledger, clock, nobody, dry_run=False) == []
    assert network.keys == ["cloudrun-l-new"]


def test_a_run_whose_machine_and_client_are_gone_does_not_go_on_for_ever(ledger: Ledger, clock: Hands) -> None:
    unit = launch_one(ledger, clock, Ec2())
    ledger.add_run(RunRecord("r-1", "train", "train.py", RunState.QUEUED, clock.now()))
    ledger.begin_attempt("r-1", unit.instance_id, clock.now())
    ledger.move_unit(unit.instance_id, UnitState.TERMINATED)
    assert [each.target for each in reaper._end_orphans(ledger, clock, nobody, None, dry_run=True)] == ["r-1"]
    assert ledger.run("r-1").state is RunState.SHIPPING
    reaper._end_orphans(ledger, clock, nobody, None, dry_run=False)
    assert (ledger.run("r-1").state, ledger.attempts("r-1")[0].state) == (RunState.LOST, RunState.LOST)


def test_a_run_that_its_living_client_still_ends_is_left_alone(ledger: Ledger, clock: Hands) -> None:
    client: ClientRecord = this_client(clock.now())
    ledger.register_client(client)
    unit = launch_one(ledger, clock, Ec2(), client_id=client.client_id)
    ledger.add_run(RunRecord("r-1", "train", "train.py", RunState.QUEUED, clock.now()))
    ledger.begin_attempt("r-1", unit.instance_id, clock.now())
    ledger.move_unit(unit.instance_id, UnitState.TERMINATED)
    assert reaper._end_orphans(ledger, clock, nobody, None, dry_run=False) == []


def test_machines_of_another_account_are_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    here = SimpleNamespace(place=Place("aws", "eu-west-1", "999988887777"))
    monkeypatch.setattr(wiring, "connect", lambda *_: here)
    with pytest.raises(CredentialsError, match="111122223333"):
        wiring.reconnect(PLACE)
    monkeypatch.setattr(wiring, "connect", lambda *_: SimpleNamespace(place=PLACE))
    assert wiring.reconnect(PLACE) is not None


def test_a_machine_left_open_is_ended_at_the_interpreters_end(tmp_path: Path) -> None:
    """After every finalizer of Python's own: the ledger has to be usable still."""
    script = """
import sys
from pathlib import Path
from cloudrun.core.events import nobody
from cloudrun.lifeline import LIFELINE
from tests.unit.test_ending import Ec2, Hands, Ledger, open_unit
ec2 = Ec2()
ledger, clock = Ledger(Path(sys.argv[1])), Hands()
unit = open_unit(ledger, clock, ec2)
LIFELINE.add(unit)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert Ledger(tmp_path).unit("i-l-1").state is UnitState.TERMINATED
