"""`cloudrun report` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudrun.cli.main import run
from cloudrun.core.errors import CloudrunError, UsageError
from cloudrun.core.marks import REPORT_MARK
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """With one queued run; the working directory is its project."""
    (tmp_path / "cloudrun.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    made = Ledger(tmp_path)
    made.add_run(RunRecord("r-1", "first", "train.py", RunState.QUEUED, datetime(2026, 3, 1, tzinfo=UTC)))
    yield made
    made.close()


def test_it_writes_the_file_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report"]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/report.html\n"
    assert "1 run, " in err
    assert (tmp_path / "report.html").read_text().startswith(REPORT_MARK)
    assert not list(tmp_path.glob(".*.part"))


def test_an_older_report_is_replaced_and_anything_else_is_not(tmp_path: Path) -> None:
    assert run(["report"]) == run(["report"]) == 0
    other = tmp_path / "thesis.html"
    other.write_text("years of work")
    with pytest.raises(UsageError, match="is no report"):
        run(["report", "-o", "thesis.html"])
    assert other.read_text() == "years of work"
    assert run(["report", "-o", "thesis.html", "--force"]) == 0
    assert other.read_text().startswith(REPORT_MARK)


def test_a_folder_gets_a_report_and_one_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(["report", "-o", "out"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(UsageError, match="there is no folder"):
        run(["report", "-o", "nowhere/report.html"])


def test_where_there_is_no_room_the_older_report_stays(tmp_path: Path) -> None:
    assert run(["report"]) == 0
    before = (tmp_path / "report.html").read_bytes()
    (tmp_path / ".report.html.part").mkdir()  # as good as a full disk: the new one cannot be written
    with pytest.raises(CloudrunError, match="cannot be written"):
        run(["report"])
    assert (tmp_path / "report.html").read_bytes() == before


def test_for_programs_it_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "first", "-o", "one.html", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    size = (tmp_path / "one.html").stat().st_size
    assert document == {
        "schema_version": 1,
        "path": f"{tmp_path}/one.html",
        "size": size,
        "runs": 1,
        "metric": None,
    }


def test_a_metric_that_no_run_has_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scores at all"):
        run(["report", "--metric", "f1"])
    assert not (tmp_path / "report.html").exists()


def test_a_mistyped_score_is_told_from_one_that_nobody_gave(ledger: Ledger) -> None:
    with pytest.raises(UsageError, match="no scores at all") as caught:
        run(["report", "--metric", "accuracy"])
    assert caught.value.instead is None
