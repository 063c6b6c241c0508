"""Where a ledger is: in its project, moved, restored, copied, or seen from another computer."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.core.states import LaunchState, RunState
from cloudrun.ledger import Ledger


def test_nothing_is_written_before_the_first_use_and_then_it_is_private(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert ledger.runs() == []
    modes = {path.name: path.stat().st_mode & 0o777 for path in (ledger.home, ledger.keys_dir)}
    assert modes == {".cloudrun": 0o700, "keys": 0o700}
    assert (ledger.home / "ledger.sqlite").stat().st_mode & 0o777 == 0o600
    assert (ledger.home / ".gitignore").read_text() == "*\n"


def test_a_home_made_by_somebody_else_becomes_private(tmp_path: Path) -> None:
    (tmp_path / ".cloudrun").mkdir(mode=0o755)
    ledger = Ledger(tmp_path)
    assert ledger.artifacts.root.parent == ledger.home
    assert ledger.home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mark", ["cloudrun.toml", "pyproject.toml", ".git/HEAD", ".cloudrun/ledger.sqlite"])
def test_the_project_is_the_nearest_folder_above_with_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str
) -> None:
    (tmp_path / "outer" / "inner" / "deep").mkdir(parents=True)
    for folder in ("outer", "outer/inner"):
        (tmp_path / folder / mark).parent.mkdir(exist_ok=True)
        (tmp_path / folder / mark).touch()
    monkeypatch.chdir(tmp_path / "outer" / "inner" / "deep")
    assert Ledger().project == tmp_path / "outer" / "inner"
    assert Ledger(tmp_path).project == tmp_path


def test_a_project_that_is_no_folder_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for given in (tmp_path / "file", tmp_path / "nothing"):
        with pytest.raises(UsageError, match="is not a folder"):
            Ledger(given)


def with_work_under_way(ledger: Ledger, make: SimpleNamespace) -> str:
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run("run-0"), {"accuracy": 0.5}, files={"a.txt": b"a"})
    make.pulling(ledger, make.run("run-1"))
    ledger.intend(make.launch("launch-2"))
    ledger.move_launch("launch-2", LaunchState.REQUESTED)
    return ledger.ledger_id


def test_a_moved_ledger_stays_itself(ledger: Ledger, make: SimpleNamespace, tmp_path: Path) -> None:
    ledger_id = with_work_under_way(ledger, make)
    ledger.close()
    moved = Ledger(ledger.project.rename(tmp_path / "elsewhere"))
    assert moved.ledger_id == ledger_id
    assert [unit.instance_id for unit in moved.units()] == ["i-1"]
    assert [run.run_id for run in moved.unfinished_runs()] == ["run-1"]


def test_a_ledger_restored_in_its_place_stays_itself(ledger: Ledger, make: SimpleNamespace, tmp_path: Path) -> None:
    ledger_id = with_work_under_way(ledger, make)
    ledger.close()
    shutil.copytree(ledger.project, tmp_path / "backup")
    shutil.rmtree(ledger.project)
    shutil.copytree(tmp_path / "backup", ledger.project)
    assert Ledger(ledger.project).ledger_id == ledger_id
    assert [unit.instance_id for unit in ledger.units()] == ["i-1"]


def test_a_copy_is_another_ledger_that_owns_no_machine(ledger: Ledger, make: SimpleNamespace, tmp_path: Path) -> None:
    ledger_id = with_work_under_way(ledger, make)
    shutil.copytree(ledger.project, tmp_path / "copy")
    copy = Ledger(tmp_path / "copy")
    copy_id = copy.ledger_id
    assert copy_id != ledger_id
    assert copy.units() == copy.units(live=False) == []
    assert copy.launches() == copy.launches(unsettled=True) == []
    assert copy.unfinished_runs() == []
    run, [attempt] = copy.run("run-1"), copy.attempts("run-1")
    assert run.state is attempt.state is RunState.LOST
    assert str(ledger.home) in run.detail
    assert [run.run_id for run in copy.ranking()] == ["run-0"], "results are there in both"
    assert copy.get("run-0").path("a.txt").read_bytes() == b"a"
    copy.intend(make.launch("launch-3"))
    assert [launch.launch_id for launch in copy.launches()] == ["launch-3"]

    assert Ledger(tmp_path / "copy").ledger_id == copy_id
    assert Ledger(ledger.project).ledger_id == ledger_id
    assert [unit.instance_id for unit in ledger.units()] == ["i-1"]
    assert [run.run_id for run in ledger.unfinished_runs()] == ["run-1"]


def test_a_copy_from_another_computer_is_another_ledger_even_in_the_same_place(
    ledger: Ledger, make: SimpleNamespace, tmp_path: Path
) -> None:
    ledger_id = with_work_under_way(ledger, make)
    with ledger._database.writing() as connection:
        connection.execute("UPDATE identity SET machine = 'another', directory = '1:2'")
    ledger.close()
    assert ledger.ledger_id != ledger_id
    assert ledger.units() == []


def test_the_same_folder_seen_from_a_container_is_the_same_ledger(ledger: Ledger, make: SimpleNamespace) -> None:
    ledger_id = with_work_under_way(ledger, make)
    with ledger._database.writing() as connection:
        connection.execute("UPDATE identity SET machine = 'host', path = '/work/.cloudrun'")
    ledger.close()
    assert ledger.ledger_id == ledger_id
