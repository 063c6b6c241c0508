"""However a region of booted machines ends, nothing of it is left on this computer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudrun.sandbox import client, nspawn
from tests.machines.conftest import BOOT_S, Ec2, share_image
from tests.machines.test_deadline import in_s
from tests.sandbox.conftest import Project, wait_for


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A sandbox of the test's own, with the session's root file system."""
    shared = Path(os.environ["CLOUDRUN_SANDBOX_DIR"]) / "cache" / "machines"
    monkeypatch.setenv("CLOUDRUN_SANDBOX_DIR", str(tmp_path / "sandbox"))
    monkeypatch.setenv("TEST_MACHINES_CACHE", str(shared))
    share_image(tmp_path / "sandbox" / "cache")
    yield tmp_path / "sandbox"
    client.stop()


def traces(sandbox: Path, cable: str) -> dict[str, list[str]]:
    """Processes, mounts, links and cgroups of a sandbox's machines."""
    units = str(sandbox / "units")
    processes = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) != os.getpid() and units in (folder / "mountinfo").read_text():
                processes.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    group = nspawn._cgroups(units).name
    trees = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd"))
    return {
        "processes": processes,
        "links": [cable] if Path("/sys/class/net", cable).exists() else [],
        "cgroups": [str(tree / group) for tree in trees if (tree / group).exists()],
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if units in line],
    }


def running(tmp_path: Path) -> tuple[client.Region, str]:
    """A region with two machines, and the link on this computer that leads to them."""
    region = client.ensure("nspawn")
    folder = tmp_path / "own-ec2"
    folder.mkdir()
    ec2 = Ec2(region, folder)
    hosts = [ec2.host(machine) for machine in ec2.launch(in_s(3600), count=2)]
    told = subprocess.run(
        ["ip", "-json", "route", "get", hosts[0].address], capture_output=True, text=True, check=True
    ).stdout
    return region, str(json.loads(told)[0]["dev"])


NOTHING: dict[str, list[str]] = {"processes": [], "links": [], "cgroups": [], "mounts": []}


def test_nothing_is_left_of_a_region_that_is_stopped(own: Path, tmp_path: Path) -> None:
    _, cable = running(tmp_path)
    there = traces(own, cable)
    assert {kind for kind, found in there.items() if found} == {"processes", "links", "cgroups"}
    client.stop()
    assert traces(own, cable) == NOTHING
    assert list((own / "units").iterdir()) == []


def test_nothing_is_left_of_a_region_that_is_killed(own: Path, tmp_path: Path) -> None:
    region, cable = running(tmp_path)
    os.kill(region.pid, signal.SIGKILL)
    wait_for(lambda: {**traces(own, cable), "cgroups": []} == NOTHING, "the machines to die with the region", BOOT_S)
    client.ensure("nspawn")  # what is not a process's own is removed by the next one
    assert traces(own, cable) == NOTHING
    assert list((own / "units").iterdir()) == []


def test_a_region_of_another_kind_is_not_replaced(own: Path, project: Project) -> None:
    client.ensure()
    done = project.cloudrun("sandbox", "start", "--machines", "nspawn")
    assert done.returncode == 1
    assert "cloudrun sandbox stop" in done.stderr
    client.stop()
    done = project.cloudrun("sandbox", "start", "--machines", "nspawn", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["driver"] == "nspawn"
