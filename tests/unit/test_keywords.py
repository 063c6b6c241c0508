"""What is said of a duration that is none, by the name under which it was typed: as an option or as a keyword."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudrun import config
from cloudrun.cli.main import run
from cloudrun.core.errors import ConfigError, UsageError
from cloudrun.core.settings import Settings
from cloudrun.process import process_unit


@pytest.mark.parametrize("option", ["--deadline", "--grace", "--idle", "--wall-time"])
def test_a_negative_duration_is_no_missing_argument(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'-5m' is not more than zero: a duration is positive"):
        run(["submit", "train.py", option, "-5m"])


@pytest.mark.parametrize(
    "words",
    [["cancel", "r-1", "--grace", "-1s"], ["extend", "r-1", "-1s"], ["sandbox", "interrupt", "i-1", "--in", "-1s"]],
)
def test_nor_is_it_where_a_run_or_a_machine_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="'-1s' is not more than zero"):
        run(words)


def test_a_negative_size_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="memory: '-5GB' is less than zero"):
        run(["submit", "train.py", "--memory", "-5GB"])


@pytest.mark.parametrize("value", ["-5m", -300, 0])
def test_a_keyword_is_called_as_it_was_typed(value: float | str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^deadline: "), process_unit(project=tmp_path, deadline=value):
        raise AssertionError("nothing may be launched")


def test_a_number_is_seconds_for_a_keyword_and_unclear_elsewhere(tmp_path: Path) -> None:
    settings = config.load(tmp_path, {"deadline": 300, "grace": 5}, {}, origin="keyword")
    assert (settings.deadline_s, settings.grace_s) == (300.0, 5.0)
    with pytest.raises(ConfigError, match="has no unit"):
        config.load(tmp_path, {"deadline": 300}, {})


def test_a_keyword_in_both_spellings_is_set_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set twice"):
        config.load(tmp_path, {"deadline": "4h", "deadline_s": 3}, {}, origin="keyword")


def test_what_is_said_of_one_run_changes_nothing_else() -> None:
    before = Settings(memory_bytes=5_000_000_000, data=("a",))
    after = config.changed(before, {"wall_time": 90, "data": ["b"], "grace": None})
    assert (after.wall_time_s, after.data, after.memory_bytes) == (90.0, ("b",), 5_000_000_000)
    assert (before.wall_time_s, before.data) == (None, ("a",))
