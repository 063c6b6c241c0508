"""The reaper against an EC2 that is late, forgetful or gone: one failure keeps it from nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cloudrun import reaper, wiring
from cloudrun.core.errors import CloudrunError, CredentialsError, UnresolvedLaunch
from cloudrun.core.events import nobody
from cloudrun.core.records import ClientRecord, Instance, Place, RunRecord
from cloudrun.core.states import LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.runs.printed import Printed
from cloudrun.units.clients import this_client
from tests.fakes import PLACE, RUN, Ec2, ManualClock, Network, begun, cloud_of, intend, launch_one


def test_an_earlier_launch_that_asking_again_brings_about_is_ended(ledger: Ledger, clock: ManualClock) -> None:
    intend(ledger, clock)
    ledger.move_launch("l-1", LaunchState.REQUESTED)  # and its client died before the request left
    ec2 = Ec2()
    assert reaper.settle(cloud_of(ec2), ledger, clock, nobody) == []
    assert ec2.states == {"i-l-1": "terminated"}
    assert ledger.units() == []


def test_one_launch_that_stays_unknown_does_not_keep_the_reaper_from_the_rest(
    ledger: Ledger, clock: ManualClock
) -> None:
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


def test_one_machine_that_does_not_end_does_not_keep_the_reaper_from_the_rest(
    ledger: Ledger, clock: ManualClock
) -> None:
    """The launch whose answer was lost is found out about first."""

    class Clinging(Ec2):
        def terminate(self, ids: Sequence[str]) -> None:
            super().terminate([each for each in ids if each != "i-l-lost"])

    intend(ledger, clock, "l-lost")
    ledger.move_launch("l-lost", LaunchState.REQUESTED)
    ec2 = Clinging()
    unit = launch_one(ledger, clock, ec2)
    ec2.owned = lambda ledger_id, *, launch_id=None: [ec2._instance(unit.instance_id)]  # type: ignore[method-assign]
    actions = reaper.reap_place(cloud_of(ec2), ledger, clock, nobody, dry_run=False)
    assert ec2.states[unit.instance_id] == "terminated"
    assert any("could not see i-l-lost terminated" in action.problem for action in actions)


def test_a_machine_that_is_in_no_row_is_seen_to_end(ledger: Ledger, clock: ManualClock) -> None:
    ec2 = Ec2({"i-1": "running"}, deaf=2)
    ours = Instance("i-1", "running", "m7i.large", None, "192.0.2.1", tags={"cloudrun:launch": "l-9"})
    ec2.owned = lambda ledger_id, *, launch_id=None: [ours]  # type: ignore[method-assign]
    (action, *_) = reaper.reap_place(cloud_of(ec2), ledger, clock, nobody, dry_run=False)
    assert (action.kind, action.target, action.done, action.problem) == ("terminate", "i-1", True, "")
    assert ec2.states == {"i-1": "terminated"}, "that EC2 was asked is not that it has ended"


def test_one_place_that_fails_does_not_keep_the_reaper_from_others(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
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


def test_a_client_that_has_launched_nothing_yet_keeps_its_key(ledger: Ledger, clock: ManualClock) -> None:
    """Between the making of its key pair and its intent the ledger knows only the client."""
    client = replace(this_client(clock.now()), client_id="c-new")
    ledger.register_client(client)
    network = Network(["cloudrun-l-new"], ["sg-new"])
    assert reaper.reap_place(cloud_of(Ec2(), network), ledger, clock, nobody, dry_run=False) == []
    assert network.keys == ["cloudrun-l-new"]


def test_a_run_whose_machine_and_client_are_gone_does_not_go_on_for_ever(ledger: Ledger, clock: ManualClock) -> None:
    unit = launch_one(ledger, clock, Ec2())
    ledger.add_run(RunRecord("r-1", "train", "train.py", RunState.QUEUED, clock.now()))
    ledger.begin_attempt("r-1", unit.instance_id, clock.now())
    ledger.move_unit(unit.instance_id, UnitState.TERMINATED)
    assert [each.target for each in reaper._end_orphans(ledger, clock, nobody, None, dry_run=True)] == ["r-1"]
    assert ledger.run("r-1").state is RunState.SHIPPING
    reaper._end_orphans(ledger, clock, nobody, None, dry_run=False)
    assert (ledger.run("r-1").state, ledger.attempts("r-1")[0].state) == (RunState.LOST, RunState.LOST)


def test_a_lost_run_keeps_what_its_dead_client_had_seen_of_its_logs(ledger: Ledger, clock: ManualClock) -> None:
    launch_one(ledger, clock, Ec2())
    begun(ledger, clock)
    Printed(ledger.home / "runs" / f"{RUN}.1", nobody)("stdout", b"epoch 1\naccuracy: 0.9\n")  # then it is killed
    ledger.move_unit("i-l-1", UnitState.TERMINATED)
    reaper._end_orphans(ledger, clock, nobody, None, dry_run=False)
    run = ledger.get(RUN)
    assert (run.state, run.scores) == (RunState.LOST, {"accuracy": 0.9})
    [log] = run.record.artifacts
    assert (log.path, log.kind) == ("stdout.log", "log")
    assert ledger.artifacts.path(log.sha256).read_bytes() == b"epoch 1\naccuracy: 0.9\n"


def test_a_run_that_its_living_client_still_ends_is_left_alone(ledger: Ledger, clock: ManualClock) -> None:
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
