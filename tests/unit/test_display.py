"""What a submission looks like while it goes on: the job's bytes untouched, the words of cloudrun around them."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudrun.cli.display import Display, Meter, Rate
from cloudrun.cli.summary import closing_lines, exit_code
from cloudrun.core.events import Note, Output, PhaseEnded, PhaseStarted, Progress, Rented
from cloudrun.core.records import Artifact, Place, RunRecord, Timings
from cloudrun.core.states import EndReason, RunState
from tests.waiting import until

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Screen:
    """A real pseudo-terminal; `text()` is all that was written to it."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self._read = bytearray()
        self._reader = threading.Thread(target=self._follow)
        self._reader.start()

    def _follow(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self._read += data
        except OSError:  # how Linux says that the other end was closed
            pass

    def text(self) -> str:
        self.stream.close()
        self._reader.join(timeout=120)
        os.close(self._master)
        return self._read.decode().replace("\r\n", "\n")


def visible(text: str) -> str:
    """What is left on the screen, roughly: without escape codes, each line as it was last overwritten."""
    return "\n".join(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).split("\r")[-1] for line in text.split("\n"))


@pytest.fixture
def streams() -> Iterator[tuple[io.TextIOWrapper, io.TextIOWrapper]]:
    """Two streams that are no terminals."""
    made = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    yield made
    for stream in made:
        stream.close()


def written(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue()


def test_without_a_terminal_each_phase_is_two_plain_lines(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    stdout, stderr = streams
    with Display(stdout=stdout, stderr=stderr) as display:
        display(PhaseStarted("launch", "m7i.large in us-east-1"))
        display(PhaseEnded("launch", 0.84))
        display(PhaseStarted("ship", "3 files"))
        display(Progress("ship", 5, 10))
        display(PhaseEnded("ship", 200.0, "failed"))
    assert written(stdout) == b""
    assert written(stderr).decode().splitlines() == [
        "  launch          ...  m7i.large in us-east-1",
        "  launch        0.8 s",
        "  ship            ...  3 files",
        "  ship      3 min 20 s  failed",
    ]


def test_the_job_s_bytes_pass_untouched(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    stdout, stderr = streams
    data = bytes(range(256)) + b"\r 50%\r100%\x1b[31m"
    with Display(stdout=stdout, stderr=stderr) as display:
        display(PhaseStarted("run"))
        display(Output("stdout", data))
        display(Output("stdout", b"no end of line"))
        display(Output("stderr", b"error: \xff"))
        display(PhaseEnded("run", 1.0))
    assert written(stdout) == data + b"no end of line"
    assert written(stderr) == b"  run             ...\nerror: \xff\n  run           1.0 s\n"


def test_with_json_on_stdout_the_job_writes_to_stderr(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    stdout, stderr = streams
    with Display(job_stdout=False, stdout=stdout, stderr=stderr) as display:
        display(Output("stdout", b"hello\n"))
    assert written(stdout) == b""
    assert written(stderr) == b"hello\n"


def test_details_are_for_those_who_ask(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    stdout, stderr = streams
    for verbose in (False, True):
        with Display(verbose=verbose, stdout=stdout, stderr=stderr) as display:
            display(Note("TASK [uv]", "verbose"))
            display(Note("careful\x1b[2J", "warning"))
            display(Note("by the way"))
    calm = b"  warning: careful\\x1b[2J\n  by the way\n"
    assert written(stderr) == calm + b"  TASK [uv]\n" + calm


def test_a_reader_that_went_away_does_not_end_the_run(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    _, stderr = streams
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout, Display(stdout=stdout, stderr=stderr) as display:
        for _ in range(3):
            display(Output("stdout", b"nobody reads this\n"))
        display(Output("stderr", b"still here\n"))
    assert written(stderr) == b"still here\n"


def test_a_full_disk_below_stdout_does_not_end_the_run(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    _, stderr = streams
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as stdout, Display(stdout=stdout, stderr=stderr) as display:
        display(Output("stdout", b"no room\n"))
        display(Output("stdout", b"no room\n"))
    assert written(stderr).count(b"No space left") == 1


def test_on_a_terminal_the_phase_at_work_moves_and_then_stands() -> None:
    screen = Screen()
    with Display(stdout=screen.stream, stderr=screen.stream) as display:
        display(PhaseStarted("launch", "m7i.large in us-east-1"))
        display(Note("no region is set"))
        display(PhaseEnded("launch", 0.84))
    text = screen.text()
    assert "\x1b[?25l" in text  # the cursor was hidden for the moving line ...
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # ... and is back
    lines = [line.rstrip() for line in visible(text).split("\n") if line.strip()]
    assert lines[-1] == "  launch        0.8 s  m7i.large in us-east-1"
    assert "  no region is set" in lines


def rented(provider: str, instance_type: str = "m7i.large", since: float = 0.0) -> Rented:
    return Rented("i-1", instance_type, Place(provider, "us-east-1"), since)


def test_on_a_terminal_one_sees_what_the_machine_costs() -> None:
    screen = Screen()
    with Display(stdout=screen.stream, stderr=screen.stream) as display:
        display(rented("aws", since=time.time() - 7200))
        display(PhaseStarted("boot", "i-1"))
        display(PhaseEnded("boot", 1.0))
    assert re.search(r"boot +[0-9.]+ m?s  i-1  \$0\.20\d\d", screen.text())


@pytest.mark.parametrize(
    ("machine", "text"),
    [
        (rented("aws"), "$0.1008"),  # the list price of an hour
        (rented("sandbox"), "EC2: $0.1008"),  # what the same would cost
        (rented("aws", "x9z.large"), ""),  # no price is known: no number
        (rented("aws", since=3599.0), "$0.0017"),  # a minute at least
    ],
)
def test_a_meter_counts_what_a_machine_costs(machine: Rented, text: str) -> None:
    meter = Meter(lambda: 3600.0)
    assert meter.text() == ""
    meter.add(machine)
    assert meter.text() == text


def test_on_a_terminal_the_job_s_output_is_never_mangled() -> None:
    screen = Screen()
    with Display(stdout=screen.stream, stderr=screen.stream) as display:
        display(PhaseStarted("provision"))
        display(Output("stdout", b"early\n"))
        display(PhaseEnded("provision", 1.0))
        display(PhaseStarted("run", "train.py"))
        for part in (b"epoch 1", b" done\nepoch", b" 2"):
            display(Output("stdout", part))
        display(PhaseEnded("run", 2.0))
    text = re.sub(r"\x1b\[\d*m", "", screen.text())  # colours
    assert "early\n" in text
    assert "  run             ...  train.py\nepoch 1 done\nepoch 2\n  run           2.0 s\n" in text


CLOSING = [
    "r-1 (digits) succeeded in 6.3 s: accuracy 0.97",
    "  time   run 2.5 s",
    "  model  d.joblib (8.1 kB) is /home/you/" + "a" * 90,
    "  next   cloudrun get r-1 d.joblib",
]


@pytest.mark.parametrize(("columns", "is_framed"), [(100, True), (60, True), (40, False)])
def test_the_closing_lines_are_framed_where_there_is_room(
    columns: int, is_framed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen()
    with Display(stdout=screen.stream, stderr=screen.stream) as display:
        display.close(CLOSING, good=True)
    lines = visible(screen.text()).splitlines()
    assert lines[0].startswith("╭─ r-1 (digits) succeeded in 6.3 s ─" if is_framed else "r-1 (digits)")
    assert "accuracy 0.97" in "".join(lines)
    assert "cloudrun get r-1 d.joblib" in "".join(lines)
    if is_framed:
        assert {len(line) for line in lines if line} == {columns}
        assert "".join(lines).count("a") >= 90, "nothing is cut off"


def test_without_a_terminal_the_closing_lines_are_plain(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    stdout, stderr = streams
    with Display(stdout=stdout, stderr=stderr) as display:
        display.close(CLOSING, good=True)
    assert written(stderr).decode().splitlines() == CLOSING


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    screen = Screen()
    with Display(stdout=screen.stream, stderr=screen.stream) as display:
        display(PhaseStarted("boot"))
        display(PhaseEnded("boot", 0.1))
    assert screen.text() == "  boot            ...\n  boot          0.1 s\n"


def test_no_line_moves_after_the_end() -> None:
    screen = Screen()
    display = Display(stdout=screen.stream, stderr=screen.stream)
    display(PhaseStarted("boot"))
    display.__exit__(None, None, None)
    screen.stream.write("after\n")
    assert screen.text().endswith("after\n")
    until(lambda: "_RefreshThread" not in {type(thread).__name__ for thread in threading.enumerate()})


def test_events_from_many_threads_stay_whole(streams: tuple[io.TextIOWrapper, io.TextIOWrapper]) -> None:
    stdout, stderr = streams
    with Display(stdout=stdout, stderr=stderr) as display:
        threads = [
            threading.Thread(target=lambda: [display(Note("a whole sentence")) for _ in range(50)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert set(written(stderr).splitlines()) == {b"  a whole sentence"}
    assert len(written(stderr).splitlines()) == 200


# -- the closing lines


def ended_run(state: RunState = RunState.SUCCEEDED, reason: EndReason | None = None, **more: object) -> RunRecord:
    return RunRecord("r-1", "digits", "digits.py", state, NOON, end_reason=reason, **more)  # type: ignore[arg-type]


def test_the_closing_lines_say_score_time_model_and_what_to_type() -> None:
    run = ended_run(
        scores={"loss": 0.25, "accuracy": 0.9722222},
        metric="accuracy",
        timings=Timings(launch_s=0.8, run_s=2.0, total_s=6.2),
        artifacts=(
            Artifact("stdout.log", 10, "aa", "log"),
            Artifact("out/plot.png", 10, "bb"),
            Artifact("out/model.joblib", 121_000, "cc"),
        ),
    )
    assert closing_lines(run, lambda digest: Path("/p/.cloudrun/artifacts") / digest) == [
        "r-1 (digits) succeeded in 6.2 s: accuracy 0.972222, loss 0.25",
        "  time   launch 0.8 s, run 2.0 s",
        "  model  out/model.joblib (121 kB) is /p/.cloudrun/artifacts/cc",
        "  next   cloudrun get r-1 out/model.joblib",
    ]


@pytest.mark.parametrize(
    ("printed", "said"),
    [
        ("acc = 0.5\nbye\n", "  score  none was found, acc = 0.5 is none; print one as JSON"),
        ("accuracy: 97%\n", "  score  none was found, accuracy: 97% is none; print one as JSON"),
        ("done\n", "  score  none was found; print one as JSON"),
        (None, "  score  none was found; print one as JSON"),
    ],
)
def test_a_run_without_a_score_is_told_which_line_is_none(tmp_path: Path, printed: str | None, said: str) -> None:
    if printed is not None:
        (tmp_path / "aa").write_text(printed)
    run = ended_run(artifacts=(Artifact("stdout.log", 10, "aa", "log"),))
    (line,) = [line for line in closing_lines(run, tmp_path.joinpath) if "score" in line]
    assert line.startswith(said)


def test_the_closing_lines_of_a_failed_run_lead_to_its_logs() -> None:
    run = ended_run(RunState.FAILED, EndReason.EXITED, exit_code=3)
    lines = closing_lines(run, Path)
    assert lines == ["r-1 (digits) failed: the script exited with code 3", "  next   cloudrun show r-1 --log"]


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [
        (RunState.SUCCEEDED, EndReason.COMPLETED, 0),
        (RunState.FAILED, EndReason.EXITED, 5),
        (RunState.FAILED, EndReason.SIGNALLED, 5),
        (RunState.FAILED, EndReason.MEMORY, 5),
        (RunState.FAILED, EndReason.DEADLINE, 124),
        (RunState.FAILED, EndReason.PROVISION_FAILED, 1),
        (RunState.CANCELLED, EndReason.CANCELLED, 130),
        (RunState.LOST, EndReason.UNIT_LOST, 1),
        (RunState.PULL_PENDING, None, 1),
    ],
)
def test_the_exit_code_of_a_run(state: RunState, reason: EndReason | None, code: int) -> None:
    assert exit_code(ended_run(state, reason)) == code


def test_what_moves_for_over_a_second_says_how_fast_and_how_long() -> None:
    now = [100.0]
    rate = Rate(lambda: now[0])
    assert rate.text(20_000_000, 200_000_000) == "[##                  ] 20 MB of 200 MB"  # 20 MB were there before
    now[0] += 0.5
    assert "/s" not in rate.text(30_000_000, 200_000_000)
    now[0] += 1.5
    assert rate.text(100_000_000, 200_000_000) == "[##########          ] 100 MB of 200 MB  40 MB/s  2.5 s left"
    now[0] += 2.5
    assert rate.text(200_000_000, 200_000_000).endswith("0.0 s left")


def test_another_file_that_moves_begins_a_new_rate() -> None:
    now = [0.0]
    rate = Rate(lambda: now[0])
    rate.text(50, 100)
    now[0] += 10
    assert "/s" not in rate.text(10, 100)
