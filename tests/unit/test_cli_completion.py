"""Completion in real shells: commands, options, ids of the ledger; quick, and silent where something is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cloudrun.cli.catalogue import COMMANDS
from cloudrun.cli.completion import commands, script_for
from cloudrun.cli.main import run
from cloudrun.cli.parser import application
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
from tests.command import Cli

SHELLS = ("bash", "zsh", "fish")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    ledger = Ledger(folder)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for minute, (run_id, name) in enumerate((("r-0tr2aaaaaaaaa", "digits"), ("r-0tr2bbbbbbbbb", "two words"))):
        ledger.add_run(RunRecord(run_id, name, "t.py", RunState.QUEUED, noon + timedelta(minutes=minute)))
    ledger.close()
    return folder


def completed(shell: str, words: list[str], project: Path) -> list[str]:
    """What the shell offers for the last of the words."""
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    script = project.parent / f"completion.{shell}"
    script.write_text(script_for(shell))  # type: ignore[arg-type]
    bin_folder = project.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / "cloudrun").write_text(f'#!/bin/sh\nexec {sys.executable} -m cloudrun "$@"\n')
    (bin_folder / "cloudrun").chmod(0o755)
    if shell == "fish":
        code = f"source {script}; complete -C '{' '.join(words)}'"
    else:
        array = " ".join(f"'{word}'" for word in words)
        code = f"source {script}; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _cloudrun"
        code += "; printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(
        [program, "-c", code],
        cwd=project,
        env={**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "HOME": str(project.parent)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    return [line.split("\t")[0] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["cloudrun", "subm"], {"submit"}),
        (["cloudrun", "sandbox", "st"], {"start", "stop", "status"}),
        (["cloudrun", "config", ""], {"show"}),
        (["cloudrun", "submit", "--dead"], {"--deadline"}),
        (["cloudrun", "submit", "--provider", ""], {"sandbox", "aws"}),
        (["cloudrun", "show", "r-0tr2a"], {"r-0tr2aaaaaaaaa"}),
        (["cloudrun", "attach", "dig"], {"digits"}),
        (["cloudrun", "completion", "b"], {"bash"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_word_is_completed(shell: str, words: list[str], expected: set[str], project: Path) -> None:
    assert set(completed(shell, words, project)) == expected


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("submit", "file"),
        ("show", "run grid"),
        ("get", "run"),
        ("attach", "run grid"),
        ("extend", "run grid unit"),
        ("reap", "unit"),
        ("ssh", "run unit"),
        ("sandbox interrupt", "unit"),
        ("config show", ""),
        ("sandbox shortage", ""),
    ],
)
def test_what_an_argument_is_is_known_by_what_is_said_of_it(path: str, kind: str) -> None:
    assert {line.path: line.kind for line in commands(application())}[path] == kind


def test_ids_and_names_are_offered_where_a_shell_takes_them_as_they_are(project: Path) -> None:
    assert completed("bash", ["cloudrun", "show", ""], project) == [
        "digits",
        "r-0tr2bbbbbbbbb",
        "r-0tr2aaaaaaaaa",
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_reads(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    script = tmp_path / "script"
    script.write_text(script_for(shell))  # type: ignore[arg-type]
    done = subprocess.run([program, "-n", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_command_is_in_every_script() -> None:
    for shell in SHELLS:
        script = script_for(shell)  # type: ignore[arg-type]
        assert all(command.name in script for command in COMMANDS)
        assert "--no-json" not in script, "an option that is not there"
        assert "--no-spot" in script or "-l no-spot" in script


@pytest.mark.parametrize("damage", ["none", "a folder", "not a database", "no table"])
def test_where_the_ledger_cannot_be_read_nothing_is_said(damage: str, cli: Cli) -> None:
    home = cli.folder / ".cloudrun"
    home.mkdir()
    database = home / "ledger.sqlite"
    if damage == "a folder":
        database.mkdir()
    elif damage == "not a database":
        database.write_bytes(b"x" * 5000)
    elif damage == "no table":
        database.touch()
    done = cli("__names", "run", "grid", "unit", "nonsense")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_several_kinds_may_come_as_one_word(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert run(["__names", "grid run"]) == 0
    assert "r-0tr2aaaaaaaaa\tdigits\n" in capsys.readouterr().out


def test_completing_changes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    before = {path: path.stat().st_mtime_ns for path in (project / ".cloudrun").rglob("*")}
    assert run(["__names", "run"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (project / ".cloudrun").rglob("*")} == before


def test_completing_imports_next_to_nothing() -> None:
    heavy = "{'cyclopts', 'rich', 'boto3', 'botocore', 'paramiko', 'numpy', 'cloudrun.ledger.store', 'logging'}"
    code = (
        "import sys; from cloudrun.cli.main import run; run(['__names', 'run', 'unit']); "
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
