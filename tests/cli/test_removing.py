"""`rm` and `gc`: what they ask, what they say, and what they do not do."""

from __future__ import annotations

import json
import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from cloudrun.cli.main import run
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.records import GridRecord
from cloudrun.core.states import GridState
from cloudrun.ledger import Ledger
from cloudrun.units.clients import this_client
from tests.cli.conftest import NOON, Made, document


def aged(ledger: Ledger) -> None:
    """Everything in the store was left alone since yesterday."""
    yesterday = time.time() - 86400
    for sha256, _ in ledger.artifacts.digests():
        os.utime(ledger.artifacts.path(sha256), (yesterday, yesterday))


def test_a_run_is_removed_and_its_files_are_freed_later(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, stays = ended("a", files={"m": "1" * 1000, "same": "2"}), ended("b", files={"same": "2"})
    with pytest.raises(UsageError, match="nobody is there to be asked") as caught:
        run(["rm", gone])
    assert caught.value.next_step == f"cloudrun rm --yes {gone}"
    assert run(["rm", "a", "--yes"]) == 0
    said = capsys.readouterr().err
    assert "removed 1 run\n" in said
    assert "cloudrun gc --older-than 0s at once" in said
    assert [each.run_id for each in ledger.runs()] == [stays]

    aged(ledger)
    assert run(["gc", "--dry-run"]) == 0
    assert "1.0 kB  1 file that no run refers to" in capsys.readouterr().err
    assert run(["gc", "--older-than", "2d", "--yes"]) == 0
    assert "nothing to free" in capsys.readouterr().err
    with pytest.raises(UsageError, match="nobody is there"):
        run(["gc"])
    capsys.readouterr()
    assert run(["gc", "--yes", "--json"]) == 0
    said = capsys.readouterr()
    assert '"freed_bytes": 1000' in said.out
    assert ledger.get(stays).path("same").read_text() == "2"


def test_what_waits_is_said_with_its_time_and_how_to_free_it_now(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ended("a", files={"m": "1" * 1000})
    assert run(["rm", gone, "--yes"]) == 0
    capsys.readouterr()
    assert run(["gc", "--yes"]) == 0
    said = capsys.readouterr().err
    assert "nothing to free now\n1.0 kB in 1 thing waits until 20" in said
    assert "next: cloudrun gc --older-than 0s" in said
    assert document(capsys, "gc", "--json")["waiting"]["size"] == 1000
    with pytest.raises(UsageError) as caught:
        run(["gc", "--older-than", "0s"])
    assert caught.value.next_step == "cloudrun gc --older-than 0s --yes"
    assert run(["gc", "--older-than", "0", "--yes"]) == 0
    assert "freed 1.0 kB" in capsys.readouterr().err
    assert document(capsys, "gc", "--json")["waiting"] == {"count": 0, "size": 0, "until": None}


def test_while_a_process_works_nothing_of_this_hour_is_freed_and_that_is_said(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = ended("a", files={"m": "1" * 1000})
    assert run(["rm", gone, "--yes"]) == 0
    ledger.register_client(this_client(SystemClock().now()))
    capsys.readouterr()
    assert run(["gc", "--older-than", "0s", "--yes"]) == 0
    said = capsys.readouterr().err
    assert "nothing to free now\n1.0 kB in 1 thing waits until" in said
    assert "a process works with this ledger" in said


def test_who_removes_a_run_by_its_name_is_told_of_the_others(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.begin_grid(GridRecord("g-1", "sweep", "train.py", GridState.OPEN, NOON, "same", 1))
    kept, gone = ended("sweep"), ended("sweep")
    assert run(["rm", "sweep", "--yes"]) == 0
    said = capsys.readouterr().err
    assert f"{gone} (sweep) succeeded, the newest of 2 that are called so; the grid that is called so is g-1" in said
    assert run(["rm", kept, "--yes"]) == 0
    assert "called so" not in capsys.readouterr().err


def test_a_whole_grid_is_removed_but_not_what_it_had_taken_over(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    baseline = ended("baseline")
    ledger.begin_grid(GridRecord("g-1", "sweep", "train.py", GridState.OPEN, NOON, "same", 3))
    cells = [ended(f"n{number}", grid_id="g-1") for number in range(2)]
    ledger.add_cells("g-1", list(enumerate([*cells, baseline])))
    ledger.begin_grid(GridRecord("g-2", "more", "train.py", GridState.OPEN, NOON + timedelta(hours=1), "other", 1))
    ledger.add_cells("g-2", [(0, cells[0])])
    ledger.end_grid("g-2", GridState.DONE)
    with pytest.raises(UsageError, match="not over"):
        run(["rm", "g-1", "--yes"])
    ledger.end_grid("g-1", GridState.DONE)
    capsys.readouterr()
    assert run(["rm", "g-2", "--yes"]) == 0
    assert "removed 0 runs" in (said := capsys.readouterr().err)
    assert "cloudrun gc" not in said
    assert "1 run stays: made outside them, or of another grid too (g-1)" in said
    assert run(["rm", "g-1", "--yes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (sorted(said["removed"]), said["stay"]) == (sorted(cells), [baseline])
    assert [each.run_id for each in ledger.runs()] == [baseline]


def test_a_grid_that_a_process_still_ends_is_not_removed(ledger: Ledger) -> None:
    client = this_client(NOON)
    ledger.register_client(client)
    ledger.begin_grid(GridRecord("g-1", "digits", "train.py", GridState.OPEN, NOON, "i", 1, client_id=client.client_id))
    ledger.end_grid("g-1", GridState.CANCELLED)
    with pytest.raises(UsageError, match="still works on g-1"):
        run(["rm", "g-1", "--yes"])
    ledger.dismiss_client(client.client_id)
    assert run(["rm", "g-1", "--yes"]) == 0


def test_what_is_not_there_is_not_removed_nor_is_anything_else(ledger: Ledger, ended: Made) -> None:
    kept = ended("digits")
    with pytest.raises(NotFound, match="near: digits"):
        run(["rm", "digits", "digit", "--yes"])
    assert [each.run_id for each in ledger.runs()] == [kept]
    with pytest.raises(UsageError, match="which runs"):
        run(["rm"])
    with pytest.raises(UsageError, match="--older-than"):
        run(["gc", "--older-than", "soon"])
    with pytest.raises(UsageError, match="'-1h' is not more than zero"):
        run(["gc", "--older-than", "-1h"])


def test_machines_of_a_sandbox_that_has_ended_are_freed_and_nothing_else_there(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "sandbox"
    for name in ("units/i-1", "units/notes", "cache/files"):
        (home / name).mkdir(parents=True)
        (home / name / "file").write_text("x" * 500)
    monkeypatch.setenv("CLOUDRUN_SANDBOX_DIR", str(home))
    assert document(capsys, "gc", "--dry-run", "--json")["garbage"] == [], "just written"
    for path in [*home.rglob("*"), home]:
        os.utime(path, (1e9, 1e9))
    found = document_of_gc(capsys)
    assert [(each["kind"], each["size"]) for each in found] == [("sandbox", 500)]
    assert run(["gc", "--yes"]) == 0
    assert sorted(path.name for path in (home / "units").iterdir()) == ["notes"]
    assert (home / "cache/files/file").exists()


def document_of_gc(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    import json

    assert run(["gc", "--dry-run", "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["garbage"]
    return found
