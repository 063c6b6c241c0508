"""Frames: what a client and the agent say to each other over one SSH channel.

A frame is one byte of kind, four bytes of length (big endian) and that many bytes. A conversation is

    agent:   HELLO                           once, when it is ready
    client:  REQUEST {"verb": ..., ...}      then, per verb, more frames either way
    agent:   REPLY {...}                     the end of the request
         or  FAILURE {"kind", "message"}     the end of the request and of the channel

A client may send its next requests without waiting for replies, which come in the order of the requests; after a
FAILURE nothing else is answered. A list that may be long (a manifest, what is needed of it) travels as DATA or NEED
frames that are each a JSON list of a few thousand items, then FILE_END: neither side has to hold more than one.

Like `rundir` it runs on both sides: standard library only, valid on Python 3.9.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Protocol

REQUEST = b"Q"  # JSON
REPLY = b"R"  # JSON
FAILURE = b"F"  # JSON
HELLO = b"H"  # JSON: who the agent is
NEEDED = b"N"  # empty: the agent's archive is not there; its bytes follow, unframed, from the client
DATA = b"D"  # bytes of a file, or a JSON list of entries
NEED = b"W"  # JSON: [[index, offset], ...] of the manifest's entries that the unit lacks, from these bytes on
PROGRESS = b"P"  # JSON {"done", "total"}: bytes of what the unit fetches itself
FILE_END = b"E"  # JSON: {} or {"error": why this file is not whole}
STDOUT = b"1"  # bytes the job printed
STDERR = b"2"
ALIVE = b"A"  # empty: nothing to tell, and still here; also from a client between two requests

PROTOCOL = 2
CHUNK = 256 * 1024  # bytes of file in one frame: large enough that a frame costs nothing, small enough to buffer
LIST_ITEMS = 4000  # items of a long list in one frame
MAX_FRAME = 64 * 1024 * 1024  # bytes; a longer one is a stream out of step, not a frame
_HEADER = struct.Struct(">cI")


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class WireError(Exception):
    """The other side said something that is not a frame, or stopped in the middle of one."""


def pack(kind: bytes, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, len(payload)) + payload


def pack_json(kind: bytes, value: Any) -> bytes:
    return pack(kind, json.dumps(value, separators=(",", ":")).encode("ascii"))


def pack_header(kind: bytes, length: int) -> bytes:
    """What goes before `length` bytes of payload that are written by other means."""
    return _HEADER.pack(kind, length)


def read_frame(stream: Readable) -> tuple[bytes, bytes] | None:
    """The next frame, or None where the stream ended cleanly between two.

    Raises WireError where it ended in the middle, or where what came is no frame (a login shell that talks, say).
    """
    header = stream.read(_HEADER.size)
    if not header:
        return None
    if len(header) < _HEADER.size:
        raise WireError(f"the stream ended after {header!r}")
    kind, length = _HEADER.unpack(header)
    if length > MAX_FRAME:
        raise WireError(f"not a frame: {header!r}")
    payload = stream.read(length)
    if len(payload) < length:
        raise WireError(f"the stream ended {length - len(payload)} bytes early")
    return kind, payload
