"""What `show` prints of a run."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cloudrun.cli.run_page import last_lines, page
from cloudrun.core.records import Artifact, Passport, Place, RunRecord, Timings
from cloudrun.core.states import EndReason, RunState
from cloudrun.plan.costs import Bill

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
RUN = RunRecord(
    "r-1",
    "digits",
    "train.py",
    RunState.SUCCEEDED,
    NOON,
    params={"alpha": 0.1},
    scores={"loss": 0.25, "accuracy": 0.9},
    metric="accuracy",
    artifacts=(Artifact("model.joblib", 1500, "ab" * 32),),
    passport=Passport("3.11.7", {"numpy": "2.1.0"}, "Linux"),
    instance_id="i-1",
    instance_type="m7i.large",
    place=Place("sandbox", "us-east-1"),
    timings=Timings(launch_s=1.0, boot_s=2.0, run_s=7.0, total_s=10.5),
    cost_usd=0.0004,
)
BILL = Bill(1, 0.00168, 0.0004, is_charged=False)


def shown(
    run: RunRecord = RUN, encoding: str = "utf-8", width: int | None = None, *, attended: bool = False
) -> list[str]:
    tails = {"stdout.log": ["last words"]}
    return page(run, None, BILL, tails, encoding=encoding, width=width, attended=attended)


def test_all_of_it_is_there() -> None:
    text = "\n".join(shown())
    for expected in (
        "r-1 (digits) succeeded in 10 s",
        "alpha = 0.1",
        "accuracy 0.9  (larger is better)",
        "i-1, m7i.large in us-east-1 (sandbox)",
        "$0.0004, its share",
        "$0.00168 at list prices: runs $0.0004 + overhead $0.00128 (sandbox: what EC2 would have charged)",
        "python 3.11.7, numpy 2.1.0",
        "model.joblib   1.5 kB",
        "  last words",
        "cloudrun get r-1 model.joblib",
    ):
        assert expected in text
    assert text.index("accuracy 0.9") < text.index("loss 0.25"), "what ranks comes first"


@pytest.mark.parametrize(("encoding", "solid"), [("utf-8", "█"), ("ascii", "#"), ("latin-1", "#"), ("", "#")])
def test_the_bars_of_its_phases_are_what_the_screen_can_show(encoding: str, solid: str) -> None:
    bars = [line for line in shown(encoding=encoding) if solid in line]
    assert [line[13:].split()[0] for line in bars] == ["launch", "boot", "run"]
    assert [line.count(solid) for line in bars] == [4, 8, 28]
    if encoding:
        "\n".join(bars).encode(encoding)


def test_forty_columns_are_enough() -> None:
    lines = shown(width=40)
    assert max(map(len, lines[:-1])) <= 40, "but for the command, which is to be copied"
    assert "charged)" in "\n".join(lines)


def test_control_characters_stay_where_they_are() -> None:
    evil = RunRecord("r-1", "a\x1b[2J", "t.py", RunState.FAILED, NOON, params={"x": "\x07"}, detail="\x1b]0;x")
    assert "\x1b" not in "".join(shown(evil))


def test_what_to_type_next_is_what_helps() -> None:
    failed = RunRecord("r-1", "a", "t.py", RunState.FAILED, NOON, end_reason=EndReason.EXITED, exit_code=3)
    assert shown(failed)[-1].endswith("cloudrun show r-1 --log")
    running = RunRecord("r-1", "a", "t.py", RunState.RUNNING, NOON)
    assert shown(running)[-1].endswith("cloudrun logs -f r-1")
    waits = RunRecord("r-1", "a", "t.py", RunState.QUEUED, NOON, grid_id="g-1")
    assert shown(waits)[-1].endswith("begins it, or cloudrun attach g-1")
    assert shown(waits, attended=True)[-1].endswith("a process goes on with g-1: cloudrun ps shows how far it is")


def test_a_run_that_was_ended_before_it_began_took_no_time_and_has_no_log() -> None:
    never = RunRecord("r-1", "a", "t.py", RunState.CANCELLED, NOON, detail="it was asked to end", grid_id="g-1")
    lines = shown(replace(never, timings=Timings(total_s=0.001)))
    assert lines[0] == "r-1 (a) cancelled: it was asked to end"
    assert not any("in all" in line for line in lines)
    assert lines[-1].endswith("cloudrun show g-1")


def test_the_end_of_a_log_is_as_a_terminal_would_have_left_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 100_000 + b"\n 10%\r 99%\rdone\nescape \x1b[2J\n\xff")
    assert last_lines(log, 3) == ["done", "escape \\x1b[2J", "\ufffd"]
    assert last_lines(log, 0) == []
    log.write_bytes(b"")
    assert last_lines(log, 5) == []
