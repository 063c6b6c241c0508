"""`export`, `to_pandas`, and how runs look in a notebook: what leaves the ledger, whole and harmless."""

from __future__ import annotations

import json
import math
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cloudrun.cli.main import run
from cloudrun.core.errors import LedgerError, UsageError
from cloudrun.core.records import Environment, GridRecord
from cloudrun.core.states import EndReason, GridState
from cloudrun.ledger import Ledger
from cloudrun.plan.fingerprint import code_digest
from cloudrun.plan.markup import pool_html
from tests.cli.conftest import NOON, Made, document

CODE = {"train.py": b"print(1)\r\n\xff", "lib/a.py": b""}


@pytest.fixture
def trained(ledger: Ledger, ended: Made) -> str:
    ledger.keep_code(code_digest(CODE), CODE)
    ledger.keep_environment(Environment("3.11", "x86_64", ("numpy==2.1.0",), "requirements.txt", "e1"))
    return ended(
        "digits",
        {"accuracy": 0.5, "odd": math.nan},
        params={"alpha": 0.1, "layers": [1, 2]},
        files={"out/model.joblib": "the model", "table.csv": "a,b"},
        logs={"stdout.log": "said"},
        code=code_digest(CODE),
        environment="e1",
    )


def test_a_run_is_a_folder_of_plain_files(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = document(capsys, "export", trained, "exported", "--json")
    folder = Path("exported")
    assert said["folders"] == [str(folder.absolute())]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files["outputs/out/model.joblib"] == b"the model"
    assert files["logs/stdout.log"] == b"said"
    assert {path.removeprefix("code/"): content for path, content in files.items() if path.startswith("code/")} == CODE
    assert json.loads(files["params.json"]) == {"alpha": 0.1, "layers": [1, 2]}
    assert json.loads(files["scores.json"]) == {"accuracy": 0.5, "odd": "NaN"}
    assert json.loads(files["run.json"])["run_id"] == trained
    assert files["environment.txt"] == b"# Python 3.11, x86_64\nnumpy==2.1.0\n"


def test_nothing_is_written_over_and_nothing_half(ledger: Ledger, trained: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note").touch()
    (tmp_path / "empty").mkdir()
    for place, problem in (("mine", "there already"), ("nowhere/x", "no folder nowhere"), ("cloudrun.toml", "already")):
        with pytest.raises(UsageError, match=problem):
            run(["export", trained, place])
    assert run(["export", trained, "empty"]) == 0
    ledger.get(trained).path("table.csv").chmod(0o600)
    ledger.get(trained).path("table.csv").write_text("other bytes")
    with pytest.raises(LedgerError, match="damaged"):
        run(["export", trained, "whole"])
    assert not list(tmp_path.glob("*whole*"))
    with pytest.raises(UsageError, match="a run and a folder"):
        run(["export", trained])


def test_each_cell_of_a_grid_is_a_folder(ledger: Ledger, ended: Made) -> None:
    cells = [ended(f"n{number}", files={"x": str(number)}) for number in range(2)]
    ledger.begin_grid(GridRecord("g-1", "sweep", "train.py", GridState.OPEN, NOON, "same", 2))
    ledger.add_cells("g-1", list(enumerate(cells)))
    for _ in range(2):  # the second time there is nothing left to do
        assert run(["export", "g-1", "cells"]) == 0
    assert {path.name: (path / "outputs/x").read_text() for path in Path("cells").iterdir()} == dict(
        zip(cells, "01", strict=True)
    )


# -- MLflow and pandas, where they are


def test_without_mlflow_or_pandas_it_is_said(ledger: Ledger, trained: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlflow", "pandas"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match="mlflow is not installed") as caught:
        run(["export", "--mlflow"])
    assert caught.value.next_step == "pip install mlflow"
    with pytest.raises(UsageError, match="pandas is not installed") as caught:
        ledger.to_pandas()
    assert caught.value.next_step == "pip install pandas"
    with pytest.raises(UsageError, match="one run or grid at most"):
        run(["export", "a", "b", "--mlflow"])


@pytest.mark.filterwarnings("default")
def test_runs_are_in_mlflow_once_however_often_they_are_exported(
    ledger: Ledger, trained: str, ended: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow")
    failed = ended("broken", reason=EndReason.EXITED)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert run(["export", "--mlflow", uri]) == 0
    assert run(["export", trained, "--mlflow", uri]) == 0
    assert "0 new runs" in capsys.readouterr().err
    client = mlflow.MlflowClient(tracking_uri=uri)
    [experiment] = [each for each in client.search_experiments() if each.name != "Default"]
    assert experiment.name == f"{ledger.project.name}/train.py"
    there = {each.data.tags["cloudrun.run_id"]: each for each in client.search_runs([experiment.experiment_id])}
    assert there.keys() == {trained, failed}
    one = there[trained]
    assert (one.info.run_name, one.info.status, there[failed].info.status) == ("digits", "FINISHED", "FAILED")
    assert one.data.params == {"alpha": "0.1", "layers": "[1, 2]"}
    assert one.data.metrics == {"accuracy": 0.5, "time.launch_s": 0.5, "time.run_s": 2.25, "time.total_s": 3.1}
    assert one.data.tags["cloudrun.score.odd"] == "nan"
    assert "outputs/out/model.joblib" in [each.path for each in client.list_artifacts(one.info.run_id, "outputs/out")]
    client.delete_tag(one.info.run_id, "cloudrun.is_whole")  # as if it had been interrupted
    assert document(capsys, "export", "--mlflow", uri, "--json")["exported"] == [trained]
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_runs_are_a_data_frame(ledger: Ledger, trained: str, ended: Made) -> None:
    pandas = pytest.importorskip("pandas")
    other = ended("other", {"accuracy": 0.75}, params={"alpha": 0.2})
    frame = ledger.to_pandas()
    assert list(frame.index) == [other, trained], "best first"
    assert frame["params.alpha"].to_list() == [0.2, 0.1]
    assert frame["scores.accuracy"].max() == 0.75
    assert frame.loc[trained, "run_s"] == 2.25
    assert isinstance(frame["created_at"].dtype, pandas.DatetimeTZDtype)
    assert ledger.to_pandas(script="none.py").empty


# -- in a notebook


class Tags(HTMLParser):
    def __init__(self, markup: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.open: list[str] = []
        self.words = ""
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names.update(name for name, _ in attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


EVIL = "</td><script>alert(1)</script><img src=x onerror=y>\"'&\x1b\u202e"


def test_whatever_a_job_calls_things_is_text_in_a_notebook(ledger: Ledger, ended: Made) -> None:
    run_id = ended(EVIL, {EVIL: 0.5}, params={EVIL: EVIL}, files={EVIL.replace("/", "_"): "x"}, script=EVIL)
    found = ledger.get(run_id)
    for markup in (found._repr_html_(), ledger.ranking()._repr_html_(), pool_html({EVIL: EVIL})):
        seen = Tags(markup)
        assert seen.open == []
        assert seen.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "span", "i", "br"}
        assert seen.names <= {"style"}
        assert "<script>alert(1)</script>" in seen.words, "it is there, as text"
        assert "\x1b" not in markup
        assert "\u202e" not in markup


def test_a_ranking_is_a_list_that_a_notebook_shows_as_a_table(ledger: Ledger, ended: Made) -> None:
    assert ledger.ranking() == []
    assert "no runs" in ledger.ranking()._repr_html_()
    for number in range(60):
        ended(f"n{number}", {"accuracy": number}, params={"alpha": number})
    ranking = ledger.ranking()
    assert [each.name for each in ranking[:2]] == ["n59", "n58"]
    assert "and 10 more" in Tags(ranking._repr_html_()).words
