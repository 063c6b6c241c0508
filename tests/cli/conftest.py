"""What the tests of commands that look at a ledger share: runs in one, and the document that a command prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudrun.cli.main import run
from cloudrun.core.ids import new_id
from cloudrun.core.records import (
    Artifact,
    LaunchRecord,
    LaunchRequest,
    Place,
    RunRecord,
    Timings,
    UnitRecord,
)
from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
PLACE = Place("sandbox", "us-east-1", "g1")
Made = Callable[..., str]


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A ledger with one live unit; the working directory is its project."""
    (tmp_path / "cloudrun.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    made = Ledger(tmp_path)
    request = LaunchRequest("token", 1, "m7i.large", "ami-1", "/dev/sda1", 20, "key", "sg-1", "", {})
    made.intend(
        LaunchRecord("l-1", PLACE, LaunchState.INTENDED, request, "ubuntu", "c-1", NOON, "terminate", "key", NOON)
    )
    made.move_launch("l-1", LaunchState.REQUESTED)
    unit = UnitRecord(
        "i-1", "l-1", PLACE, UnitState.BOOTING, "m7i.large", "ubuntu", None, 22, "key", NOON, "terminate", "c-1", NOON
    )
    made.resolve_launch("l-1", [unit])
    yield made
    made.close()


@pytest.fixture
def ended(ledger: Ledger, tmp_path: Path) -> Made:
    """Adds a run that has ended; returns its id."""
    count = iter(range(1000))

    def add(
        name: str,
        scores: Mapping[str, float] | None = None,
        *,
        files: Mapping[str, str] | None = None,
        logs: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        reason: EndReason = EndReason.COMPLETED,
        minimize: bool = False,
        script: str = "train.py",
        code: str = "",
        environment: str = "",
        grid_id: str | None = None,
        beside: str = "",
    ) -> str:
        run_id, at = new_id("r"), NOON + timedelta(minutes=next(count))
        digests = {"code_digest": code, "environment_digest": environment}
        ledger.add_run(
            RunRecord(run_id, name, script, RunState.QUEUED, at, params=params or {}, grid_id=grid_id, **digests)
        )
        ledger.begin_attempt(run_id, "i-1", at, beside=beside)
        ledger.move_run(run_id, RunState.RUNNING)
        ledger.move_run(run_id, RunState.PULLING)
        artifacts = []
        for kind, contents in (("output", files or {}), ("log", logs or {})):
            for path, content in contents.items():
                (tmp_path / "made").write_text(content)
                entry = ledger.artifacts.add(tmp_path / "made")
                (tmp_path / "made").unlink()
                artifacts.append(Artifact(path, entry.size, entry.sha256, kind))
        succeeded = reason is EndReason.COMPLETED
        ledger.finish_run(
            run_id,
            RunState.SUCCEEDED if succeeded else RunState.FAILED,
            reason=reason,
            exit_code=0 if succeeded else 3,
            detail="" if succeeded else "it exited with code 3",
            scores=scores or {},
            metric=next(iter(scores), None) if scores else None,
            minimize=minimize,
            artifacts=artifacts,
            passport=None,
            timings=Timings(launch_s=0.5, run_s=2.25, total_s=3.1),
            at=at + timedelta(seconds=3),
        )
        return run_id

    return add


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The one JSON document that a command prints."""
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    parsed = json.loads(captured.out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert parsed["schema_version"] == 1
    return parsed
