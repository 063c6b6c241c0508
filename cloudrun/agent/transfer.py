"""Files as streams: the project comes in by its manifest, outputs and logs go out by theirs."""

from __future__ import annotations

import hashlib
import os
from typing import Any, BinaryIO

from cloudrun.agent.errors import AgentError
from cloudrun.agent.manifest import fingerprint
from cloudrun.core import wire
from cloudrun.core.rundir import RunDir, safe_relative, write_json


def receive(run: RunDir, entries: list[dict[str, Any]], stream: BinaryIO) -> dict[str, Any]:
    """Write `entries` below work/ from the DATA frames that follow, and what they were to shipped.json.

    Each file is DATA frames of exactly its size, then FILE_END. Raises AgentError for a path that leads elsewhere,
    a digest that is not the promised one, a client that gave up, or a disk that is full.
    """
    shipped: dict[str, Any] = {}
    made: set[str] = set()
    name = "the project"
    try:
        os.makedirs(run.work, mode=0o700, exist_ok=True)
        for entry in entries:
            name = entry["path"]
            if not safe_relative(name):
                raise AgentError("transfer", f"refused to write {name!r}: not a plain relative path")
            path = os.path.join(run.work, name)
            folder = os.path.dirname(path)
            if folder not in made:
                os.makedirs(folder, exist_ok=True)
                made.add(folder)
            info = _receive_one(path, entry, stream)
            shipped[name] = {"sha256": entry["sha256"], "stat": fingerprint(info)}
        write_json(run.shipped, shipped)
    except OSError as error:
        raise AgentError("transfer", f"could not write {name} on the unit: {error.strerror}") from error
    return {"files": len(shipped)}


def _receive_one(path: str, entry: dict[str, Any], stream: BinaryIO) -> os.stat_result:
    digest = hashlib.sha256()
    remaining = entry["size"]
    # a new inode each time: a file of an interrupted ship is replaced, and a link in its place is not followed
    if os.path.lexists(path):
        os.unlink(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "wb", buffering=0) as file:
        while True:
            frame = wire.read_frame(stream)
            if frame is None:
                raise AgentError("transfer", "the client went away while shipping")
            kind, payload = frame
            if kind == wire.FILE_END:
                break
            if kind != wire.DATA or len(payload) > remaining:
                raise AgentError("transfer", f"{entry['path']} changed while it was shipped")
            digest.update(payload)
            remaining -= len(payload)
            _write_all(file, payload)
        if remaining or digest.hexdigest() != entry["sha256"]:
            raise AgentError("transfer", f"{entry['path']} changed while it was shipped")
        os.fchmod(file.fileno(), entry["mode"] & 0o777 | 0o600)
        return os.fstat(file.fileno())


def _write_all(file: Any, payload: bytes) -> None:
    view = memoryview(payload)
    while view:
        view = view[file.write(view) :]


def send(folder: str, entries: list[dict[str, Any]], out: BinaryIO) -> dict[str, Any]:
    """Send the first `size` bytes of every entry below `folder`: DATA frames, then FILE_END with what went wrong.

    A file that only grew is therefore still what its manifest says; the other side checks the digest.
    """
    for entry in entries:
        name = entry["path"]
        error = "" if safe_relative(name) else "not a plain relative path"
        if not error:
            error = _send_one(os.path.join(folder, name), entry["size"], out)
        out.write(wire.pack_json(wire.FILE_END, {"error": error} if error else {}))
    return {"files": len(entries)}


def _send_one(path: str, size: int, out: BinaryIO) -> str:
    remaining = size
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return error.strerror or "unreadable"
    with open(descriptor, "rb", buffering=0) as file:
        while remaining:
            try:
                chunk = file.read(min(wire.CHUNK, remaining))
            except OSError as error:
                return error.strerror or "unreadable"
            if not chunk:
                return f"it is {remaining} bytes shorter than it was"
            out.write(wire.pack(wire.DATA, chunk))
            remaining -= len(chunk)
    return ""
