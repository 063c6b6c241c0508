"""A ledger to report of, and a browser to look at reports with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cloudrun.core.records import Artifact, LaunchRecord, LaunchRequest, Place, RunRecord, Timings, UnitRecord
from cloudrun.core.states import EndReason, LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger
from tests.browser import CHROMIUM, Browser, browser

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
PLACE = Place("sandbox", "eu-west-1", "g1")
Ran = Callable[..., str]


def a_unit(instance_id: str) -> UnitRecord:
    later = NOON + timedelta(hours=4)
    kind = "m7i.large"
    return UnitRecord(
        instance_id, "l-1", PLACE, UnitState.READY, kind, "ubuntu", None, 22, "key", later, "terminate", "c-1", NOON
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """With two live units, i-1 and i-2, since noon."""
    made = Ledger(tmp_path)
    request = LaunchRequest("token", 2, "m7i.large", "ami-1", "/dev/sda1", 20, "key", "sg-1", "", {})
    made.intend(
        LaunchRecord("l-1", PLACE, LaunchState.INTENDED, request, "ubuntu", "c-1", NOON, "terminate", "key", NOON)
    )
    made.move_launch("l-1", LaunchState.REQUESTED)
    made.resolve_launch("l-1", [a_unit("i-1"), a_unit("i-2")])
    yield made
    made.close()


@pytest.fixture
def ran(ledger: Ledger, tmp_path: Path) -> Ran:
    """Adds a run that has ended; returns its id. The n-th begins n minutes after noon and takes 30 seconds."""
    count = iter(range(10_000))

    def add(
        scores: Mapping[str, float] | None = None,
        *,
        name: str = "cell",
        params: Mapping[str, Any] | None = None,
        logs: Mapping[str, bytes] | None = None,
        metric: str | None = None,
        minimize: bool = False,
        unit: str = "i-1",
        detail: str = "",
    ) -> str:
        number = next(count)
        run_id, at = f"r-{number:04d}", NOON + timedelta(minutes=number)
        ledger.begin_run(RunRecord(run_id, name, "train.py", RunState.QUEUED, at, params=params or {}), unit, at)
        ledger.move_run(run_id, RunState.RUNNING)
        succeeded = not detail
        ledger.finish_run(
            run_id,
            RunState.SUCCEEDED if succeeded else RunState.FAILED,
            reason=EndReason.COMPLETED if succeeded else EndReason.EXITED,
            exit_code=0 if succeeded else 1,
            detail=detail,
            scores=scores or {},
            metric=metric or next(iter(scores or {}), None),
            minimize=minimize,
            artifacts=[stored(ledger, tmp_path, path, log) for path, log in (logs or {}).items()],
            passport=None,
            timings=Timings(run_s=29.0, total_s=30.0),
            at=at + timedelta(seconds=30),
        )
        return run_id

    return add


def stored(ledger: Ledger, folder: Path, path: str, content: bytes) -> Artifact:
    source = folder / "source"
    source.write_bytes(content)
    entry = ledger.artifacts.add(source)
    return Artifact(path, entry.size, entry.sha256, "log")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser's tab, without a network."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium to look with (Debian: apt-get install chromium)")
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.send(
            "Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0
        )
        yield opened
