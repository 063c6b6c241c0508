"""`show` and `get` over a real ledger."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from cloudrun.cli.main import run
from cloudrun.core.errors import NotFound, UsageError
from cloudrun.core.states import EndReason
from cloudrun.ledger import Ledger
from tests.cli.conftest import Made, document


def test_show_tells_all_of_one_run(ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = ended("digits", {"accuracy": 0.5}, files={"out/model.joblib": "x" * 1500}, params={"C": 0.1})
    assert run(["show", run_id]) == 0
    shown = capsys.readouterr().out
    for expected in ("train.py", "succeeded", "C = 0.1", "accuracy 0.5", "out/model.joblib", "1.5 kB", "2.2 s"):
        assert expected in shown
    whole = document(capsys, "show", "digits", "--json")
    assert whole["run_id"] == run_id
    assert whole["timings"]["run_s"] == 2.25
    assert whole["unit"] == {"instance_id": "i-1", "instance_type": "m7i.large", "region": "us-east-1"}


def test_show_prints_the_end_of_the_logs(ledger: Ledger, ended: Made, capsys: pytest.CaptureFixture[str]) -> None:
    logs = {"stdout.log": "one\ntwo\nthree\n", "stderr.log": "Traceback\n"}
    ended("broken", logs=logs, reason=EndReason.EXITED)
    assert run(["show", "broken", "--log", "--lines", "2"]) == 0
    said = capsys.readouterr()
    assert said.out == "==> stdout.log <==\ntwo\nthree\n==> stderr.log <==\nTraceback\n"
    assert said.err == "  the last 2 of 3 lines of stdout.log; all of them: cloudrun logs broken\n"
    whole = document(capsys, "show", "broken", "--log", "--lines", "0", "--json")
    assert whole["logs"] == {"stdout.log": "one\ntwo\nthree", "stderr.log": "Traceback"}
    with pytest.raises(UsageError, match="--lines -1"):
        run(["show", "broken", "--lines", "-1"])


def test_a_run_that_is_not_there_is_refused_with_near_ones(ledger: Ledger, ended: Made) -> None:
    ended("digits")
    with pytest.raises(NotFound, match="digits") as caught:
        run(["show", "digit"])
    assert caught.value.exit_code == 2


def test_get_copies_a_file_out(ledger: Ledger, ended: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_id = ended("digits", files={"out/model.joblib": "the model"})
    assert run(["get", run_id, "model.joblib"]) == 0
    assert capsys.readouterr().out == "model.joblib\n"
    assert (tmp_path / "model.joblib").read_text() == "the model"

    (tmp_path / "models").mkdir()
    copied = document(capsys, "get", run_id, "out/model.joblib", "models", "--json")
    assert Path(copied["destination"]) == tmp_path / "models" / "model.joblib"
    assert copied["size"] == len("the model")
    assert (tmp_path / "models" / "model.joblib").read_text() == "the model"


def test_a_file_that_the_newest_run_of_a_name_lacks_is_had_from_an_older_one(ledger: Ledger, ended: Made) -> None:
    ended("digits", files={"model.joblib": "first"})
    has = ended("digits", files={"out/a file": "2", "model.joblib": "second"})
    failed = ended("digits", reason=EndReason.EXITED)
    for path, typed in (("model.joblib", "model.joblib"), ("out/a file", "'out/a file'")):
        with pytest.raises(
            NotFound, match=rf"{failed} \(failed\) has no artifact .*; {has} has, of the same name"
        ) as caught:
            run(["get", "digits", path])
        assert caught.value.next_step == f"cloudrun get {has} {typed}"
        assert run(shlex.split(caught.value.next_step)[1:]) == 0
    for words in (["get", "digits", "nothing"], ["get", failed, "model.joblib"]):
        with pytest.raises(NotFound, match="no artifact") as caught:
            run(words)
        assert has not in caught.value.next_step


def test_get_replaces_nothing_unasked(ledger: Ledger, ended: Made, tmp_path: Path) -> None:
    ended("digits", files={"model.joblib": "new"})
    (tmp_path / "model.joblib").write_text("mine")
    with pytest.raises(UsageError, match="there already") as caught:
        run(["get", "digits", "model.joblib"])
    assert "--force" in caught.value.next_step
    assert (tmp_path / "model.joblib").read_text() == "mine"
    assert run(["get", "digits", "model.joblib", "--force"]) == 0
    assert (tmp_path / "model.joblib").read_text() == "new"


@pytest.mark.parametrize(
    ("path", "dest", "problem"),
    [
        ("model.joblb", ".", "no artifact"),
        ("scores.json", ".", "several"),
        ("model.joblib", "nowhere/x", "no folder nowhere"),
        ("model.joblib", "nowhere/", "no folder nowhere"),
        ("model.joblib", "taken", "taken/model.joblib is a folder"),
    ],
)
def test_get_says_what_does_not_fit(ledger: Ledger, ended: Made, path: str, dest: str, problem: str) -> None:
    ended("digits", files={"model.joblib": "x", "a/scores.json": "1", "b/scores.json": "2"})
    Path("taken/model.joblib").mkdir(parents=True)
    with pytest.raises((UsageError, NotFound), match=problem) as caught:
        run(["get", "digits", path, dest])
    assert caught.value.next_step


@pytest.mark.parametrize("name", ["a file", "*", "-x", "it's", "a\nb"], ids=ascii)
def test_what_show_says_to_type_gets_that_very_file(
    ledger: Ledger, ended: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run_id = ended("digits", files={name: "mine"})
    assert run(["show", run_id]) == 0
    typed = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("next ")).removeprefix("next")
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {typed}"], capture_output=True, text=True, check=True).stdout
    assert run(words.split("\0")[1:-1]) == 0
    assert (tmp_path / name).read_text() == "mine"
