"""What is typed wrong is refused, with what to type instead; what is a parameter is told from what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.cli.main import retyped, run
from cloudrun.cli.parser import parse_params
from cloudrun.core.errors import UsageError
from tests.command import Cli


@pytest.mark.parametrize(
    ("arguments", "message", "next_step"),
    [
        (["submt"], "submit", "cloudrun --help"),
        (["--provider", "aws"], "--provider", "cloudrun --help"),
        (["submit"], "SCRIPT", "cloudrun submit --help"),
        (["submit", "t.py", "--deadlin", "3h"], "--deadline", "cloudrun submit --help"),
        (["submit", "t.py", "--epochs", "3"], "--epochs", "after --"),
        (["results", "--limit", "many"], "many", "cloudrun results --help"),
        (["results", "--limit", "-1"], "less than zero", "--limit 20"),
        (["sandbox", "strt"], "start", "cloudrun sandbox --help"),
        (["submit", "t.py", "--set", "alpha"], "--set alpha has no '='", "--set alpha=VALUE"),
        (["submit", "t.py", "--units", "2", "--max-units", "3"], "--units 2 is so many", "keep one of the two"),
        (["submit", "t.py", "--deadline", "soon"], "deadline: 'soon'", "deadline"),
        (["submit", "t.py", "--provider", "gcp"], "provider: 'gcp'", "provider"),
    ],
)
def test_a_wrong_command_line_is_refused_with_the_next_step(
    arguments: list[str], message: str, next_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        run(arguments)
    assert message in str(caught.value)
    assert next_step in caught.value.next_step
    assert not (tmp_path / ".cloudrun").exists()


@pytest.mark.parametrize(
    ("typed", "message", "next_step"),
    [
        ("reslts --limit 3", "there is no cloudrun reslts; did you mean results?", "cloudrun results --limit 3"),
        ("nonesuch", "there is no cloudrun nonesuch", "cloudrun --help"),
        ("run train.py", "there is no cloudrun run; did you mean submit?", "cloudrun submit train.py"),
        ("train.py", "train.py is no command", "cloudrun submit train.py"),
        ("--verson", "there is no cloudrun --verson; did you mean --version?", "cloudrun --version"),
        ("sandbox statsu --json", "did you mean status?", "cloudrun sandbox status --json"),
        ("sandbox foo", "it has start, stop, status, interrupt, shortage", "cloudrun sandbox --help"),
        ("results --metrc=f1", "--metric", "cloudrun results --metric=f1"),
        ("submit t.py --metrik a -- --metrik b", "--metric", "cloudrun submit t.py --metric a -- --metrik b"),
        ("get train", "PATH is missing", "cloudrun get RUN model.joblib, or cloudrun get --help"),
    ],
)
def test_what_was_probably_meant_is_what_to_type_next(
    typed: str, message: str, next_step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        run(typed.split())
    assert message in str(caught.value)
    assert "`" not in str(caught.value)
    assert (retyped(typed.split(), caught.value.instead) or caught.value.next_step) == next_step


def test_a_word_that_stands_there_twice_is_not_put_right_by_guessing() -> None:
    assert retyped(["show", "tran"], ("tran", "train")) == "cloudrun show train"
    assert retyped(["compare", "tran", "tran"], ("tran", "train")) == ""
    assert retyped(["show"], ("tran", "train")) == ""
    assert retyped(["show"], None) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "-5"], "--budget -5 pays for nothing"),
        (["--budget", "0"], "--budget 0 pays for nothing"),
        (["--budget", "nan"], "pays for nothing"),
        (["--retries", "-1"], "--retries -1 is less than 0"),
        (["--slots", "0"], "--slots 0 is less than 1"),
        (["--cpus", "0"], "--cpus 0 is less than 1"),
        (["--again", "--instance-id", "i-0123"], "this is a grid by --again"),
        (["--keep-going", "--instance-id", "i-0123"], "this is a grid by --keep-going"),
    ],
)
def test_what_is_for_grids_is_never_ignored_for_one_run(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").write_text("")
    with pytest.raises(UsageError, match=message):
        run(["submit", "t.py", *words])


@pytest.mark.parametrize("name", ["", "  "])
@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--set", "alpha=1,2"]], ids=["a run", "a dry run", "a grid"])
def test_an_empty_name_is_none(name: str, more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").write_text("")
    with pytest.raises(UsageError, match="is no name"):
        run(["submit", "t.py", "--name", name, *more])


def test_a_malformed_configuration_is_one_message_with_file_and_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "cloudrun.toml").write_text('region = "eu-west-1"\ndeadline = \n')
    done = cli("submit", "train.py")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"cloudrun: {tmp_path / 'cloudrun.toml'}:2: this is not valid TOML")
    assert "\n  next: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.1", 0.1),
        ("7", 7),
        ("true", True),
        ("null", None),
        ('"1"', "1"),
        ("fast", "fast"),
        ('""', ""),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ("1e999", "1e999"),
        ("[1, 2]", "[1, 2]"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_parameter_is_a_json_scalar_or_the_text(text: str, value: object) -> None:
    assert parse_params([f"x={text}"]) == {"x": value}


@pytest.mark.parametrize("assignments", [["x"], ["x="], ["=3"], [" =3"], [""], ["x=1", "x=2"]])
def test_what_is_no_parameter_is_refused(assignments: list[str]) -> None:
    with pytest.raises(UsageError, match="--set"):
        parse_params(assignments)


@given(st.text(), st.text())
def test_parameters_are_always_json_or_refused(name: str, text: str) -> None:
    try:
        params = parse_params([f"{name}={text}"])
    except UsageError:
        return
    assert json.loads(json.dumps(params, allow_nan=False)) == params
