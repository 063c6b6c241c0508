"""The line that a notebook shows while machines work."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from cloudrun.core.events import Note, Output, PhaseEnded, PhaseStarted
from cloudrun.notebook import Line, Watcher, grid_text, in_notebook, watched


def last(stream: io.StringIO) -> list[str]:
    """What is to be seen: of a line that was written over, its last state."""
    return [line.rpartition("\r")[2].rstrip() for line in stream.getvalue().split("\n")]


def test_this_is_no_notebook() -> None:
    assert not in_notebook()


def test_phases_are_one_line_and_what_the_job_prints_has_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    watch = Watcher(Line(stream))
    for event in (PhaseStarted("launch", "m7i.large"), PhaseEnded("launch", 1.2, "done"), PhaseStarted("boot")):
        watch(event)
    assert last(stream) == ["launch 1.2 s, boot ..."]
    watch(PhaseEnded("boot", 3.0, "done"))
    watch(Output("stdout", b"accuracy: 1\n"))
    watch(PhaseStarted("pull"))
    watch(Note("look out", "warning"))
    assert last(stream) == ["launch 1.2 s, boot 3.0 s", "pull ...", ""]
    said = capsys.readouterr()
    assert (said.out, said.err) == ("accuracy: 1\n", "cloudrun: look out\n")


def test_a_shorter_text_leaves_nothing_of_a_longer_one() -> None:
    stream = io.StringIO()
    line = Line(stream)
    line.show("a long text", at_once=True)
    line.show("short", at_once=True)
    assert stream.getvalue() == "\ra long text\rshort      "
    line.end()
    line.end()
    assert stream.getvalue().count("\n") == 1


def test_it_is_not_drawn_more_often_than_it_can_be_seen() -> None:
    stream, now = io.StringIO(), [0.0]
    line = Line(stream, lambda: now[0])
    for _ in range(100):
        line.show("x")
        now[0] += 0.01
    assert 1 < stream.getvalue().count("\r") <= 6


def test_a_grid_says_how_far_it_is_and_who_leaves_it_leaves_it() -> None:
    stream, left = io.StringIO(), []

    def runs() -> Iterator[int]:
        try:
            yield from range(3)
        finally:
            left.append(True)

    assert list(watched(runs(), lambda: (3, 0, 0, 3), Line(stream))) == [0, 1, 2]
    assert last(stream)[0].startswith("[####################] 3 of 3 cells, 0 running, ")
    for number in watched(runs(), lambda: (1, 2, 0, 3), Line(stream)):
        assert number == 0
        break
    assert left == [True, True]
    assert grid_text(0, 0, 2, 0, 1.0).startswith("[")
