"""However a region of booted machines ends, nothing of it is left on this computer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudrun.sandbox import client
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


def traces(sandbox: Path, cables: set[str]) -> list[str]:
    """Processes, mounts, links and cgroups of a sandbox's machines."""
    units = str(sandbox / "units")
    found = [f"link {name}" for name in links() if name not in cables]
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            if units in command or units in (folder / "mountinfo").read_text():
                found.append(f"process {folder.name} {command}")
        except OSError:
            continue
    for tree in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup/systemd")):
        found += [f"cgroup {group}" for group in tree.glob("cloudrun-*/*")]
    if units in Path("/proc/self/mountinfo").read_text():
        found.append("a mount")
    return found


def links() -> set[str]:
    told = subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True).stdout
    return {link["ifname"] for link in json.loads(told) if link["ifname"].startswith("cr")}


def running(tmp_path: Path) -> tuple[Ec2, client.Region]:
    region = client.ensure("nspawn")
    folder = tmp_path / "own-ec2"
    folder.mkdir()
    ec2 = Ec2(region, folder)
    for machine in ec2.launch(in_s(3600), count=2):
        ec2.host(machine)
    return ec2, region


@pytest.mark.parametrize("end", ["stop", "SIGKILL"])
def test_nothing_is_left_of_a_region(own: Path, tmp_path: Path, end: str) -> None:
    before = links()
    others = set(traces(own, before))
    _, region = running(tmp_path)
    assert {trace.split()[0] for trace in set(traces(own, before)) - others} == {"link", "process", "cgroup"}
    if end == "stop":
        client.stop()
        assert set(traces(own, before)) - others == set()
        assert list((own / "units").iterdir()) == []
        return
    os.kill(region.pid, signal.SIGKILL)

    def left(kind: str = "") -> list[str]:
        return [trace for trace in set(traces(own, before)) - others if trace.startswith(kind)]

    wait_for(lambda: left() == left("cgroup"), "the machines to die with the region", BOOT_S)
    client.ensure("nspawn")  # what is not a process's own is removed by the next one
    assert left("cgroup") == []
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
