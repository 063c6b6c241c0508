"""The command line's first page, its version, and every help text."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from cyclopts import App

from cloudrun.cli.catalogue import COMMANDS, first_page, help_page
from cloudrun.cli.main import run
from cloudrun.cli.parser import application
from tests.command import WAIT_S


def test_alone_it_shows_what_to_type_on_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    page = capsys.readouterr().out
    assert "cloudrun submit train.py\n" in page
    assert all(f" {command.name}" in page for command in COMMANDS)
    lines = page.splitlines()
    assert len(lines) < 24, "the line below is the next prompt's"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("page", [first_page, help_page])
@pytest.mark.parametrize("width", [40, 60])
def test_on_a_narrow_screen_no_line_is_longer_and_nothing_is_lost(page: Callable[..., str], width: int) -> None:
    narrow = page(width)
    assert max(map(len, narrow.splitlines())) <= width
    assert narrow.split() == page().split()


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["help"]])
def test_its_help_has_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    page = capsys.readouterr().out
    for command in COMMANDS:
        assert command.example in page
        assert command.summary in page


def test_the_first_page_imports_no_library() -> None:
    code = (
        "import sys; from cloudrun.cli.main import run; run(['--help']); "
        "print(sorted({'cyclopts', 'rich', 'boto3', 'paramiko', 'sqlite3', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_help_page_imports_no_service() -> None:
    code = (
        "import sys; from cloudrun.cli.main import run; run(['submit', '--help']); "
        "print(sorted(set(sys.modules) & {'boto3', 'paramiko', 'ansible_runner', 'joblib', 'cloudrun.runs.submit'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def leaves(app: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    names = [name for name in app if not name.startswith("-")]
    for name in names:
        yield from leaves(app[name], (*path, name))
    if not names and path:
        yield path, app


LEAVES = list(leaves(application()))


def test_every_command_of_the_catalogue_is_there() -> None:
    assert [command.name for command in COMMANDS] == list(dict.fromkeys(path[0] for path, _ in LEAVES))
    assert {path[1] for path, _ in LEAVES if path[0] == "sandbox"} == {
        "start",
        "stop",
        "status",
        "interrupt",
        "shortage",
    }


@pytest.mark.parametrize(("path", "app"), LEAVES, ids=[" ".join(path) for path, _ in LEAVES])
def test_every_command_and_option_is_explained_with_an_example(path: tuple[str, ...], app: App) -> None:
    assert app.default_command is not None
    words = inspect.getdoc(app.default_command) or ""
    assert f"    cloudrun {' '.join(path)}" in words
    assert max(map(len, words.splitlines())) <= 80, "it is shown with its line ends as they are"
    arguments = app.assemble_argument_collection()
    assert "--json" in {name for argument in arguments for name in argument.names}
    for argument in arguments:
        assert re.search(r"\w.* Example: \S", argument.parameter.help or ""), argument.names


@pytest.mark.parametrize("path", [path for path, _ in LEAVES], ids=" ".join)
def test_help_is_printed_without_escape_codes(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    captured = capsys.readouterr()
    assert f"Usage: cloudrun {' '.join(path)}" in captured.out
    assert "\x1b" not in captured.out + captured.err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert re.fullmatch(r"cloudrun \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)
