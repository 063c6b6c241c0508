"""Notices of a folder: something that grows or gets its name wakes whoever waits, and only that."""

from __future__ import annotations

import select
import sys
import threading
from pathlib import Path

import pytest

from cloudrun.agent import notices

WAIT_S = 60.0
NAMES = ["stdout.log", "status.json"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no inotify")


def wakes(watch: notices.Watch, within_s: float = WAIT_S) -> bool:
    return bool(select.select([watch], [], [], within_s)[0])


def test_a_log_that_grows_and_a_document_that_is_replaced_wake_who_waits(tmp_path: Path) -> None:
    log = tmp_path / "stdout.log"
    log.touch()
    watch = notices.watch(str(tmp_path), NAMES)
    assert watch is not None
    assert not wakes(watch, 0)
    with log.open("ab", buffering=0) as stream:
        threading.Timer(0.01, lambda: stream.write(b"a line\n")).start()
        assert wakes(watch)
    assert watch.drain()
    assert not wakes(watch, 0)
    part = tmp_path.parent / "status.part"
    part.write_text("{}")
    part.rename(tmp_path / "status.json")
    assert wakes(watch)
    assert watch.drain()
    log.read_bytes()
    assert not wakes(watch, 0), "reading it is nothing new"
    (tmp_path / "status.json.tmp1").write_text("{}")
    assert wakes(watch)
    assert not watch.drain(), "it concerns nobody"
    watch.close()


def test_one_that_was_closed_is_used_again_and_says_nothing_of_what_it_was_for(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    before = notices.watch(str(tmp_path / "first"), NAMES)
    assert before is not None
    (tmp_path / "first" / "stdout.log").write_text("a line\n")
    before.close()
    after = notices.watch(str(tmp_path / "second"), NAMES)
    assert after is not None
    assert after.fileno() == before.fileno()
    (tmp_path / "first" / "stdout.log").write_text("another line\n")
    assert not after.drain()
    (tmp_path / "second" / "stdout.log").write_text("a line\n")
    assert after.drain()
    (tmp_path / "second" / "stdout.log").unlink()
    (tmp_path / "second").rmdir()
    after.close()


def test_where_it_cannot_be_had_there_is_none(tmp_path: Path) -> None:
    assert notices.watch(str(tmp_path / "nowhere"), NAMES) is None
