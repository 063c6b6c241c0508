"""What several of these tests are made with: a ledger, a clock, a bucket, a run on its unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudrun.core.rundir import RunDir
from cloudrun.ledger import Ledger
from tests.bucket_server import Bucket, serving
from tests.command import Cli
from tests.fakes import ManualClock
from tests.uploads import begin


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line in an empty folder."""
    return Cli(tmp_path)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """One whose job has printed a line, and goes on."""
    return begin(tmp_path / "run")
