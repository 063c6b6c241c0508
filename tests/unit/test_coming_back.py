"""Runs that nobody follows any more: clients that come back to them, the reaper, and machines that were taken back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudrun import reaper, wiring
from cloudrun.core.errors import CloudrunError, ConnectionLost, LaunchError, LedgerError, UsageError
from cloudrun.core.events import nobody
from cloudrun.core.records import Instance, JobStatus, RunRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan import reaping
from cloudrun.runs import attaching, pulling, rescue, watching
from cloudrun.runs.prepared import submitted_settings
from cloudrun.units import terminating
from cloudrun.units.clients import this_client
from cloudrun.units.leases import Attended, lease
from tests.fakes import RUN, Agent, Ec2, ManualClock, Network, begun, cloud_of, launch_one, saved


def test_a_queued_run_that_is_cancelled_keeps_what_it_had_saved(
    ledger: Ledger, clock: ManualClock, tmp_path: Path
) -> None:
    launch_one(ledger, clock, Ec2())
    begun(ledger, clock)
    artifact = saved(ledger, tmp_path)
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=(artifact,))
    run = attaching.cancel(ledger, RUN, grace_s=1, observe=nobody)
    assert (run.state, run.record.artifacts) == (RunState.CANCELLED, (artifact,))


def test_a_taken_back_machine_nobody_has_watched_is_no_lost_run(
    ledger: Ledger, clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bucket, or with one that the machine had no time to fill."""
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    artifact = saved(ledger, tmp_path)
    begun(ledger, clock)
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=(artifact,))
    ledger.begin_attempt(RUN, unit.instance_id, clock.now(), store="s3://bucket/cloudrun/x/r-1.2/")
    ledger.move_run(RUN, RunState.RUNNING)
    ledger.update_unit(unit.instance_id, client_id="", on_exit="keep")
    taken = Instance(
        unit.instance_id, "terminated", "m7i.large", None, None, state_reason="Server.SpotInstanceTermination: x"
    )
    ec2.describe = lambda ids: dict.fromkeys(ids, taken)  # type: ignore[method-assign]
    monkeypatch.setattr(wiring, "reconnect", lambda *_: cloud_of(ec2))
    monkeypatch.setattr(pulling, "pull_stored", lambda *_: False)
    (seen,) = watching.look(ledger)
    assert (seen.word, seen.next_step) == ("gone", f"cloudrun attach {RUN}")
    assert pulling.pull(ledger, RUN, observe=nobody).state is RunState.QUEUED
    assert [each.outputs for each in ledger.attempts(RUN)] == [(artifact,), (artifact,)]


@pytest.fixture
def let_go(ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> tuple[Ec2, Agent]:
    """A detached run on a machine that nobody holds."""
    ec2, agent = Ec2(), Agent(JobStatus("exited", exit_code=0))
    launch_one(ledger, clock, ec2)
    begun(ledger, clock)
    ledger.update_unit("i-l-1", client_id="", on_exit="keep")

    @contextmanager
    def connected(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(agent=agent)

    network = Network()
    monkeypatch.setattr(wiring, "reconnect", lambda *_: cloud_of(ec2, network))
    monkeypatch.setattr(pulling, "connected", connected)
    monkeypatch.setattr(rescue, "connected", connected)
    return ec2, agent


def test_a_cut_after_the_last_word_is_no_failure(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    ec2, agent = let_go
    agent.cut_home = 1
    assert pulling.pull(ledger, RUN, observe=nobody).state is RunState.SUCCEEDED
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_pull_that_is_interrupted_as_it_ends_the_machine_leaves_that_to_the_reaper(
    ledger: Ledger, clock: ManualClock, let_go: tuple[Ec2, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2, _ = let_go

    def interrupted(*_: object, **__: object) -> None:
        ledger.move_unit("i-l-1", UnitState.TERMINATING)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(terminating, "terminate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pulling.pull(ledger, RUN, observe=nobody)
    assert ledger.run(RUN).state is RunState.SUCCEEDED
    ec2.owned = lambda ledger_id, *, launch_id=None: [ec2._instance("i-l-1")]  # type: ignore[method-assign]
    reaper.reap_place(cloud_of(ec2), ledger, clock, nobody, dry_run=False)
    assert ec2.states == {"i-l-1": "terminated"}


def test_what_somebody_began_to_end_is_ended(ledger: Ledger, clock: ManualClock, let_go: tuple[Ec2, Agent]) -> None:
    ledger.move_unit("i-l-1", UnitState.TERMINATING)
    why = reaping.doomed(ledger.unit("i-l-1"), None, let_go[0]._instance("i-l-1"), frozenset(), clock.now())
    assert why is not None


def test_one_unit_is_in_the_hands_of_one_client(ledger: Ledger, clock: ManualClock, let_go: tuple[Ec2, Agent]) -> None:
    unit = ledger.unit("i-l-1")
    with lease(ledger, unit, clock) as held:
        with pytest.raises(Attended), lease(ledger, unit, clock):
            pass
        with pytest.raises(Attended):
            pulling.pull(ledger, RUN, observe=nobody)
        # On another computer five silent minutes count as death.
        assert any(thread.name == "cloudrun-heartbeat" for thread in threading.enumerate())
        assert held.holds()
        ledger.update_unit("i-l-1", client_id="c-other")  # it slept, and was taken for dead
        held.leave()
        assert not held.holds()
    assert ledger.unit("i-l-1").client_id == "c-other"


def test_the_reaper_leaves_a_unit_that_somebody_has_just_come_for(
    ledger: Ledger, clock: ManualClock, let_go: tuple[Ec2, Agent]
) -> None:
    ec2, agent = let_go
    agent.now = JobStatus("running")
    ledger.update_unit("i-l-1", client_id="c-dead", on_exit="terminate")
    seen = ledger.unit("i-l-1")
    client = this_client(clock.now())
    ledger.register_client(client)
    ledger.take_unit("i-l-1", client.client_id, of="c-dead", on_exit="terminate")
    assert rescue.end_unit(cloud_of(ec2), ledger, clock, nobody, seen) == ""
    assert (agent.cancelled, ec2.states) == (0, {"i-l-1": "running"})


def test_a_machine_whose_outputs_find_no_room_is_as_it_was_after_a_reap(
    ledger: Ledger, clock: ManualClock, let_go: tuple[Ec2, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise LedgerError("no space left on device")

    ledger.update_unit("i-l-1", client_id="c-dead", on_exit="terminate")
    monkeypatch.setattr(rescue, "pull_run", full)
    before = ledger.unit("i-l-1")
    assert "no space" in rescue.end_unit(cloud_of(let_go[0]), ledger, clock, nobody, before)
    assert ledger.unit("i-l-1") == before
    assert let_go[0].states == {"i-l-1": "running"}


def test_a_run_that_never_started_is_neither_pulled_nor_kept(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    ec2, agent = let_go
    agent.now = None
    with pytest.raises(CloudrunError, match="never started") as refused:
        pulling.pull(ledger, RUN, observe=nobody)
    assert f"cloudrun cancel {RUN}" in refused.value.next_step
    assert attaching.cancel(ledger, RUN, grace_s=0, observe=nobody).state is RunState.CANCELLED
    assert ec2.states == {"i-l-1": "terminated"}


def test_a_run_without_a_machine_is_told_to_be_attached(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    ledger.requeue_run(RUN, reason=EndReason.INTERRUPTED, detail="", outputs=())
    for act in (
        lambda: pulling.pull(ledger, RUN, observe=nobody),
        lambda: attaching.extend(ledger, RUN, 60, observe=nobody),
    ):
        with pytest.raises(UsageError) as refused:
            act()
        assert refused.value.next_step == f"cloudrun attach {RUN}"


def test_a_machine_that_does_not_run_is_not_told_to_boot(ledger: Ledger, let_go: tuple[Ec2, Agent]) -> None:
    let_go[0].states["i-l-1"] = "stopped"
    with pytest.raises(ConnectionLost, match="i-l-1 is stopped"):
        attaching.extend(ledger, RUN, 60, observe=nobody)
    with pytest.raises(ConnectionLost, match="i-l-1 is stopped") as refused:
        pulling.pull(ledger, RUN, observe=nobody)
    assert not isinstance(refused.value, LaunchError)
    assert ledger.run(RUN).state is RunState.RUNNING


def test_a_thousand_runs_are_one_question_for_each_place(
    ledger: Ledger, clock: ManualClock, let_go: tuple[Ec2, Agent], monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2, _ = let_go
    for number in range(40):
        run_id = f"r-many-{number}"
        ledger.add_run(RunRecord(run_id, "many", "many.py", RunState.QUEUED, clock.now() + timedelta(seconds=number)))
        ledger.begin_attempt(run_id, "i-l-1", clock.now())
    asked: list[str] = []
    describe = ec2.describe
    ec2.describe = lambda ids: asked.append("describe") or describe(ids)  # type: ignore[method-assign,func-returns-value]

    @contextmanager
    def connected(*_: object, **__: object) -> Iterator[Any]:
        asked.append("connect")
        yield SimpleNamespace(agent=let_go[1])

    monkeypatch.setattr(watching, "connected", connected)
    seen = watching.look(ledger)
    assert [each.run.run_id for each in seen] == [RUN, *(f"r-many-{number}" for number in range(40))]
    assert {each.word for each in seen} == {"done"}
    assert asked == ["describe", "connect"]


def test_what_was_allowed_when_a_run_was_submitted_is_allowed_when_it_comes_home(
    ledger: Ledger, clock: ManualClock
) -> None:
    launch_one(ledger, clock, Ec2())
    settings = Settings(output_max_bytes=50_000_000_000, output_max_files=7, data=("s3://bucket/key",))
    submission = {"root": "/elsewhere", "settings": {**asdict(settings), "of a newer cloudrun": 1}}
    run = RunRecord(RUN, "train", "train.py", RunState.QUEUED, clock.now(), submission=submission)
    ledger.begin_run(run, "i-l-1", clock.now())
    run = ledger.run(RUN)
    assert submitted_settings(run) == settings
    home = pulling.homecoming(ledger, run, ledger.attempts(RUN)[0], "", nobody, clock)
    assert (home.max_bytes, home.max_files) == (50_000_000_000, 7)


def test_a_machine_is_given_no_more_time_than_the_budget_of_its_run_pays_for(
    ledger: Ledger, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ec2 = Ec2()
    unit = launch_one(ledger, clock, ec2)
    submission = {"root": "/elsewhere", "settings": asdict(Settings(budget=1.0))}
    ledger.begin_run(
        RunRecord(RUN, "train", "train.py", RunState.QUEUED, clock.now(), submission=submission),
        unit.instance_id,
        clock.now(),
    )
    ledger.move_run(RUN, RunState.RUNNING)
    ec2.states[unit.instance_id] = "stopped"  # whoever asks EC2 learns that there is nothing to log in to
    monkeypatch.setattr(wiring, "reconnect", lambda *_: cloud_of(ec2))
    for reference in (RUN, unit.instance_id):
        with pytest.raises(UsageError, match=r"r-1 could cost \$1\.\d+ then, and its budget is \$1"):
            attaching.extend(ledger, reference, 10 * 3600, observe=nobody)
    with pytest.raises(watching.Gone):
        attaching.extend(ledger, RUN, 3600, observe=nobody)
    assert ledger.unit(unit.instance_id).deadline == unit.deadline
