"""Files to and from a unit over an agent's channel: what it lacks goes up, what is wanted comes down, from any byte."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

from cloudrun.core import wire
from cloudrun.core.errors import ConnectionLost, TransferError
from cloudrun.core.records import FileEntry
from cloudrun.ssh.channel import AgentChannel, as_object

OnProgress = Callable[[int, int], None]  # (bytes done, bytes in all)
PROGRESS_S = 0.1  # how often to tell
BATCH = 2000  # files that are asked for at once
RESUMED_FROM = 1024 * 1024  # bytes; smaller files are fetched again from their first byte


class BinaryWriter(Protocol):
    """`offset`, where a writer has it, is how many of the file's first bytes it has from an earlier try."""

    def write(self, data: bytes, /) -> Any: ...


OpenSink = Callable[[FileEntry], AbstractContextManager[BinaryWriter]]


class Meter:
    """Counts bytes and tells of them now and then; the last byte always."""

    def __init__(self, total: int, tell: OnProgress | None) -> None:
        self.done = 0
        self._total = total
        self._tell = tell
        self._next = 0.0

    def add(self, count: int) -> None:
        self.done += count
        if self._tell is not None:
            now = time.monotonic()
            if now >= self._next or self.done >= self._total:
                self._next = now + PROGRESS_S
                self._tell(self.done, self._total)


# -- up --------------------------------------------------------------------------------------------------------------


def ship(
    channel: AgentChannel,
    request: Mapping[str, Any],
    root: Path,
    entries: Sequence[FileEntry],
    on_progress: OnProgress | None,
    *,
    inline: bool = False,
) -> None:
    """Send the request, the manifest, and what the unit needs of it (all of it at once with `inline`).

    The reply is left to be read. Raises TransferError, naming the file, where one is not what its entry says.
    """
    meter = Meter(sum(entry.size for entry in entries), on_progress)
    with channel.sending():
        channel.ask("ship", inline=inline, **request)
        channel.send_items([entry.path, entry.size, entry.sha256, entry.mode] for entry in entries)
    if inline:
        needed = [(index, 0) for index in range(len(entries))]
    else:
        needed = list(_needed(channel, len(entries)))
        missing = sum(max(0, entries[index].size - offset) for index, offset in needed)
        meter.add(sum(entry.size for entry in entries) - missing)
    with channel.sending():
        for index, offset in needed:
            _send_file(channel, root, entries[index], offset, meter)


def _needed(channel: AgentChannel, count: int) -> Iterator[tuple[int, int]]:
    while True:
        kind, payload = channel.next()
        if kind == wire.FILE_END:
            return
        if kind != wire.NEED:
            raise ConnectionLost(f"the agent is out of step: {kind!r} where it was due what it needs")
        for index, offset in json.loads(payload):
            if not 0 <= index < count:
                raise ConnectionLost(f"the agent is out of step: it needs file {index} of {count}")
            yield index, offset


def _send_file(channel: AgentChannel, root: Path, entry: FileEntry, offset: int, meter: Meter) -> None:
    """Exactly the bytes from `offset` up to the entry's size."""
    path = root / entry.path
    remaining = entry.size - offset
    try:
        with path.open("rb", buffering=0) as file:
            if offset:
                file.seek(offset)
            while remaining > 0:
                chunk = file.read(min(wire.CHUNK, remaining))
                if not chunk:
                    raise TransferError(f"{entry.path} changed while it was shipped", next_step="submit again")
                remaining -= len(chunk)
                channel.send(wire.DATA, chunk)
                meter.add(len(chunk))
    except OSError as error:
        raise TransferError(f"cannot read {path}: {error.strerror}") from error
    channel.send(wire.FILE_END)


# -- down ------------------------------------------------------------------------------------------------------------


def fetch(
    channel: AgentChannel,
    run_dir: str,
    area: Literal["work", "logs"],
    entries: Sequence[FileEntry],
    open_sink: OpenSink,
    on_progress: OnProgress | None,
) -> list[str]:
    """Bring files home; returns why some did not come whole.

    They are asked for in batches, one ahead of what is read, so that the line is never idle. A large file ends its
    batch: its writer is opened before it is asked for, because it knows from which byte on.
    """
    meter = Meter(sum(entry.size for entry in entries), on_progress)
    failures: list[str] = []
    waiting: deque[_Batch] = deque()
    with ExitStack() as opened:
        for entries_of_batch in _batches(entries):
            waiting.append(_Batch(entries_of_batch, open_sink, opened))
            with channel.sending():
                channel.ask("fetch", run_dir=run_dir, area=area, entries=waiting[-1].wanted())
            if len(waiting) > 1:
                waiting.popleft().receive(channel, meter, failures)
        while waiting:
            waiting.popleft().receive(channel, meter, failures)
    return failures


def _batches(entries: Sequence[FileEntry]) -> Iterator[list[FileEntry]]:
    batch: list[FileEntry] = []
    for entry in entries:
        batch.append(entry)
        if entry.size >= RESUMED_FROM or len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class _Batch:
    def __init__(self, entries: list[FileEntry], open_sink: OpenSink, opened: ExitStack) -> None:
        self._entries = entries
        self._open_sink = open_sink
        self._large: AbstractContextManager[BinaryWriter] | None = None
        self._offset = 0
        if entries[-1].size >= RESUMED_FROM:
            stack = ExitStack()
            writer = stack.enter_context(open_sink(entries[-1]))
            self._offset = getattr(writer, "offset", 0)
            opened.push(stack)  # closing it twice does nothing
            self._large = _Opened(stack, writer)

    def wanted(self) -> list[dict[str, Any]]:
        wanted: list[dict[str, Any]] = [{"path": entry.path, "size": entry.size} for entry in self._entries]
        wanted[-1]["offset"] = self._offset
        return wanted

    def receive(self, channel: AgentChannel, meter: Meter, failures: list[str]) -> None:
        for entry in self._entries:
            last = entry is self._entries[-1]
            offset = self._offset if last else 0
            meter.add(offset)
            try:
                with self._large if last and self._large is not None else self._open_sink(entry) as writer:
                    for chunk in _file(channel, entry, offset):
                        writer.write(chunk)
                        meter.add(len(chunk))
            except TransferError as error:
                failures.append(str(error))
        channel.reply()


class _Opened:
    """A writer that was opened before its turn, as the context manager that it came from."""

    def __init__(self, stack: ExitStack, writer: BinaryWriter) -> None:
        self._stack = stack
        self._writer = writer

    def __enter__(self) -> BinaryWriter:
        return self._writer

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)


def _file(channel: AgentChannel, entry: FileEntry, offset: int) -> Iterator[bytes]:
    """One file of a fetch from `offset` on, up to its end frame."""
    received = offset
    while True:
        kind, payload = channel.next()
        if kind == wire.FILE_END:
            break
        if kind != wire.DATA:
            raise ConnectionLost(f"the agent is out of step: {kind!r} in the middle of a file")
        received += len(payload)
        if received <= entry.size:
            yield payload
    reason = as_object(payload).get("error", "")
    if reason or received != entry.size:
        raise TransferError(f"{entry.path} did not come whole: {reason or f'{received} of {entry.size} bytes'}")
