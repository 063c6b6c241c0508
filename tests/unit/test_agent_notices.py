"""Notices of a folder: something that grows or gets its name wakes whoever waits, and only that."""

from __future__ import annotations

import select
import sys
import threading
from pathlib import Path

import pytest

from cloudrun.agent import notices

WAIT_S = 60.0

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no inotify")


def wakes(watch: notices.Watch, within_s: float = WAIT_S) -> bool:
    return bool(select.select([watch], [], [], within_s)[0])


def test_a_log_that_grows_and_a_document_that_is_replaced_wake_who_waits(tmp_path: Path) -> None:
    log = tmp_path / "stdout.log"
    log.touch()
    watch = notices.watch(str(tmp_path))
    assert watch is not None
    assert not wakes(watch, 0)
    with log.open("ab", buffering=0) as stream:
        threading.Timer(0.01, lambda: stream.write(b"a line\n")).start()
        assert wakes(watch)
    watch.drain()
    assert not wakes(watch, 0)
    part = tmp_path.parent / "status.part"
    part.write_text("{}")
    part.rename(tmp_path / "status.json")
    assert wakes(watch)
    watch.drain()
    log.read_bytes()
    assert not wakes(watch, 0), "reading it is nothing new"
    watch.close()


def test_where_it_cannot_be_had_there_is_none(tmp_path: Path) -> None:
    assert notices.watch(str(tmp_path / "nowhere")) is None
