"""What the command line looks like on a narrow terminal, without colours, and where letters are only ASCII."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudrun.cli.doctor import lines_of
from cloudrun.cli.printing import folded
from cloudrun.core.records import RunRecord
from cloudrun.core.states import RunState
from cloudrun.ledger import Ledger
from cloudrun.setup.checks import Check
from tests.command import Cli
from tests.terminals import on_terminal

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NARROW = 40
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path)
    params = {"alpha": 0.1, "name": "é"}
    ledger.add_run(RunRecord("r-0tr2aaaaaaaaa", "naïve", "t.py", RunState.QUEUED, NOON, params=params))
    ledger.close()
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [("results",), ("ps",), ("config", "show", "--origin"), ("show", "--help"), ("show", "nothing")],
    ids=" ".join,
)
def test_forty_columns_are_enough(words: tuple[str, ...], project: Path) -> None:
    screen = on_terminal(project, *words, columns=NARROW)
    assert screen.code in (0, 2)
    assert "Traceback" not in screen.raw
    assert "\u2026" not in screen.raw, "nothing is cut off"
    if words == ("show", "--help"):  # the others are words and values, which any terminal folds
        assert max(map(len, screen.lines)) <= NARROW


def test_the_first_page_folds_its_commands(project: Path) -> None:
    lines = on_terminal(project, "--help", columns=NARROW).lines
    assert lines[lines.index("    cloudrun ps") + 1] == "        the runs that are not over"


def test_no_setting_is_cut_off_where_there_is_no_room_for_a_table(project: Path) -> None:
    lines = on_terminal(project, "config", "show", "--origin", columns=NARROW).lines
    place = lines.index("setting  provision_timeout")
    assert lines[place + 1 : place + 3] == ["value    30 min", "from     default"]


@pytest.mark.parametrize("words", [("results",), ("show", "--help"), ("config", "show")], ids=" ".join)
def test_no_colour_means_none(words: tuple[str, ...], project: Path) -> None:
    assert not on_terminal(project, *words, environ={"NO_COLOR": "1"}).coloured


@pytest.mark.parametrize("words", [("results",), ("ps",), ("show", "r-0tr2"), ("config", "show")], ids=" ".join)
def test_where_letters_are_only_ascii_others_are_escapes(words: tuple[str, ...], project: Path) -> None:
    cli = Cli(project, ASCII)
    done = cli(*words)
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).isascii()
    if words[0] == "show":
        assert "na\\xefve" in done.stdout


def test_a_script_whose_name_is_no_text_there_is_refused_before_launching(tmp_path: Path) -> None:
    (tmp_path / "é.py").write_text("print(1)\n")
    done = Cli(tmp_path, ASCII)("submit", "é.py")
    assert done.returncode == 2
    assert "cannot be shipped" in done.stderr
    assert "LC_ALL=C.UTF-8" in done.stderr
    assert Ledger(tmp_path).launches() == []


def test_piped_output_has_no_escapes(cli: Cli) -> None:
    for words in ((), ("results",), ("config", "show"), ("submit", "--help")):
        done = cli(*words)
        assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_a_check_is_read_at_any_width(width: int) -> None:
    check = Check("ssh client", "problem", "none: Ansible needs one " * 5, "sudo apt install openssh-client")
    lines = lines_of(check, width)
    assert max(map(len, lines)) <= max(width, 30)
    assert "PROBLEM" in lines[0]
    assert " ".join(" ".join(lines).split()).endswith("next: sudo apt install openssh-client")


def test_a_home_that_cannot_be_written_is_one_clear_message(cli: Cli) -> None:
    (cli.folder / "t.py").write_text("print(1)\n")
    cli.environ |= {"HOME": "/proc/none", "XDG_CACHE_HOME": "", "XDG_CONFIG_HOME": ""}
    for name in ("CLOUDRUN_SANDBOX_DIR", "CLOUDRUN_CACHE_DIR"):
        del cli.environ[name]
    done = cli("submit", "t.py")
    assert done.returncode == 1
    assert "cannot be made" in done.stderr
    assert "CLOUDRUN_SANDBOX_DIR" in done.stderr
    assert "Traceback" not in done.stderr
    for words in (("results",), ("config", "show"), ("ps",)):
        assert cli(*words).returncode == 0, "what needs no home works without one"


def test_words_are_folded_and_never_broken() -> None:
    text = "cloudrun: no run of train.py so far\n  near: r-0tr2x3qpq8kyw, r-0tr2wxrv8dxpd-and-more"
    assert folded(text, None) == folded(text, 80) == text
    assert folded(text, 30).splitlines() == [
        "cloudrun: no run of train.py",
        "so far",
        "  near: r-0tr2x3qpq8kyw,",
        "    r-0tr2wxrv8dxpd-and-more",
    ]


def test_an_error_s_command_is_whole_however_narrow_the_screen_is(project: Path) -> None:
    lines = on_terminal(project, "results", "--metrik", "a-long-name-of-a-score", columns=NARROW).lines
    assert "  next: cloudrun results --metric a-long-name-of-a-score" in "".join(lines)
