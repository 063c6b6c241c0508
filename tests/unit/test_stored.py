"""A manifest in a bucket was written by a machine on which a stranger's job ran: it is believed in nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.core.errors import ManifestRefused, ObjectMissing, TransferError
from cloudrun.core.records import FileEntry
from cloudrun.core.rundir import safe_relative
from cloudrun.runs.stored import contents, parse_stored, read_stored

DIGEST = "0" * 64
ENTRY = {"path": "model.joblib", "size": 5, "sha256": DIGEST, "mode": 0o644}
OUTPUTS = {"entries": [ENTRY], "logs": [], "left_out": [["x", "a socket"]], "refused": ""}
STATUS = {"state": "exited", "exit_code": 0, "usage": {"cpu_user_s": 1.5, "news": 1}, "pid_started": "7"}
DOCUMENT = {"schema_version": 1, "status": STATUS, "outputs": OUTPUTS, "parts": {}, "part_bytes": 100}


def document(**changes: Any) -> bytes:
    return json.dumps({**DOCUMENT, **changes}).encode()


def test_what_a_unit_writes_is_read() -> None:
    stored = parse_stored(document())
    assert stored.outputs.entries == (FileEntry("model.joblib", 5, DIGEST, 0o644),)
    assert stored.outputs.left_out == (("x", "a socket"),)
    assert (stored.status.state, stored.status.exit_code, stored.status.signal) == ("exited", 0, None)
    assert stored.status.usage is not None
    assert stored.status.usage.cpu_user_s == 1.5


@pytest.mark.parametrize(
    "changes",
    [
        {"schema_version": 2},
        {"outputs": []},
        {"outputs": {}},
        {"status": None},
        {"status": {"state": "asleep"}},
        {"status": {**STATUS, "exit_code": "zero"}},
        {"status": {**STATUS, "usage": 7}},
        {"parts": []},
        {"parts": {DIGEST: 0}},
        {"parts": {DIGEST: 10**9}},
        {"part_bytes": 0},
        {"part_bytes": None},
        *[
            {"outputs": {**OUTPUTS, "entries": [{**ENTRY, **wrong}]}}
            for wrong in (
                {"path": "../../.ssh/authorized_keys"},
                {"path": "/etc/passwd"},
                {"path": "a\nb"},
                {"size": -1},
                {"size": 1e999},
                {"size": None},
                {"sha256": "../x"},
                {"sha256": DIGEST.upper().replace("0", "A")},
                {"mode": "rw"},
            )
        ],
    ],
)
def test_what_makes_no_sense_or_could_do_harm_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestRefused):
        parse_stored(document(**changes))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(sorted(DOCUMENT)), inner),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_manifest_or_refused(text: bytes) -> None:
    with pytest.raises(ManifestRefused):
        parse_stored(text)


@given(st.sampled_from(["status", "outputs", "parts", "part_bytes"]), JSON)
def test_any_field_is_sound_or_refused(name: str, value: Any) -> None:
    try:
        stored = parse_stored(document(**{name: value}))
    except ManifestRefused:
        return
    assert all(count > 0 for count in stored.parts.values())
    assert stored.part_bytes > 0


@given(st.fixed_dictionaries({name: JSON | st.just(value) for name, value in ENTRY.items()}))
def test_an_entry_that_is_taken_can_do_no_harm(entry: dict[str, Any]) -> None:
    try:
        stored = parse_stored(document(outputs={**OUTPUTS, "entries": [entry]}))
    except ManifestRefused:
        return
    (taken,) = stored.outputs.entries
    assert safe_relative(taken.path)
    assert taken.size >= 0
    assert len(taken.sha256) == 64
    assert 0 <= taken.mode <= 0o777


def test_deep_nonsense_is_refused() -> None:
    with pytest.raises(ManifestRefused):
        parse_stored(b"[" * 100_000)


class Objects:
    """A bucket in memory, which hands out small pieces."""

    def __init__(self, **objects: bytes) -> None:
        self.objects = {name.replace("_", "."): content for name, content in objects.items()}
        self.read_bytes = 0

    def read(self, _bucket: str, key: str, offset: int = 0) -> Iterator[bytes]:
        name = key.removeprefix("p/").removeprefix("data/").removeprefix(DIGEST)
        if name not in self.objects:
            raise ObjectMissing(f"{key} is not there")
        content = self.objects[name]
        if offset > len(content):
            raise TransferError("shorter")
        for start in range(offset, len(content), 3):
            self.read_bytes += len(content[start : start + 3])
            yield content[start : start + 3]


def test_a_store_without_a_manifest_is_not_complete() -> None:
    assert read_stored(Objects(), "b", "p/") is None
    complete = Objects(**{"manifest.json": document()})
    found = read_stored(complete, "b", "p/")
    assert found is not None
    assert found.outputs.entries


@given(st.binary(max_size=60), st.integers(min_value=1, max_value=20), st.integers(min_value=0, max_value=60))
def test_contents_come_from_any_byte_whatever_they_are_cut_into(content: bytes, part_bytes: int, offset: int) -> None:
    offset = min(offset, len(content))
    parts = [content[start : start + part_bytes] for start in range(0, len(content), part_bytes)]
    entry = FileEntry("a", len(content), DIGEST)
    whole = parse_stored(document())
    assert b"".join(contents(Objects(**{"": content}), "b", "p/", whole, entry, offset)) == content[offset:]
    if parts:
        split = parse_stored(document(parts={DIGEST: len(parts)}, part_bytes=part_bytes))
        objects = Objects(**{f"_{number}": part for number, part in enumerate(parts)})
        assert b"".join(contents(objects, "b", "p/", split, entry, offset)) == content[offset:]
        assert objects.read_bytes == len(content) - offset


def test_an_object_that_is_longer_than_it_says_shows_and_fills_no_disk() -> None:
    stored = parse_stored(document())
    content = b"".join(contents(Objects(**{"": b"x" * 1000}), "b", "p/", stored, FileEntry("a", 10, DIGEST)))
    assert len(content) == 11


def test_a_content_that_is_gone_is_an_error() -> None:
    with pytest.raises(ObjectMissing):
        b"".join(contents(Objects(), "b", "p/", parse_stored(document()), FileEntry("a", 10, DIGEST)))
