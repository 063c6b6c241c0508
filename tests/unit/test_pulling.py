"""What a later client brings home, with an agent that says what it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun import wiring
from cloudrun.core.clock import SystemClock
from cloudrun.core.events import nobody
from cloudrun.core.records import JobStatus, LaunchRecord, LaunchRequest, Place, RunRecord, UnitRecord
from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.runs import pulling
from cloudrun.ssh.agent import Agent, Finished, Outputs
from cloudrun.units import terminating

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLACE = Place("sandbox", "us-east-1", "g-1")


class Exited:
    """An agent whose every job has exited with 0."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused

    def status(self, place: str) -> JobStatus:
        return JobStatus("exited", exit_code=0)

    def collect(self, place: str) -> Finished:
        return Finished(self.status(place), self.outputs(place), {})

    def outputs(self, place: str) -> Outputs:
        return Outputs((), (), (), self.refused, {}, "", "")

    def fetch(self, *_: object) -> None: ...

    def fetch_logs(self, *_: object) -> None: ...

    def home(self, place: str) -> None: ...


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    request = LaunchRequest("l-1", 1, "m7i.large", "ami-1", "/dev/sda1", 20, "cloudrun-l-1", "sg-1", "", {})
    opened.intend(
        LaunchRecord(
            "l-1", PLACE, LaunchState.INTENDED, request, "ubuntu", "c-1", NOW, "terminate", "ssh-ed25519 A", NOW
        )
    )
    opened.move_launch("l-1", LaunchState.REQUESTED)
    unit = UnitRecord(
        "i-1", "l-1", PLACE, UnitState.READY, "m7i.large", "ubuntu", "192.0.2.1", 22, "ssh-ed25519 A",
        NOW + timedelta(hours=4), "keep", "", NOW,
    )  # fmt: skip
    opened.resolve_launch("l-1", [unit])
    yield opened
    opened.close()


def waiting(ledger: Ledger, run_id: str) -> RunRecord:
    ledger.add_run(RunRecord(run_id, run_id, "train.py", RunState.QUEUED, NOW))
    ledger.begin_attempt(run_id, "i-1", NOW)
    for state in (RunState.RUNNING, RunState.PULLING, RunState.PULL_PENDING):
        ledger.move_run(run_id, state)
    return ledger.run(run_id)


def test_outputs_that_were_refused_are_no_success_when_they_are_pulled_either(ledger: Ledger) -> None:
    run = waiting(ledger, "r-1")
    agent = cast("Agent", Exited("more than 10 files"))
    pulling.pull_run(ledger, run, agent, nobody, SystemClock())
    run = ledger.run("r-1")
    assert (run.state, run.end_reason, run.detail) == (RunState.FAILED, EndReason.OUTPUT_REFUSED, "more than 10 files")


def test_a_unit_stays_until_the_last_of_its_runs_is_home(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting(ledger, "r-1")
    waiting(ledger, "r-2")
    running = SimpleNamespace(state="running")
    cloud = SimpleNamespace(instances=SimpleNamespace(describe=lambda ids: dict.fromkeys(ids, running)))
    ended: list[str] = []

    @contextmanager
    def connected(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(agent=Exited())

    monkeypatch.setattr(wiring, "reconnect", lambda *_: cloud)
    monkeypatch.setattr(pulling, "connected", connected)
    monkeypatch.setattr(terminating, "terminate", lambda cloud, ledger, ids, **_: ended.extend(ids))
    monkeypatch.setattr(terminating, "release_resources", lambda *_, **__: None)
    assert pulling.pull(ledger, "r-1", observe=nobody).state is RunState.SUCCEEDED
    assert ended == []
    assert pulling.pull(ledger, "r-2", observe=nobody).state is RunState.SUCCEEDED
    assert ended == ["i-1"]
