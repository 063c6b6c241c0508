"""A ledger in a folder of its own, and records to fill it with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cloudrun.core.records import (
    Artifact,
    ClientRecord,
    GridRecord,
    LaunchRecord,
    LaunchRequest,
    Passport,
    Place,
    RunRecord,
    Timings,
    UnitRecord,
)
from cloudrun.core.states import EndReason, GridState, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLACE = Place("sandbox", "eu-west-1", "generation-1")


def a_launch(launch_id: str = "launch-1") -> LaunchRecord:
    request = LaunchRequest(
        client_token=launch_id,
        count=2,
        instance_type="m7i.large",
        image_id="ami-1",
        root_device="/dev/sda1",
        volume_gib=20,
        key_name="cloudrun-1",
        security_group_id="sg-1",
        user_data='#cloud-config\n{"a": "ü\\u2028\\\\"}\n',
        tags={"Name": "cloudrun", "cloudrun:ledger": "l"},
        spot=True,
    )
    return LaunchRecord(
        launch_id=launch_id,
        place=PLACE,
        state=LaunchState.INTENDED,
        request=request,
        user="ubuntu",
        client_id="client-1",
        deadline=NOON + timedelta(hours=4),
        on_exit="terminate",
        host_key="ssh-ed25519 AAAA",
        created_at=NOON,
    )


def a_unit(instance_id: str = "i-1", launch_id: str = "launch-1") -> UnitRecord:
    return UnitRecord(
        instance_id=instance_id,
        launch_id=launch_id,
        place=PLACE,
        state=UnitState.LAUNCHING,
        instance_type="m7i.large",
        user="ubuntu",
        address=None,
        ssh_port=22,
        host_key="ssh-ed25519 AAAA",
        deadline=NOON + timedelta(hours=4),
        on_exit="terminate",
        client_id="client-1",
        created_at=NOON,
    )


def a_run(run_id: str = "run-1", minute: int = 0, **fields: Any) -> RunRecord:
    record = RunRecord(run_id, "digits.py", "jobs/digits.py", RunState.QUEUED, NOON + timedelta(minutes=minute))
    return replace(record, **fields)


def a_grid(grid_id: str = "g-1", **fields: Any) -> GridRecord:
    record = GridRecord(
        grid_id, "sweep", "jobs/digits.py", GridState.OPEN, NOON, "identity-1", 10, client_id="client-1"
    )
    return replace(record, **fields)


def a_client(client_id: str = "client-1") -> ClientRecord:
    return ClientRecord(client_id, "laptop", "boot-1", 4711, "123456", NOON)


def launched(ledger: Ledger, *instance_ids: str) -> None:
    """A resolved launch with units that are ready."""
    ledger.intend(a_launch())
    ledger.move_launch("launch-1", LaunchState.REQUESTED)
    ledger.resolve_launch("launch-1", [a_unit(instance_id) for instance_id in instance_ids])
    for instance_id in instance_ids:
        ledger.move_unit(instance_id, UnitState.BOOTING)
        ledger.move_unit(instance_id, UnitState.READY)


def pulling(ledger: Ledger, run: RunRecord, instance_id: str = "i-1") -> RunRecord:
    """That run, new in the ledger, done on the unit and being pulled."""
    ledger.add_run(run)
    ledger.begin_attempt(run.run_id, instance_id, NOON)
    ledger.move_run(run.run_id, RunState.RUNNING)
    ledger.move_run(run.run_id, RunState.PULLING)
    return run


def finished(
    ledger: Ledger,
    run: RunRecord,
    scores: Mapping[str, float] | None = None,
    *,
    state: RunState = RunState.SUCCEEDED,
    files: Mapping[str, bytes] | None = None,
    logs: Mapping[str, bytes] | None = None,
    minimize: bool = False,
    passport: Passport | None = None,
) -> RunRecord:
    """That run, from nothing to its end, on unit i-1."""
    pulling(ledger, run)
    scores = scores or {}
    artifacts = [stored(ledger, path, content) for path, content in (files or {}).items()]
    artifacts += [stored(ledger, path, content, "log") for path, content in (logs or {}).items()]
    return ledger.finish_run(
        run.run_id,
        state,
        reason=EndReason.COMPLETED,
        exit_code=0,
        detail="",
        scores=scores,
        metric=run.metric or next(iter(scores), None),
        minimize=minimize,
        artifacts=artifacts,
        passport=passport,
        timings=Timings(run_s=1.5),
        at=NOON + timedelta(hours=1),
    )


def stored(ledger: Ledger, path: str, content: bytes, kind: str = "output") -> Artifact:
    scratch = ledger.project / "scratch"
    scratch.write_bytes(content)
    entry = ledger.artifacts.add(scratch)
    scratch.unlink()
    return Artifact(path, entry.size, entry.sha256, kind)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    project = tmp_path / "project"
    project.mkdir()
    ledger = Ledger(project)
    yield ledger
    ledger.close()


@pytest.fixture
def make() -> SimpleNamespace:
    """The record makers above."""
    return SimpleNamespace(
        noon=NOON,
        launch=a_launch,
        unit=a_unit,
        run=a_run,
        grid=a_grid,
        client=a_client,
        launched=launched,
        pulling=pulling,
        finished=finished,
        stored=stored,
    )
