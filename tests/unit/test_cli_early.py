"""Which machine a command line names, before anybody has understood the line."""

from __future__ import annotations

import pytest

from cloudrun.cli import early


@pytest.fixture(autouse=True)
def nothing_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Command lines that other tests gave to this process may have begun something that nobody took."""
    monkeypatch.setattr(early, "_begun", [])


@pytest.mark.parametrize(
    "words",
    [
        ["train.py"],
        ["train.py", "--", "--instance-id", "i-1"],
        ["train.py", "--instance-id"],
        ["--instance-ids", "i-1"],
        ["train.py", "--instance-id", "i-1", "--dry-run"],
        ["train.py", "--dry-run=true", "--instance-id", "i-1"],
    ],
)
def test_a_line_that_names_none_begins_nothing(words: list[str]) -> None:
    early.begin(words)
    assert early.taken("i-1") is None
    assert not early._begun


@pytest.mark.parametrize("words", [["train.py", "--instance-id", "i-none"], ["--instance-id=i-none", "train.py"]])
def test_a_machine_that_nobody_knows_is_no_error_yet(
    words: list[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(str(tmp_path))
    early.begin(words)
    assert [begun.instance_id for begun in early._begun] == ["i-none"]
    assert early.taken("i-other") is None
    assert early.taken("i-none") is None
    assert not early._begun
