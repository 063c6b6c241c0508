"""The agent's byte code: made for machines that are kept, taken by whoever comes next, and never half there."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from cloudrun.agent import compiled
from cloudrun.ssh.archive import archive
from tests.agents import byte_code
from tests.contract.agent.conftest import Unit, until


@pytest.fixture
def unit(unit: Unit) -> Unit:
    """A new machine, as a client finds it."""
    _byte_code(unit).unlink()
    return unit


def _byte_code(unit: Unit) -> Path:
    return byte_code(unit.home / unit.archive)


def _grow_old(unit: Unit) -> None:
    long_ago = time.time() - 3600
    os.utime(unit.home / unit.archive, (long_ago, long_ago))


def test_an_agent_of_a_machine_that_is_kept_leaves_its_byte_code_and_the_next_one_starts_from_it(unit: Unit) -> None:
    _grow_old(unit)
    unit.ask("runs")
    unit.hang_up()
    place = _byte_code(unit)
    assert unit.ask("runs")["runs"] == []
    unit.hang_up()
    shutil.rmtree(place / "cloudrun" / "agent")  # an agent that starts from there cannot any more
    with pytest.raises((AssertionError, BrokenPipeError)):
        unit.ask("runs")


def test_a_new_machine_is_spared_the_compiler(unit: Unit) -> None:
    unit.ask("runs")
    unit.hang_up()
    assert not _byte_code(unit).exists()


def test_agents_from_the_archive_and_from_its_byte_code_share_one_warden_and_one_run(unit: Unit) -> None:
    run = unit.start("import time; time.sleep(600)")
    warden = unit.warden()
    _grow_old(unit)
    unit.hang_up()
    until(_byte_code(unit).exists)
    assert run.now()["state"] == "running"
    assert unit.orders()
    assert unit.warden() == warden
    assert run.cancel(0.0)["reason"] == "cancelled"


def test_what_another_one_has_left_half_done_is_no_byte_code(unit: Unit) -> None:
    half = _byte_code(unit).with_name(_byte_code(unit).name + ".4711")
    (half / "cloudrun").mkdir(parents=True)
    (half / "cloudrun" / "__init__.py").write_text("raise SystemExit('half')")
    assert unit.ask("runs")["runs"] == []


def test_an_agent_that_finds_no_room_for_it_ends_all_the_same(unit: Unit) -> None:
    _grow_old(unit)
    unit.ask("runs")
    folder = (unit.home / unit.archive).parent
    _byte_code(unit).write_text("in the way")
    unit.hang_up()
    assert sorted(each.name for each in folder.iterdir()) == sorted([Path(unit.archive).name, _byte_code(unit).name])


def test_what_has_its_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that loses its power would have names without contents, and an agent that never starts again."""
    place = tmp_path / f"agent{compiled.ARCHIVE}"
    place.write_bytes(archive().data)
    os.utime(place, (0, 0))
    synced = set()

    def fsync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    compiled.keep(str(place))
    files = [each for each in place.with_suffix(compiled.COMPILED).rglob("*") if each.is_file()]
    assert any(each.suffix == ".pyc" for each in files)
    assert [each for each in files if each.stat().st_ino not in synced] == []
