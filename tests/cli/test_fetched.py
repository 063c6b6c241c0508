"""A model that was fetched into the project would travel to every machine: that is said, once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudrun.cli.main import run
from cloudrun.core.events import Event, Note
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.runs import fetched
from cloudrun.runs.prepared import Job, inspect
from tests.cli.conftest import Made

LARGE = "x" * 1_100_000


@pytest.fixture
def warned(ledger: Ledger, tmp_path: Path) -> Callable[[], list[str]]:
    """What is said of the project's files before a run of its script."""
    script = tmp_path / "train.py"
    script.write_text("print(1)")

    def look() -> list[str]:
        heard: list[Event] = []
        inspect(Job(script), Settings(), ledger, heard.append)
        return [event.text for event in heard if isinstance(event, Note) and event.level == "warning"]

    return look


def test_what_get_has_brought_is_named_once(ended: Made, tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    run_id = ended("first", files={"out/model.joblib": LARGE, "empty": "", "small.joblib": "x"})
    (tmp_path / "data.csv").write_text("y" * len(LARGE))
    (tmp_path / "nothing.txt").touch()
    assert warned() == []
    assert run(["get", "first", "out/model.joblib", "best.joblib"]) == 0
    (words,) = warned()
    assert words.startswith(f"best.joblib (1.1 MB, of {run_id}) is shipped: ")
    assert "move it elsewhere" in words
    assert warned() == []
    assert run(["get", "first", "small.joblib"]) == 0
    assert warned()[0].startswith(f"small.joblib (1 B, of {run_id}) is shipped: ")
    assert warned() == []


def test_what_a_run_was_given_and_has_copied_was_not_fetched(
    ledger: Ledger, ended: Made, tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    settings = b'{"depth": 3}'
    (tmp_path / "settings.json").write_bytes(settings)
    state = ledger.keep_beside({"settings.json": hashlib.sha256(settings).hexdigest()[:16]})
    ended("first", files={"out/settings.json": settings.decode()}, beside=state)
    assert warned() == []


def test_in_a_project_of_very_many_files_only_the_large_ones_are_named(
    ended: Made, tmp_path: Path, warned: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetched, "BESIDE_FILES", 1)  # 10,000 take a while to be hashed
    ended("first", files={"model.joblib": LARGE, "small.joblib": "x"})
    for name in ("model.joblib", "small.joblib"):
        assert run(["get", "first", name]) == 0
    (words,) = warned()
    assert words.startswith("model.joblib (1.1 MB")
    assert "small.joblib" not in words


def test_in_a_checkout_it_goes_into_gitignore(ended: Made, tmp_path: Path, warned: Callable[[], list[str]]) -> None:
    ended("first", files={"model.joblib": LARGE})
    (tmp_path / ".git").mkdir()
    assert run(["get", "first", "model.joblib"]) == 0
    assert warned()[0].endswith("name it in .gitignore")


def test_a_report_is_not_shipped(ended: Made, tmp_path: Path, ledger: Ledger, warned: Callable[[], list[str]]) -> None:
    ended("first", {"accuracy": 0.9})
    assert run(["report"]) == 0
    assert warned() == []
    goods = inspect(Job(tmp_path / "train.py"), Settings(), ledger, lambda _: None)
    assert [entry.path for entry in goods.entries] == ["cloudrun.toml", "train.py"]
