"""Files that go to a client: outputs and logs, by their manifest."""

from __future__ import annotations

import hashlib
import os
from typing import Any, BinaryIO, Optional

from cloudrun.core import wire
from cloudrun.core.rundir import never_waiting, safe_relative

COPIED_BELOW = 64 * 1024  # bytes; a larger piece of a file goes to the client without passing through this process
FRAME = 1024 * 1024  # bytes of such a piece
NO_SENDFILE = not hasattr(os, "sendfile")


def send(folder: str, entries: list[dict[str, Any]], out: BinaryIO) -> dict[str, Any]:
    """Send every entry below `folder` from its `offset` up to its `size`: DATA frames, FILE_END with what went wrong.

    A file that only grew is therefore still what its manifest says; the other side checks the digest.
    """
    for entry in entries:
        name = entry["path"]
        error = "" if safe_relative(name) else "not a plain relative path"
        if not error:
            error = _send_one(os.path.join(folder, name), entry.get("offset", 0), entry["size"], out)
        out.write(wire.pack_json(wire.FILE_END, {"error": error} if error else {}))
    out.flush()
    return {"files": len(entries)}


def _send_one(path: str, offset: int, size: int, out: BinaryIO) -> str:
    try:
        file = open(path, "rb", buffering=0, opener=never_waiting)  # noqa: SIM115  # closed below
    except OSError as error:
        return error.strerror or "unreadable"
    with file:
        descriptor = file.fileno()
        try:
            while offset < size:
                if size - offset < COPIED_BELOW or NO_SENDFILE:
                    chunk = os.pread(descriptor, min(wire.CHUNK, size - offset), offset)
                    if not chunk:
                        return _shorter(size - offset)
                    out.write(wire.pack(wire.DATA, chunk))
                    offset += len(chunk)
                else:
                    length = min(FRAME, size - offset)
                    missing = _pass_on(descriptor, offset, length, out)
                    if missing:
                        return _shorter(size - offset - length + missing)
                    offset += length
        except (BrokenPipeError, ConnectionError):
            raise
        except OSError as error:
            return error.strerror or "unreadable"
    return ""


def _shorter(missing: int) -> str:
    return f"it is {missing} bytes shorter than it was"


def _pass_on(descriptor: int, offset: int, length: int, out: BinaryIO) -> int:
    """One DATA frame straight from the file. Returns how many bytes of it are none of the file's: a frame that was
    announced has to be filled, whatever becomes of the file."""
    out.write(wire.pack_header(wire.DATA, length))
    out.flush()
    left = length
    while left:
        try:
            sent = os.sendfile(out.fileno(), descriptor, offset, left)
        except (BrokenPipeError, ConnectionError):
            raise
        except OSError:  # this kind of file cannot be sent so, or cannot be read any more
            try:
                chunk = os.pread(descriptor, min(wire.CHUNK, left), offset)
            except OSError:
                break
            out.write(chunk)
            out.flush()
            sent = len(chunk)
        if not sent:
            break
        left -= sent
        offset += sent
    if left:
        out.write(bytes(left))
    return left


def small_contents(folder: str, entry: dict[str, Any]) -> Optional[bytes]:
    """The bytes of a small file, or None where they are no longer what its manifest says."""
    try:
        with open(os.path.join(folder, entry["path"]), "rb", buffering=0, opener=never_waiting) as file:
            content = file.read(entry["size"]) or b""
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == entry["sha256"] else None
