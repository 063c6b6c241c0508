"""What `results` and `report` rank by where nobody says it: the settings' metric; and one order for all of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudrun.cli.grid_page import page
from cloudrun.cli.grid_summary import closing_lines
from cloudrun.cli.main import run
from cloudrun.core.records import GridRecord, RunRecord
from cloudrun.core.states import GridState, RunState
from cloudrun.grids.cells import Tally
from cloudrun.grids.grid import Finished
from cloudrun.ledger import Ledger
from cloudrun.plan.costs import Bill
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
        ("auc", None, Preferred("auc", True), ("auc", True)),
        (None, None, Preferred(None, True), (None, None)),
        (None, True, Preferred(None, None), (None, True)),
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
    for asked in ("--metric", "--sort"):
        assert names(capsys, "--script", "train.py", asked, "size") == ["a", "b"], "whoever names it"
    assert collect(ledger, metric="score", preferred=Preferred("size", True)).minimize == {
        "f1": False, "score": False, "size": True,
    }  # fmt: skip
    assert document(capsys, "report", "--json")["metric"] == "size"


def test_smaller_is_better_without_a_metric_turns_no_ranking_upside_down(
    ended: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"accuracy": 0.9})
    ended("b", {"accuracy": 0.8})
    ended("dear", {"price": 9}, script="prices.py", minimize=True)
    ended("cheap", {"price": 1}, script="prices.py", minimize=True)
    (tmp_path / "cloudrun.toml").write_text("minimize = true\n")
    assert names(capsys) == ["cheap", "dear", "a", "b"]
    assert names(capsys, "--script", "train.py", "--minimize") == ["b", "a"]


def test_a_loss_is_turned_round_where_the_settings_say_so(
    ended: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"loss": 1}, minimize=True)
    ended("b", {"loss": 2}, minimize=True)
    (tmp_path / "cloudrun.toml").write_text('metric = "loss"\n')
    assert names(capsys) == ["a", "b"]
    (tmp_path / "cloudrun.toml").write_text('metric = "loss"\nminimize = false\n')
    assert names(capsys) == names(capsys, "--metric", "loss") == ["b", "a"]


def test_a_table_says_which_way_is_better_where_the_name_does_not(
    ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    ended("a", {"r2": 0.9, "loss": 0.1})
    above = {}
    for more in ("--minimize", "--maximize", "--metric=loss", "--metric=loss --maximize"):
        assert run(["results", *more.split()]) == 0
        above[more] = capsys.readouterr().out.splitlines()[0]
    assert above["--minimize"] == "1 run by r2, smaller is better"
    assert above["--metric=loss --maximize"] == "1 run by loss, larger is better"
    assert above["--maximize"].split() == ["rank", "run", "name", "state", "r2", "when"]
    assert above["--metric=loss"].split() == ["rank", "run", "name", "state", "loss", "when"]


def test_what_is_ranked_per_dollar_is_called_so_above_and_below(
    ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    for script in ("train.py", "other.py"):
        ledger.set_cost(ended("a", {"accuracy": 0.9, "f1": 0.8}, script=script), 0.1)
    assert run(["results", "--sort", "score_per_usd"]) == 0
    said = capsys.readouterr()
    assert said.out.count("1 run by score_per_usd of accuracy, larger is better") == 2
    assert said.err.count("ranked by score_per_usd of accuracy; other scores: f1") == 2
    assert "ranked by accuracy" not in said.err


def test_a_grid_that_has_nothing_left_to_do_is_ranked_as_show_ranks_it(ledger: Ledger, ended: Made) -> None:
    ledger.begin_grid(GridRecord("g-0", "sweep", "train.py", GridState.OPEN, NOON, "same", 2))
    scores = ({"first": 1, "r2": 0.1}, {"first": 2, "r2": 0.05})
    ledger.add_cells("g-0", [(n, ended("cell", each, grid_id="g-0", params={"n": n})) for n, each in enumerate(scores)])
    ledger.end_grid("g-0", GridState.DONE)
    finished = Finished(ledger.grid("g-0"), Tally(2, succeeded=2, taken=2), Bill(0, 0.0, 0.0))

    def said(asked: Preferred, minimize: bool | None = None) -> list[str]:
        lines = closing_lines(finished, ledger, asked, minimize=minimize)
        ranked = [line.strip() for line in lines if " by " in line or "n=" in line]
        if minimize is None:
            shown = [line.removeprefix("best").strip() for line in page(finished, ledger, asked)]
            assert [line for line in shown if line in ranked] == ranked
        return ranked

    assert said(Preferred("r2")) == ["1  r2 0.1  n=0", "2  r2 0.05  n=1"]
    assert said(Preferred("r2", True)) == ["by r2, smaller is better", "1  r2 0.05  n=1", "2  r2 0.1  n=0"]
    assert said(Preferred("mistyped", True)) == ["1  first 2  n=1", "2  first 1  n=0"]
    assert said(NOTHING_PREFERRED, True)[:2] == ["by first, smaller is better", "1  first 1  n=0"]


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
