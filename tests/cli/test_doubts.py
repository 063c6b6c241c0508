"""A mistyped score or parameter is said before a machine is launched, where earlier runs of the script tell."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cloudrun.cli.main import run
from cloudrun.core.errors import UsageError
from cloudrun.core.events import Event, Note, nobody
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.process import Unit
from cloudrun.runs.doubts import check_names
from cloudrun.runs.machine import Machine
from tests.cli.conftest import Made

CODE = 'parser.add_argument("--alpha")\nprint(json.dumps({"accuracy": accuracy, "loss": loss}))\n'


@pytest.fixture
def train(ledger: Ledger, ended: Made, tmp_path: Path) -> Path:
    """A script with one earlier run."""
    script = tmp_path / "train.py"
    script.write_text(CODE)
    ended("first", {"accuracy": 0.9, "loss": 0.1}, params={"alpha": 1})
    return script


def said(script: Path, ledger: Ledger, *params: str, metric: str | None = None, arguments: str = "") -> list[str]:
    heard: list[Event] = []
    check_names(script, params, metric, ledger, heard.append, arguments=arguments.split())
    assert all(isinstance(event, Note) and event.level == "warning" for event in heard)
    return [event.text for event in heard if isinstance(event, Note)]


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--set", "alpha=1,2"], ["--detach"]])
def test_a_metric_that_is_nearly_one_of_theirs_is_refused(ledger: Ledger, train: Path, more: list[str]) -> None:
    with pytest.raises(UsageError, match="'acuracy'; did you mean accuracy") as caught:
        run(["submit", str(train), "--metric", "acuracy", *more])
    assert caught.value.exit_code == 2
    assert "--metric accuracy" in caught.value.next_step
    assert [each.launch_id for each in ledger.launches()] == ["l-1"], "of the fixture"


@pytest.mark.parametrize("how", ["send_run", "submit"])
def test_it_is_refused_in_python_before_the_job_is_sent(ledger: Ledger, train: Path, how: str) -> None:
    machine = SimpleNamespace(unit=SimpleNamespace(settings=Settings(), ledger=ledger, observe=nobody))
    unit = Unit(cast("Machine", machine))
    send = unit.send_run if how == "send_run" else lambda script, metric: unit.submit(script, metric=metric).result()
    with pytest.raises(UsageError, match="'acuracy'; did you mean accuracy") as caught:
        send(train, metric="acuracy")
    assert caught.value.next_step == "metric='accuracy', or leave it out"
    assert [each.name for each in ledger.runs()] == ["first"]


def test_one_that_is_like_none_of_theirs_is_a_warning(ledger: Ledger, train: Path) -> None:
    (words,) = said(train, ledger, metric="f1")
    assert "'f1'" in words
    assert "accuracy, loss" in words


def test_one_that_may_be_put_together_and_one_of_the_settings_are_warned_of(ledger: Ledger, train: Path) -> None:
    assert len(said(train, ledger, metric="accuracy_2")) == 1
    heard: list[Event] = []
    check_names(train, (), "acuracy", ledger, heard.append, metric_set_in="/p/cloudrun.toml:3")
    (note,) = heard
    assert isinstance(note, Note)
    assert note.text.startswith("/p/cloudrun.toml:3: no run of train.py so far gave a score 'acuracy'")
    assert note.text.endswith("did you mean accuracy?")


def test_one_that_the_script_may_make_while_it_runs_is_a_warning(ledger: Ledger, train: Path) -> None:
    train.write_text(CODE + "print(json.dumps({f'mean_{name}': 1}))")
    assert len(said(train, ledger, metric="mean_accuracy")) == 1
    train.write_text("print(cross_validate(model))")
    assert len(said(train, ledger, metric="acuracy")) == 1


def test_one_that_the_code_names_is_a_new_one(ledger: Ledger, train: Path, tmp_path: Path) -> None:
    assert said(train, ledger, metric="loss") == []
    with pytest.raises(UsageError):
        said(train, ledger, metric="val_accuracy")
    (tmp_path / "scoring.py").write_text("NAMES = ['val_accuracy']\n")
    train.write_text(f"import scoring\n{CODE}")
    assert said(train, ledger, metric="val_accuracy") == []


def test_a_project_s_metric_that_another_script_gives_is_refused_to_none(
    ledger: Ledger, ended: Made, train: Path
) -> None:
    ended("other", {"val_accuracy": 0.9}, script="other.py")
    assert "val_accuracy" in said(train, ledger, metric="val_accuracy")[0]


def test_before_the_first_run_nobody_can_tell(ledger: Ledger, tmp_path: Path) -> None:
    new = tmp_path / "new.py"
    new.write_text("print(1)")
    assert said(new, ledger, "alhpa", metric="acuracy") == []


def test_a_mistyped_parameter_is_a_warning(ledger: Ledger, train: Path) -> None:
    assert said(train, ledger, "alpha", arguments="data.csv") == []
    assert said(train, ledger, "alpha", "alhpa", "momentum", arguments="alpha=1") == [
        "train.py and its earlier runs have nothing called 'alhpa': did you mean alpha?",
        "train.py and its earlier runs have nothing called 'momentum': they have alpha",
        "train.py gets alpha=1 as an argument: as a parameter it is --set alpha=1",
    ]


@pytest.mark.parametrize(
    ("typed", "next_step"),
    [
        ("--C", "cloudrun submit train.py -- --C ...; or make it a parameter: --set C=..."),
        ("--alpha", "cloudrun submit train.py -- --alpha ...; or make it a parameter: --set alpha=..."),
    ],
)
def test_a_script_s_own_option_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, next_step: str
) -> None:
    (tmp_path / "train.py").write_text("parser.add_argument('--C'); parser.add_argument(\"--alpha\")\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"is an option of train\.py") as caught:
        run(["submit", "train.py", typed, "0.1"])
    assert caught.value.next_step.endswith(next_step)


@pytest.mark.parametrize(
    ("typed", "meant"), [("--deadlin", "--deadline"), ("--C", None), ("--i", None), ("--alpha", None)]
)
def test_an_option_is_near_by_what_follows_its_dashes(tmp_path: Path, typed: str, meant: str | None) -> None:
    (tmp_path / "train.py").write_text("")
    with pytest.raises(UsageError) as caught:
        run(["submit", str(tmp_path / "train.py"), typed, "0.1"])
    assert caught.value.instead == (None if meant is None else (typed, meant))
