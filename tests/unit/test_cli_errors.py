"""The command line as a process: what an error or a signal becomes, and which exit code a shell sees."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudrun.core import errors
from cloudrun.core.errors import CloudrunError
from tests.command import WAIT_S, Cli

# Python hears a signal between two calls: one that comes just before a long sleep begins is heard when that ends.
NAPS = "while True: time.sleep(0.1)"
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


def test_an_error_is_a_document_where_a_program_reads(cli: Cli) -> None:
    done = cli("submit", "nowhere.py", "--json")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["error"]["kind"] == "UsageError"
    assert "nowhere.py" in document["error"]["message"]
    assert document["schema_version"] == 1
    assert "nowhere.py" in done.stderr, "a person may be reading too"


def test_the_scripts_own_json_option_is_not_ours(cli: Cli) -> None:
    assert cli("submit", "nowhere.py", "--", "--json").stdout == ""


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
