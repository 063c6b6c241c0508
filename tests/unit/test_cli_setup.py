"""The first minute on the command line: `init`, `config show`, `--version`, `--debug`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudrun.cli.doctor import verdict_of
from cloudrun.cli.init import QUESTIONS, asked
from cloudrun.cli.main import run
from cloudrun.config import load
from cloudrun.core.errors import ConfigError, UsageError
from cloudrun.setup.checks import Check, Verdict
from cloudrun.setup.computer import home, sqlite
from cloudrun.setup.doctor import namespaces_step, settled
from tests.command import Cli
from tests.terminals import on_terminal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert run(words) == 0
    return capsys.readouterr().out


# -- init


def test_init_writes_a_file_that_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(said(capsys, "init", "--provider", "aws", "--deadline", "2h", "--json"))
    assert document["schema_version"] == 1
    assert document["path"] == str(folder / "cloudrun.toml")
    assert (load(folder, {}).provider, load(folder, {}).deadline_s) == ("aws", 7200)
    assert sorted(path.name for path in folder.iterdir()) == ["cloudrun.toml"], "and nothing else"


def test_init_never_writes_over_a_file_unless_it_is_told_to(folder: Path) -> None:
    (folder / "cloudrun.toml").write_text("# mine\n")
    with pytest.raises(UsageError, match="already") as caught:
        run(["init", "--yes"])
    assert "--force" in caught.value.next_step
    assert (folder / "cloudrun.toml").read_text() == "# mine\n"
    run(["init", "--yes", "--force"])
    assert "provider" in (folder / "cloudrun.toml").read_text()


def test_init_does_not_hide_a_table_in_pyproject(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[tool.cloudrun]\nregion = "eu-west-1"\n')
    with pytest.raises(UsageError, match=r"\[tool.cloudrun\]"):
        run(["init", "--yes"])
    assert not (folder / "cloudrun.toml").exists()


def test_init_writes_nothing_that_cannot_be_read_again(folder: Path) -> None:
    with pytest.raises(UsageError, match="deadline"):
        run(["init", "--yes", "--deadline", "soon"])
    assert list(folder.iterdir()) == []


def test_init_says_where_a_project_begins_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / ".cloudrun").mkdir()
    (folder / ".cloudrun" / "ledger.sqlite").touch()
    below = folder / "sub"
    below.mkdir()
    monkeypatch.chdir(below)
    (note,) = json.loads(said(capsys, "init", "--json"))["notes"]
    assert str(folder) in note


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc").exists(), reason="needs a folder nobody may write to")
def test_init_in_a_folder_that_cannot_be_written_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir("/proc/self")
    with pytest.raises(UsageError, match="cannot be written") as caught:
        run(["init", "--yes"])
    assert "cd to your project" in caught.value.next_step


def answers(*lines: str) -> Callable[[str], str]:
    waiting: Iterator[str] = iter(lines)
    return lambda _question: next(waiting)


def test_questions_about_aws_are_asked_only_of_who_uses_it() -> None:
    assert asked({}, answers("", "", "2h"), print) == {"deadline": "2h"}
    chosen = asked({}, answers("aws", "eu-west-1", "", "", "90m", "2.5", "yes"), print)
    assert chosen == {
        "provider": "aws",
        "region": "eu-west-1",
        "deadline": "90m",
        "budget": "2.5",
        "spot": "yes",
    }


def test_an_unusable_answer_is_asked_for_again() -> None:
    complaints: list[str] = []
    chosen = asked({}, answers("asw", "aws", "", "", "", "soon", "1h", "", ""), complaints.append)
    assert chosen == {"provider": "aws", "deadline": "1h"}
    assert len(complaints) == 2
    assert "did you mean aws?" in complaints[0]


def test_what_a_flag_has_said_is_not_asked() -> None:
    assert asked(dict.fromkeys(QUESTIONS, "x"), answers(), print) == dict.fromkeys(QUESTIONS, "x")


def test_on_a_terminal_it_asks_and_writes_what_is_answered(folder: Path) -> None:
    screen = on_terminal(folder, "init", typed=["aws\n", "eu-west-1\n", "\n", "\n", "soon\n", "2h\n", "5\n", "\n"])
    assert screen.code == 0, screen.raw
    assert "'soon' is not a duration" in screen.raw
    text = (folder / "cloudrun.toml").read_text()
    for line in (
        'provider = "aws"',
        'region = "eu-west-1"',
        'deadline = "2h"',
        "budget = 5.0",
        '# instance_type = "m7i.large"',
    ):
        assert f"\n{line}" in text


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 2)], ids=["Ctrl-C", "Ctrl-D"])
def test_who_leaves_in_the_middle_of_the_questions_has_written_nothing(folder: Path, key: str, code: int) -> None:
    screen = on_terminal(folder, "init", typed=["aws\n", key])
    assert screen.code == code, screen.raw
    assert "nothing was written" in screen.raw
    assert "Traceback" not in screen.raw
    assert not (folder / "cloudrun.toml").exists()


# -- config show


def test_every_value_is_shown_with_where_it_came_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "cloudrun.toml").write_text('\nregion = "eu-west-1"\n')
    (folder / "home" / "cloudrun").mkdir(parents=True)
    (folder / "home" / "cloudrun" / "config.toml").write_text('metric = "f1"\n')
    monkeypatch.setenv("CLOUDRUN_DEADLINE", "90m")
    lines = {line.split()[0]: line for line in said(capsys, "config", "show", "--origin").splitlines()}
    assert lines["region"].endswith(f"{folder / 'cloudrun.toml'}:2")
    assert lines["metric"].endswith("config.toml:1")
    assert lines["deadline"].endswith("CLOUDRUN_DEADLINE")
    assert lines["provider"].split() == ["provider", "sandbox", "default"]
    documents = json.loads(said(capsys, "config", "show", "deadline", "region", "--json"))["settings"]
    assert [(each["value"], each["origin"], each["line"]) for each in documents] == [
        (5400.0, "variable", None),
        ("eu-west-1", "file", 2),
    ]


def test_a_mistyped_setting_gets_the_nearest(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean deadline"):
        run(["config", "show", "dedline"])


# -- --version and --debug


def test_the_versions_of_a_bug_report_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(maxsplit=1) for line in said(capsys, "--version", "--verbose").splitlines())
    wanted = {"cloudrun", "python", "platform", "boto3", "paramiko", "ansible-core", "sqlite", "uv", "scikit-learn"}
    assert wanted <= set(lines)
    document = json.loads(said(capsys, "--version", "--json"))
    assert document["versions"]["sqlite"] == lines["sqlite"]
    assert set(document["versions"]) == {*lines, "openssh"}


def test_debug_may_stand_anywhere_and_shows_the_traceback(cli: Cli) -> None:
    for words in (("--debug", "show", "nothing"), ("show", "nothing", "--debug")):
        done: subprocess.CompletedProcess[str] = cli(*words)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
    assert "Traceback" not in cli("show", "nothing").stderr


def test_the_script_s_own_debug_is_not_ours(cli: Cli) -> None:
    assert "Traceback" not in cli("submit", "nowhere.py", "--", "--debug").stderr


# -- doctor


def test_doctor_sees_the_file_that_init_wrote_though_nothing_is_set_in_it(folder: Path) -> None:
    def settings() -> str:
        _, check = settled(folder, {"provider": None})
        assert (check.name, check.verdict) == ("settings", "ok")
        return check.found

    assert settings() == "all at their defaults; no file yet (cloudrun init writes one)"
    run(["init", "--yes"])
    assert settings() == f"all at their defaults; {folder / 'cloudrun.toml'}"
    (folder / "cloudrun.toml").write_text('deadline = "2h"\n')
    assert settings() == f"1 set (cloudrun config show --origin); {folder / 'cloudrun.toml'}"


def test_where_all_is_ok_doctor_says_nothing_alarming() -> None:
    check = sqlite()
    assert (check.verdict, check.next_step) == ("ok", "")
    assert "corrupt" not in check.found


@pytest.mark.parametrize(
    ("switches", "step"),
    [
        ({"kernel/unprivileged_userns_clone": "0\n"}, "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        ({"kernel/unprivileged_userns_clone": "1\n", "kernel/apparmor_restrict_unprivileged_userns": "1\n"},
         "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
        ({"user/max_user_namespaces": "0\n"}, "sudo sysctl -w user.max_user_namespaces=10000"),
        ({}, "cloudrun sandbox status says what is weaker; run what you trust"),
    ],
)  # fmt: skip
def test_without_user_namespaces_the_switch_that_is_off_is_named(
    switches: dict[str, str], step: str, tmp_path: Path
) -> None:
    for name, value in switches.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(value)
    assert namespaces_step(tmp_path) == step


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["ok", "unknown"], "all is well"),
        (["ok", "warning"], "all is well enough; 1 thing to look at"),
        (["warning", "problem", "problem"], "2 PROBLEMS: what mends it stands below it"),
    ],
)
def test_doctor_ends_with_how_it_is(verdicts: list[Verdict], words: str) -> None:
    assert verdict_of([Check("x", verdict, "") for verdict in verdicts]) == words


def test_a_home_that_cannot_be_written_is_named_with_the_variable_that_replaces_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("CLOUDRUN_CACHE_DIR", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setenv("CLOUDRUN_SANDBOX_DIR", "/tmp")
    check = home()
    assert (check.verdict, check.found) == ("problem", "/proc/nowhere/.cache/cloudrun cannot be written")
    assert check.next_step == "export HOME=/a/folder/of/yours, or CLOUDRUN_CACHE_DIR=..."
