"""What `show` says of what is not over: as its machine tells it, and never later than somebody waits for."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloudrun.cli.run_page import page
from cloudrun.cli.under_way import standing
from cloudrun.core.errors import ConnectionLost
from cloudrun.core.records import JobStatus, RunRecord, Timings
from cloudrun.core.states import RunState
from cloudrun.plan.costs import Bill
from cloudrun.runs.watching import Seen, each_of, within
from tests.waiting import PATIENCE_S

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
RUN = RunRecord("r-1", "digits", "train.py", RunState.SHIPPING, NOON, timings=Timings(boot_s=1.5, total_s=1.5))


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (Seen(RUN, "running", status=JobStatus("running", started_at=NOON.timestamp())), "is running, for 12 s now"),
        (Seen(RUN, "running"), "is running"),
        (Seen(RUN, "waiting"), "waits for its turn on its machine"),
        (Seen(RUN, "done"), "is done, and not home yet"),
        (Seen(RUN, "shipping"), "is shipping"),
        (Seen(RUN, "unknown", problem="no answer"), "was shipping when it was last heard of"),
    ],
)
def test_a_run_that_is_not_over_is_said_to_be_what_its_machine_says(seen: Seen, said: str) -> None:
    assert standing(seen, NOON + timedelta(seconds=12)) == said


def shown(**seen: Any) -> list[str]:
    return page(RUN, None, Bill(1, 0.1, 0.0), {}, encoding="ascii", width=None, seen=Seen(RUN, **seen))


def test_its_page_says_what_to_type_and_claims_no_time_for_what_goes_on() -> None:
    lines = shown(word="done", next_step="cloudrun pull r-1")
    assert lines[0] == "r-1 (digits) is done, and not home yet"
    assert lines[-1].split() == ["next", "cloudrun", "pull", "r-1"]
    assert any("1.5 s until its job began" in line for line in lines)


def test_a_machine_that_does_not_say_is_no_reason_to_say_nothing() -> None:
    lines = shown(word="gone", problem="i-1 went away with its sandbox", next_step="cloudrun reap")
    assert lines[:2] == [
        "r-1 (digits) was shipping when it was last heard of",
        "why          i-1 went away with its sandbox",
    ]


def test_who_does_not_answer_is_not_waited_for() -> None:
    never = threading.Event()
    assert within(0.01, never.wait, lambda: False) is False
    never.set()
    assert within(60, never.wait, lambda: False) is True


@pytest.mark.parametrize("error", [ConnectionLost("gone"), TimeoutError("of the socket's")])
def test_what_goes_wrong_with_the_answer_is_raised(error: Exception) -> None:
    def fail() -> bool:
        raise error

    with pytest.raises(type(error)):
        within(60, fail, lambda: False)


def test_a_process_ends_before_those_that_it_does_not_wait_for_answer() -> None:
    """However many were asked: an executor's threads would be waited for at the interpreter's end."""
    code = """
import subprocess
import sys
import threading
from cloudrun.runs.watching import each_of, within
never = threading.Event()
print(within(0.1, lambda: each_of(range(100), lambda _: never.wait(), 8), lambda: "nobody says"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    assert done.stdout == "nobody says\n"


def test_each_is_asked_once_and_answers_in_its_place() -> None:
    assert each_of(range(100), lambda number: number * 2, 8) == [number * 2 for number in range(100)]
    assert each_of((), fail, 8) == []
    with pytest.raises(ConnectionLost):
        each_of([ConnectionLost("gone")], fail, 8)


def fail(error: Exception) -> None:
    raise error
