"""Ids sort by when they were made, also those of one moment."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloudrun.core.ids import new_id


def test_ids_are_in_the_order_they_were_made_in_and_all_different() -> None:
    ids = [new_id("r") for _ in range(20_000)]
    assert ids == sorted(set(ids))
    assert all(re.fullmatch("r-[0-9a-hjkmnp-tv-z]{13}", each) for each in ids)


def test_threads_never_make_the_same() -> None:
    with ThreadPoolExecutor(4) as pool:
        ids = [each for some in pool.map(lambda _: [new_id("r") for _ in range(2000)], range(4)) for each in some]
    assert len(set(ids)) == len(ids)


def test_a_clock_that_is_set_back_does_not_turn_the_order_round(monkeypatch: pytest.MonkeyPatch) -> None:
    later = time.time() + 1
    monkeypatch.setattr(time, "time", lambda: later)
    first = new_id("r")
    monkeypatch.setattr(time, "time", lambda: later - 3600)
    assert new_id("r") > first


def test_a_fork_makes_ids_whatever_other_threads_were_doing() -> None:
    over = threading.Event()

    def make() -> None:
        while not over.is_set():
            new_id("r")

    busy = [threading.Thread(target=make) for _ in range(4)]
    for each in busy:
        each.start()
    try:
        for _ in range(20):  # of two of them one met a thread that had the lock, before
            child = os.fork()
            if child == 0:
                signal.alarm(10)
                new_id("r")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        over.set()
        for each in busy:
            each.join()
