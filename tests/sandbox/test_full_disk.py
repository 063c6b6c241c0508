"""No room at home: refused before launching where it can be known, and else the machine keeps what it has."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudrun.core.states import RunState
from tests.sandbox.conftest import Project

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[int], Project]]:
    """A project on a file system of so many megabytes."""
    mounted = tmp_path / "small"
    mounted.mkdir()

    def mount(megabytes: int) -> Project:
        options = f"size={megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mounted)], check=True)
        return Project(mounted)

    yield mount
    subprocess.run(["umount", "--lazy", str(mounted)], check=False)


def test_too_little_room_is_refused_before_launching(small: Callable[[int], Project]) -> None:
    project = small(50)
    project.write("a.py", "print(1)")
    done = project.cloudrun_here("submit", "a.py")
    assert done.returncode == 2, done.stderr
    assert "are free" in done.stderr
    assert project.ledger.launches() == []


def test_outputs_that_do_not_fit_wait_on_their_machine(
    small: Callable[[int], Project], nothing_left: Callable[[Project], None]
) -> None:
    project = small(160)
    project.write("big.py", "import os; open('big.bin', 'wb').write(os.urandom(120_000_000)); print('n: 1')")
    ballast = project.root / "ballast"
    ballast.write_bytes(bytes(50_000_000))
    done = project.cloudrun("submit", "big.py")
    assert done.returncode == 8, "its machine is alive, and somebody pays for it"
    (record,) = project.ledger.runs()
    assert record.state is RunState.PULL_PENDING
    assert f"cloudrun pull {record.run_id}" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(project.ledger.units()) == 1

    reaped = project.json("reap")
    assert reaped["actions"] == [], "outputs that wait are a reason to live"

    assert project.cloudrun("pull", record.run_id).returncode == 1
    assert project.ledger.run(record.run_id).state is RunState.PULL_PENDING, "it can be tried again"

    ballast.unlink()
    done = project.cloudrun("pull", record.run_id)
    assert done.returncode == 0, done.stderr
    run = project.ledger.get(record.run_id)
    assert run.state is RunState.SUCCEEDED
    assert run.path("big.bin").stat().st_size == 120_000_000
    assert run.scores == {"n": 1.0}
    nothing_left(project)


@pytest.mark.slow
def test_a_grid_that_fills_the_disk_stops_and_goes_on_once_there_is_room(
    small: Callable[[int], Project], nothing_left: Callable[[Project], None]
) -> None:
    project = small(130)
    project.write("big.py", "import os; open('big.bin', 'wb').write(os.urandom(25_000_000)); print('n: 1')")
    words = ("submit", "big.py", "--set", "n=" + ",".join(map(str, range(7))), "--slots", "1", "--units", "2")
    stopped = project.cloudrun(*words)
    assert stopped.returncode == 8, stopped.stderr
    assert "Traceback" not in stopped.stderr
    ledger = project.ledger
    first = {run.run_id for run in ledger.runs(states=[RunState.SUCCEEDED])}
    assert 3 <= len(first) < 7
    waiting = ledger.runs(states=[RunState.PULL_PENDING, RunState.PULLING])
    assert waiting, "what was done and did not fit waits on its machine"
    subprocess.run(["mount", "-o", "remount,size=400m", str(project.root)], check=True)
    again = project.cloudrun(*words)
    assert again.returncode == 0, again.stderr
    runs = ledger.runs()
    succeeded = {run.run_id for run in runs if run.state is RunState.SUCCEEDED}
    assert len(succeeded) == 7
    assert first <= succeeded
    assert {run.run_id for run in waiting} <= succeeded, "and is not computed again"
    nothing_left(project)
