"""Ids sort by when they were made, also those of one moment."""

from __future__ import annotations

import re
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
