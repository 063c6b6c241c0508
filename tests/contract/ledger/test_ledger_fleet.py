"""What the ledger promises about launches, units and clients, on a real SQLite file."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest

from cloudrun.core.errors import LedgerError, NotFound
from cloudrun.core.records import Timings
from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger


def test_a_launch_comes_back_word_for_word(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.intend(make.launch())
    assert ledger.launch("launch-1") == make.launch()


def test_a_launch_is_unsettled_until_it_is_resolved_or_refused(ledger: Ledger, make: SimpleNamespace) -> None:
    for number in range(3):
        ledger.intend(make.launch(f"launch-{number}"))
    ledger.move_launch("launch-0", LaunchState.REFUSED, "no capacity")
    ledger.move_launch("launch-1", LaunchState.REQUESTED)
    ledger.move_launch("launch-1", LaunchState.UNRESOLVED, "connection closed")
    ledger.move_launch("launch-2", LaunchState.REQUESTED)
    assert [launch.launch_id for launch in ledger.launches(unsettled=True)] == ["launch-1", "launch-2"]
    ledger.resolve_launch("launch-1", [make.unit()])
    assert [launch.launch_id for launch in ledger.launches(unsettled=True)] == ["launch-2"]
    assert ledger.launch("launch-0").detail == "no capacity"


def test_resolving_twice_adds_only_the_units_that_are_new(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    ledger.resolve_launch("launch-1", [make.unit("i-1"), make.unit("i-2")])
    assert [(unit.instance_id, unit.state) for unit in ledger.units()] == [
        ("i-1", UnitState.READY),
        ("i-2", UnitState.LAUNCHING),
    ]


def test_a_launch_that_was_not_requested_is_not_resolved_and_leaves_no_unit(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    ledger.intend(make.launch())
    with pytest.raises(LedgerError, match="intended and cannot become resolved"):
        ledger.resolve_launch("launch-1", [make.unit()])
    with pytest.raises(LedgerError, match="together with its units"):
        ledger.move_launch("launch-1", LaunchState.RESOLVED)
    assert ledger.units() == []


def test_units_of_another_launch_are_refused_and_nothing_is_kept(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.intend(make.launch())
    ledger.move_launch("launch-1", LaunchState.REQUESTED)
    with pytest.raises(LedgerError, match="is of launch launch-2"):
        ledger.resolve_launch("launch-1", [make.unit("i-1"), make.unit("i-2", "launch-2")])
    assert ledger.units() == []
    assert ledger.launch("launch-1").state is LaunchState.REQUESTED


def test_a_unit_is_live_until_it_is_terminated_and_keeps_the_first_reason(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    make.launched(ledger, "i-1")
    ledger.move_unit("i-1", UnitState.TERMINATING, reason=EndReason.DEADLINE)
    assert [unit.instance_id for unit in ledger.units()] == ["i-1"]
    ledger.move_unit("i-1", UnitState.TERMINATED, reason=EndReason.UNIT_LOST)
    assert ledger.units() == []
    [unit] = ledger.units(live=False)
    assert unit.end_reason is EndReason.DEADLINE
    assert unit.ended_at is not None


def test_a_terminated_unit_never_comes_back(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    ledger.move_unit("i-1", UnitState.TERMINATED)
    for state in UnitState:
        with pytest.raises(LedgerError, match="cannot become"):
            ledger.move_unit("i-1", state)


def test_a_unit_is_taken_by_one_client_only(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    ledger.update_unit("i-1", client_id="")
    assert ledger.take_unit("i-1", "client-2", of="", on_exit="keep")
    assert not ledger.take_unit("i-1", "client-3", of="", on_exit="terminate")
    assert (ledger.unit("i-1").client_id, ledger.unit("i-1").on_exit) == ("client-2", "keep")


def test_only_what_is_given_changes_of_a_unit(ledger: Ledger, make: SimpleNamespace) -> None:
    make.launched(ledger, "i-1")
    before = ledger.unit("i-1")
    later = make.noon + timedelta(days=1)
    ledger.update_unit("i-1", address="127.0.0.9", ssh_port=2222, deadline=later, on_exit="keep")
    assert ledger.unit("i-1") == replace(before, address="127.0.0.9", ssh_port=2222, deadline=later, on_exit="keep")
    ledger.update_unit("i-1", host_key="ssh-ed25519 BBBB", client_id="client-2")
    assert ledger.unit("i-1").host_key == "ssh-ed25519 BBBB"
    assert ledger.unit("i-1").address == "127.0.0.9"


def test_what_is_not_there_is_not_found(ledger: Ledger, make: SimpleNamespace) -> None:
    for look in (ledger.unit, ledger.launch, ledger.run, ledger.get):
        with pytest.raises(NotFound):
            look("nobody")
    with pytest.raises(NotFound):
        ledger.update_unit("i-9", address="127.0.0.1")
    with pytest.raises(NotFound):
        ledger.move_run("run-9", RunState.CANCELLED)
    with pytest.raises(NotFound):
        ledger.set_timings("run-9", Timings())
    with pytest.raises(NotFound):
        ledger.beat("client-9", make.noon)
    assert ledger.client("client-9") is None
    assert ledger.attempts("run-9") == []


def test_a_client_is_as_alive_as_its_latest_beat(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger.register_client(make.client())
    ledger.beat("client-1", make.noon + timedelta(seconds=9))
    ledger.beat("client-1", make.noon + timedelta(seconds=5))
    assert ledger.client("client-1") == replace(make.client(), heartbeat_at=make.noon + timedelta(seconds=9))


def test_what_machines_took_beside_their_work_is_told_of_those_that_have_worked_and_are_over(
    ledger: Ledger, make: SimpleNamespace
) -> None:
    make.launched(ledger, "i-over", "i-idle", "i-lives")
    for instance_id in ("i-over", "i-lives"):
        for number, (after_s, provision_s) in enumerate([(30, 0.0), (30, 12.0), (90, 0.0)]):
            run = make.run(f"run-{instance_id}-{number}", environment_digest="e")
            ledger.add_run(run)
            ledger.begin_attempt(run.run_id, instance_id, make.unit().created_at + timedelta(seconds=after_s))
            ledger.move_run(run.run_id, RunState.RUNNING)
            ledger.set_timings(run.run_id, Timings(provision_s=provision_s))
            ledger.move_run(run.run_id, RunState.CANCELLED, reason=EndReason.CANCELLED)
    for instance_id in ("i-over", "i-idle"):
        ledger.move_unit(instance_id, UnitState.TERMINATING)
        ledger.move_unit(instance_id, UnitState.TERMINATED, reason=EndReason.COMPLETED)
    (times,) = ledger.machine_times("sandbox", "eu-west-1")
    assert (times.boot_s, times.provision_s, times.environment) == (30.0, 12.0, "e")
    assert 0.0 <= times.end_s < 600.0
    assert ledger.machine_times("aws", "eu-west-1") == ledger.machine_times("sandbox", "eu-west-2") == []
