"""What `results` and `report` rank by where nobody says it: the settings' metric; and one order for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudrun.cli.main import run
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import GridState, RunState
from cloudrun.ledger import Ledger
from cloudrun.plan.ranking import NOTHING_PREFERRED, Preferred, chosen, rank_key
from cloudrun.report import collect
from tests.cli.conftest import NOON, Made, document


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    return [each["name"] for each in document(capsys, "results", "--json", *arguments)["runs"]]


@pytest.mark.parametrize(
    ("metric", "minimize", "preferred", "by"),
    [
        ("f1", None, Preferred("auc", True), ("f1", None)),
        ("f1", True, Preferred("auc", False), ("f1", True)),
        (None, None, Preferred("auc", True), ("auc", True)),
        (None, False, Preferred("auc", True), ("auc", False)),
        (None, None, Preferred("acu", True), (None, None)),
        (None, None, Preferred(None, True), (None, True)),
        (None, None, NOTHING_PREFERRED, (None, None)),
    ],
)
def test_who_asks_is_heard_before_the_settings_which_count_only_for_runs_that_have_it(
    metric: str | None, minimize: bool | None, preferred: Preferred, by: tuple[str | None, bool | None]
) -> None:
    assert chosen(metric, minimize, preferred, lambda name: name in ("auc", "f1")) == by


def test_the_better_then_the_older_is_ahead_and_what_is_no_number_last() -> None:
    runs = [("r-2", 0.5), ("r-0", float("nan")), ("r-1", 0.5), ("r-3", 0.9), ("r-4", float("inf"))]
    for minimize, expected in ((False, ["r-3", "r-1", "r-2"]), (True, ["r-1", "r-2", "r-3"])):
        ranked = sorted(runs, key=lambda pair: rank_key(pair[1], pair[0], minimize=minimize))
        assert [run_id for run_id, _ in ranked] == [*expected, "r-0", "r-4"]


def test_the_metric_of_the_settings_ranks_what_has_it(
    ledger: Ledger, ended: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"score": 3, "size": 10})
    ended("b", {"score": 1, "size": 30})
    ended("other", {"f1": 0.5}, script="other.py")
    assert names(capsys) == ["other", "a", "b"]
    (tmp_path / "cloudrun.toml").write_text('metric = "size"\n')
    assert names(capsys) == ["other", "b", "a"]
    assert names(capsys, "--metric", "score") == ["a", "b"]
    assert collect(ledger, preferred=Preferred("size")).metric == "size"
    (tmp_path / "cloudrun.toml").write_text('metric = "size"\nminimize = true\n')
    assert names(capsys, "--script", "train.py") == ["a", "b"]
    assert names(capsys, "--script", "train.py", "--maximize") == ["b", "a"]
    assert names(capsys, "--script", "train.py", "--sort", "score") == ["a", "b"], "of that one nothing is said there"
    assert document(capsys, "report", "--json")["metric"] == "size"


def test_a_metric_of_the_settings_that_no_run_has_is_said_with_its_file(
    ledger: Ledger, ended: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"accuracy": 0.9})
    (tmp_path / "cloudrun.toml").write_text('\nmetric = "acuracy"\n')
    assert run(["results"]) == 0
    said = capsys.readouterr()
    assert f"{tmp_path}/cloudrun.toml:2: no run here has the score 'acuracy'; did you mean accuracy?" in said.err
    assert "0.9" in said.out
    (tmp_path / "cloudrun.toml").write_text("metric = \n")
    assert run(["results"]) == 0
    assert f"the settings are not looked at: {tmp_path}/cloudrun.toml:1" in capsys.readouterr().err


def test_only_scripts_with_runs_of_that_kind_are_listed_or_named(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        ended("old", {"accuracy": 0.9}, script=f"old{number}.py", params={"alpha": number % 2})
    for number in range(5):
        ended("new", {"accuracy": 0.9}, script=f"new{number}.py")
    assert run(["results", "--where", "alpha=1", "--limit", "1"]) == 0
    said = capsys.readouterr()
    assert [line.partition(":")[0] for line in said.out.splitlines() if ": 1 run" in line] == [
        f"old{number}.py" for number in (7, 5, 3, 1)
    ]
    assert "older" not in said.err
    assert run(["results"]) == 0
    assert "older: old7.py, old6.py, old5.py" in capsys.readouterr().err


def test_whole_numbers_are_shown_as_they_were_written(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, score in (("a", 99), ("b", 1234567), ("c", 426)):
        ended(name, {"score": score}, params={"depth": score})
    assert run(["results", "--columns", "score,depth"]) == 0
    assert capsys.readouterr().out.split() == ["score", "depth", "1234567", "1234567", "426", "426", "99", "99"]
    assert run(["results", "--csv", "--columns", "score", "--sort", "score"]) == 0
    assert capsys.readouterr().out.split() == ["score", "1234567", "426", "99"]
    assert run(["show", "b"]) == 0
    assert "score 1234567 " in capsys.readouterr().out
    shown = document(capsys, "show", "c", "--json")
    assert repr(shown["scores"]["score"]) == "426"
    assert "score=1234567" in repr(ledger.get("b"))


def test_of_what_is_not_over_it_is_said_who_knows_more(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"score": 1})
    assert run(["results"]) == 0
    assert "ps" not in capsys.readouterr().err
    ledger.add_run(RunRecord("r-2", "b", "train.py", RunState.QUEUED, NOON))
    assert run(["results"]) == 0
    assert "1 of them is not over or not home; cloudrun ps asks the machines" in capsys.readouterr().err


def test_the_newest_of_several_grids_of_a_name_is_taken_and_that_is_said(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        ledger.begin_grid(
            GridRecord(f"g-{number}", "sweep", "train.py", GridState.OPEN, NOON.replace(minute=number), "same", 1)
        )
        ledger.add_cells(f"g-{number}", [(0, ended("cell", {"accuracy": 0.9}, grid_id=f"g-{number}"))])
    assert run(["results", "--grid", "sweep"]) == 0
    assert "the newest grid called sweep is g-2; older ones: g-1, g-0" in capsys.readouterr().err
    assert run(["results", "--grid", "g-1"]) == 0
    assert "called sweep" not in capsys.readouterr().err
