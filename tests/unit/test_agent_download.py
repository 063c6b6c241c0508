"""Data on its way to a unit: whole, what was promised, and gone on with after a cut."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent.download import PARTIAL, fetch
from cloudrun.agent.errors import AgentError
from tests.bucket_server import Bucket


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def quietly(folder: Path, files: list[Any]) -> None:
    fetch(folder, files, lambda *_: None, pause_s=0.001)


def test_files_are_fetched_into_their_places_and_nothing_else_is_left(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {"a": b"one", "b/c/d": os.urandom(3_000_000), "empty": b""}
    told: list[tuple[int, int]] = []
    fetch(folder, [bucket.file(key) for key in bucket.objects], lambda *each: told.append(each))
    assert files_of(folder) == bucket.objects
    assert told[-1] == (3_000_003, 3_000_003)
    assert not (folder / PARTIAL).exists()


def test_more_files_than_threads_are_fetched(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {f"{number}/x": bytes([number]) * number for number in range(50)}
    quietly(folder, [bucket.file(key) for key in bucket.objects])
    assert files_of(folder) == bucket.objects


@pytest.mark.parametrize("cut", [0, 1, 100_000, 2_999_999])
def test_a_cut_is_gone_on_from(folder: Path, bucket: Bucket, cut: int) -> None:
    bucket.objects = {"a": os.urandom(3_000_000)}
    bucket.faults = [f"cut:{cut}"]
    quietly(folder, [bucket.file("a")])
    assert files_of(folder) == bucket.objects
    assert [each for _, each in bucket.asked] == ["", f"bytes={cut}-" if cut else ""]


def test_many_cuts_with_progress_between_them_are_no_reason_to_give_up(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {"a": os.urandom(300_000)}
    bucket.faults = ["cut:10000"] * 29
    told: list[tuple[int, int]] = []
    fetch(folder, [bucket.file("a")], lambda *each: told.append(each), pause_s=0.001)
    assert files_of(folder) == bucket.objects
    assert told[-1] == (300_000, 300_000)


@pytest.mark.parametrize("fault", ["503:SlowDown", "500:InternalError", "slow"])
def test_a_busy_or_slow_store_is_waited_for(folder: Path, bucket: Bucket, fault: str) -> None:
    bucket.objects = {"a": os.urandom(3_000_000)}
    bucket.faults = [fault] * 3
    quietly(folder, [bucket.file("a")])
    assert files_of(folder) == bucket.objects


def test_a_store_without_ranges_is_read_from_the_start_again(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {"a": os.urandom(300_000)}
    bucket.faults = ["cut:1000", "no ranges"]
    told: list[tuple[int, int]] = []
    fetch(folder, [bucket.file("a")], lambda *each: told.append(each), pause_s=0.001)
    assert files_of(folder) == bucket.objects
    assert told[-1] == (300_000, 300_000)


def test_a_fetch_that_was_ended_goes_on_later(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {"a": os.urandom(300_000), "b": b"small"}
    bucket.faults = ["cut:200000", *["403:AccessDenied"] * 10]
    with pytest.raises(AgentError):
        quietly(folder, [bucket.file("a")])
    bucket.faults.clear()
    bucket.asked.clear()
    quietly(folder, [bucket.file("a"), bucket.file("b")])
    assert ("a", "bytes=200000-") in bucket.asked
    assert files_of(folder) == bucket.objects
    bucket.asked.clear()
    quietly(folder, [bucket.file("a"), bucket.file("b")])
    assert bucket.asked == []


@pytest.mark.parametrize("change", ["content", "etag", "midway"])
def test_an_object_that_is_not_what_was_promised_is_refused(folder: Path, bucket: Bucket, change: str) -> None:
    bucket.objects = {"a": b"x" * 100_000}
    promised = bucket.file("a")
    if change == "content":
        bucket.objects["a"] = b"y" * 100_001
    bucket.faults = {"content": [], "etag": ["replaced"], "midway": ["cut:500", "replaced"]}[change]
    with pytest.raises(AgentError, match="was replaced") as caught:
        quietly(folder, [promised])
    assert caught.value.kind == "transfer"
    assert "a" not in files_of(folder)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403:ExpiredToken", "could not fetch a: the leave for it has expired"),
        ("403:AccessDenied", "refused with 403"),
        ("404:NoSuchKey", "NoSuchKey"),
    ],
)
def test_a_refusal_says_why(folder: Path, bucket: Bucket, fault: str, words: str) -> None:
    bucket.objects = {"a": b"1"}
    bucket.faults = [fault]
    with pytest.raises(AgentError, match=words):
        quietly(folder, [bucket.file("a")])


def test_a_store_that_is_never_there_is_given_up(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {"a": b"12345"}
    bucket.faults = ["cut:0"] * 1000
    with pytest.raises(AgentError, match="could not fetch a"):
        quietly(folder, [bucket.file("a")])


@pytest.mark.parametrize("path", ["../a", "/etc/passwd", "a/../b", "", "a\nb", f"{PARTIAL}/a"])
def test_a_path_that_leads_elsewhere_is_refused_before_anything_is_fetched(
    folder: Path, bucket: Bucket, path: str
) -> None:
    bucket.objects = {"a": b"1"}
    with pytest.raises(AgentError, match="refused"):
        quietly(folder, [{**bucket.file("a"), "path": path}])
    assert bucket.asked == []


def test_two_objects_for_one_place_are_refused(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {"a": b"1", "b": b"2", "c": b"3"}
    with pytest.raises(AgentError, match="two objects"):
        quietly(folder, [bucket.file("a", "x"), bucket.file("b", "x")])
    with pytest.raises(AgentError, match="could not write"):
        quietly(folder, [bucket.file("a", "x"), bucket.file("b", "x/y"), bucket.file("c", "x/y/z")])


def test_a_client_that_goes_away_ends_the_fetch(folder: Path, bucket: Bucket) -> None:
    bucket.objects = {"a": os.urandom(20_000_000)}
    bucket.faults = ["slow"]

    def gone(_done: int, _total: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        fetch(folder, [bucket.file("a")], gone)
    assert not (folder / "a").exists()


def test_two_fetches_of_the_same_data_do_not_spoil_each_other(folder: Path, bucket: Bucket) -> None:
    """The first one's client has gone, and its thread has not noticed yet."""
    bucket.objects = {"a": os.urandom(8_000_000)}
    bucket.faults = ["slow"]
    begun = threading.Event()

    def gone(done: int, _total: int) -> None:
        if done:
            begun.set()
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        fetch(folder, [bucket.file("a")], gone)
    assert begun.is_set()
    quietly(folder, [bucket.file("a")])
    assert files_of(folder) == bucket.objects
