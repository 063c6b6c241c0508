"""The command line as a process: what it prints first, what an error becomes, and which exit code a shell sees."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cyclopts import App
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.cli.catalogue import COMMANDS, first_page, help_page
from cloudrun.cli.main import retyped, run
from cloudrun.cli.parser import application, parse_params
from cloudrun.core import errors
from cloudrun.core.errors import CloudrunError, UsageError

# Python hears a signal between two calls: one that comes just before a long sleep begins is heard when that ends.
NAPS = "while True: time.sleep(0.1)"
WAIT_S = 60
# A process whose one command is the `act` of a module beside it: `main` as it is, with something to do that we choose.
DRIVER = """
import sys
from cloudrun.cli import catalogue
catalogue.COMMANDS = (catalogue.Command("act", "acting:act", "acts", "cloudrun act"),)
from cloudrun.cli.main import main, retyped
main()
"""

Acted = Callable[[str], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """As here, with temporary and configuration files below `tmp_path`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CLOUDRUN_")}
    return {**ours, "TMPDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "PYTHONPATH": str(tmp_path)}


@pytest.fixture
def cloudrun(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cloudrun.cli.main", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT_S, check=False
        )

    return call


@pytest.fixture
def acting(tmp_path: Path, environment: dict[str, str]) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts the command line in a process where its command runs the given lines."""
    started: list[subprocess.Popen[str]] = []

    def start(body: str) -> subprocess.Popen[str]:
        (tmp_path / "acting.py").write_text("def act():\n" + "".join(f"    {line}\n" for line in body.split("\n")))
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", DRIVER, "act"],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def acted(acting: Callable[[str], subprocess.Popen[str]]) -> Acted:
    def wait(body: str) -> subprocess.CompletedProcess[str]:
        process = acting(body)
        out, err = process.communicate(timeout=WAIT_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return wait


# -- the first page and every help text


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


# -- what is typed wrong


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
        (["--budget", "-5"], "--budget -5.0 pays for nothing"),
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


def test_a_malformed_configuration_is_one_message_with_file_and_line(
    cloudrun: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "cloudrun.toml").write_text('region = "eu-west-1"\ndeadline = \n')
    done = cloudrun("submit", "train.py")
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


# -- what an error becomes


def exit_codes() -> list[tuple[str, int]]:
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, CloudrunError)]
    return [(kind.__name__, kind.exit_code) for kind in kinds]


def test_every_error_has_its_exit_code_and_its_words(acted: Acted) -> None:
    name, code = "CapacityError", 6
    assert (name, code) in exit_codes()
    done = acted(
        "from cloudrun.core import errors\n"
        "error = errors.CapacityError('none of m7i.large\\nEC2 said so', next_step='try another zone')\n"
        "error.add_note('cleaning up failed too: sg-1')\n"
        "raise error"
    )
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr == (
        "cloudrun: none of m7i.large\n  EC2 said so\n  cleaning up failed too: sg-1\n  next: try another zone\n"
    )


def test_the_codes_are_those_of_the_manual() -> None:
    expected = {
        "CloudrunError": 1,
        "UsageError": 2,
        "ConfigError": 2,
        "CredentialsError": 4,
        "JobFailed": 5,
        "CapacityError": 6,
        "QuotaError": 6,
        "CleanupIncomplete": 8,
        "DeadlineReached": 124,
        "Cancelled": 130,
    }
    assert expected.items() <= dict(exit_codes()).items()


def test_the_log_of_a_failed_playbook_is_named(acted: Acted) -> None:
    done = acted(
        "from pathlib import Path\nfrom cloudrun.core.errors import ProvisionError\n"
        "raise ProvisionError('task x failed', task='x', log_path=Path('/somewhere/provision.log'))"
    )
    assert done.stderr == "cloudrun: task x failed\n  log: /somewhere/provision.log\n"


def test_a_bug_is_a_short_message_and_a_crash_log(acted: Acted, tmp_path: Path) -> None:
    done = acted("raise RuntimeError('oh')")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (log,) = tmp_path.glob("cloudrun-crash-*.log")
    assert str(log) in done.stderr
    assert "RuntimeError: oh" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_bug_whose_log_cannot_be_written_is_told_whole(acted: Acted) -> None:
    done = acted("import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nraise RuntimeError('oh')")
    assert done.returncode == 1
    assert done.stderr.startswith("cloudrun: a bug in cloudrun: RuntimeError: oh\n  no log could be written (")
    assert 'raise RuntimeError("oh")' in done.stderr or "raise RuntimeError('oh')" in done.stderr
    assert "next: report the log" in done.stderr


def test_an_error_is_a_document_where_a_program_reads(
    cloudrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = cloudrun("submit", "nowhere.py", "--json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["error"]["kind"] == "UsageError"
    assert "nowhere.py" in document["error"]["message"]
    assert document["schema_version"] == 1
    assert "nowhere.py" in done.stderr, "a person may be reading too"


def test_the_scripts_own_json_option_is_not_ours(cloudrun: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    assert cloudrun("submit", "nowhere.py", "--", "--json").stdout == ""


def test_with_debug_the_traceback_is_shown(acted: Acted, environment: dict[str, str]) -> None:
    environment["CLOUDRUN_DEBUG"] = "1"
    done = acted("from cloudrun.core.errors import UsageError\nraise UsageError('no')")
    assert done.returncode == 2
    assert done.stderr.startswith("cloudrun: no\n")
    assert "Traceback" in done.stderr


def test_what_a_machine_printed_moves_no_cursor_here(acted: Acted) -> None:
    done = acted(
        "from cloudrun.core.errors import CloudrunError\n"
        "error = CloudrunError('broken: \\x1b[2J\\x07', next_step='do \\x1b]0;x')\n"
        "error.add_note('and: \\ta \\x1b[1A\\r')\nraise error"
    )
    assert done.stderr.splitlines() == [
        r"cloudrun: broken: \x1b[2J\x07",
        r"  and:  a \x1b[1A",
        r"  next: do \x1b]0;x",
    ]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=lambda each: str(each)
)
def test_a_signal_leaves_every_block_and_has_its_code(
    acting: Callable[[str], subprocess.Popen[str]], number: signal.Signals, code: int
) -> None:
    process = acting(
        f"import time\ntry:\n    print('ready', flush=True)\n    {NAPS}\nfinally:\n    print('left', flush=True)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=WAIT_S)
    assert out == "left\n"
    assert process.returncode == code
    assert "Traceback" not in err
    assert "next: cloudrun results" in err


def test_work_that_a_signal_cancelled_has_the_signal_s_code(acting: Callable[[str], subprocess.Popen[str]]) -> None:
    process = acting(
        "import time\nfrom cloudrun.core.errors import Cancelled\n"
        f"try:\n    print('ready', flush=True)\n    {NAPS}\n"
        "except SystemExit:\n    raise Cancelled('the run was ended') from None"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 143
    assert err.startswith("cloudrun: the run was ended\n")


def test_a_reader_that_went_away_hears_no_complaint(acting: Callable[[str], subprocess.Popen[str]]) -> None:
    process = acting("import time\nfor _ in range(100_000):\n    print('x' * 100)")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=WAIT_S) == 128 + signal.SIGPIPE


def test_a_terminal_without_the_characters_gets_escapes(acted: Acted, environment: dict[str, str]) -> None:
    environment["PYTHONIOENCODING"] = "ascii"
    assert acted("print('naïve')").stdout == "na\\xefve\n"
