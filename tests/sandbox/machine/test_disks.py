"""What the daemon does with the disk and the console of a unit that has ended: neither can be trusted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudrun.sandbox import hypervisor, machine
from cloudrun.sandbox.hypervisor import Hypervisor, PowerOn

UNIT_UID = 1_900_077_001
ORDER = PowerOn("i-1", "127.0.0.1", 0, "h", (), "", "t", "ami", "r", "z", "10.0.0.1", "", tokens_required=True)


@pytest.fixture
def hardware(tmp_path: Path) -> Hypervisor:
    return Hypervisor(
        tmp_path,
        metadata_url=lambda order: "",
        forget_metadata=lambda instance_id: None,
        index_url=None,
        environments=tmp_path / "environments",
        driver=machine.driver,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a unit another user")
def test_root_follows_no_link_that_a_unit_without_namespaces_made_of_its_disk(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_text("kept")
    directory = tmp_path / "i-1"
    directory.mkdir()
    machine._make_root(directory / "root", UNIT_UID, "plain")
    disk = (directory / "root").resolve()
    try:
        swap = f"echo mine > {disk}/x && (mv {disk} {disk}.old || rm -rf {disk}); ln -s {victim} {disk}"
        subprocess.run(["sh", "-c", swap], user=UNIT_UID, group=UNIT_UID, extra_groups=[], check=False)
    finally:
        machine.remove(directory)
    assert (victim / "file").read_text() == "kept"
    assert not os.path.lexists(disk)
    assert not os.path.lexists(disk.parent)
    assert not directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a unit another user")
def test_a_process_without_a_mark_does_not_outlive_a_unit_with_a_user_of_its_own(tmp_path: Path) -> None:
    hidden = subprocess.Popen(["sleep", "60"], user=UNIT_UID, group=UNIT_UID, extra_groups=[], env={})
    try:
        machine._sweep("plain", tmp_path, UNIT_UID)()
        assert hidden.wait(60) == -9
    finally:
        hidden.kill()


def test_two_regions_give_their_units_different_users(tmp_path: Path) -> None:
    made = {hypervisor.Hypervisor(
        tmp_path, metadata_url=str, forget_metadata=print, index_url=None, environments=tmp_path,
        driver=machine.driver,
    )._first_uid for _ in range(5)}  # fmt: skip
    assert len(made) > 1
    assert all(hypervisor.FIRST_UID <= first < 2**31 - hypervisor.UID_BLOCK for first in made)


def test_the_tail_of_an_endless_console_is_short(hardware: Hypervisor, tmp_path: Path) -> None:
    (tmp_path / "i-1").mkdir()
    with (tmp_path / "i-1" / machine.CONSOLE).open("wb") as console:
        console.truncate(1 << 40)  # a hole: it takes no room on the disk
        console.seek(0, os.SEEK_END)
        console.write(b"\nthe last words\n")
    tail = hardware.console_tail(ORDER)
    assert tail.endswith("the last words")
    assert len(tail) <= hypervisor.CONSOLE_TAIL_BYTES


def test_a_machines_end_is_reported_whatever_it_left(
    hardware: Hypervisor, monkeypatch: pytest.MonkeyPatch, eventually: Callable[[Callable[[], object]], object]
) -> None:
    def spoilt(*_: object) -> None:
        raise RuntimeError("nobody thought of this")

    class Reports:
        ended: tuple[str, ...] = ()

        def machine_runs(self, instance_id: str) -> None:
            pass

        def machine_ended(self, instance_id: str, outcome: str) -> None:
            self.ended = (instance_id, outcome)

    monkeypatch.setattr(hardware, "learn", spoilt)
    monkeypatch.setattr(hardware, "boot", spoilt)
    reports = Reports()
    hardware.power_on(ORDER, reports)
    eventually(lambda: reports.ended)
    assert reports.ended == ("i-1", "died")
