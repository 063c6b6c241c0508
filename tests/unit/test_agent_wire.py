"""Frames: whatever is packed is read back, and whatever is not a frame is refused."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.core import wire

kinds = st.binary(min_size=1, max_size=1)
frames = st.tuples(kinds, st.binary(max_size=200))


@given(st.lists(frames, max_size=10))
def test_frames_are_read_back_in_order_until_the_end(sent: list[tuple[bytes, bytes]]) -> None:
    stream = io.BytesIO(b"".join(wire.pack(kind, payload) for kind, payload in sent))
    assert [wire.read_frame(stream) for _ in sent] == sent
    assert wire.read_frame(stream) is None


@given(frames, st.data())
def test_a_stream_that_ends_inside_a_frame_is_an_error(frame: tuple[bytes, bytes], data: st.DataObject) -> None:
    packed = wire.pack(*frame)
    length = data.draw(st.integers(1, len(packed) - 1))
    with pytest.raises(wire.WireError):
        wire.read_frame(io.BytesIO(packed[:length]))


@given(st.text(min_size=10))
def test_a_talkative_login_shell_is_not_taken_for_frames(words: str) -> None:
    said = words.encode("utf-8", "surrogatepass")
    if said[1] < 4:
        return  # the length it happens to say is possible: the stream then ends early, or the kind is unknown
    with pytest.raises(wire.WireError):
        wire.read_frame(io.BytesIO(said))


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_json_travels_as_ascii(value: dict[str, object]) -> None:
    frame = wire.read_frame(io.BytesIO(wire.pack_json(wire.REPLY, value)))
    assert frame is not None
    assert frame[0] == wire.REPLY
    assert frame[1].isascii()
    assert json.loads(frame[1]) == value
