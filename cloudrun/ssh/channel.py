"""The client's end of a channel to the agent: starts it, brings it where it is missing, asks and hears answers."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from cloudrun.core import wire
from cloudrun.core.errors import CloudrunError, ConnectionLost, LaunchError, TransferError
from cloudrun.ssh.archive import Archive
from cloudrun.ssh.session import Session
from cloudrun.ssh.stream import Stream

GATHERED_BYTES = 128 * 1024  # frames are sent together up to so many bytes


def _command(archive: Archive) -> str:
    """One command that asks for the archive where it is not there yet (a NEEDED frame), and then is the agent.

    The size is checked before the archive gets its name: a connection lost half-way leaves nothing under it.
    """
    path, size = archive.path, len(archive.data)
    folder = path.rpartition("/")[0]
    fetch = (
        f"printf 'N\\000\\000\\000\\000' && umask 077 && mkdir -p {folder} && head -c {size} > {path}.$$"
        f" && [ $(wc -c < {path}.$$) -eq {size} ] && mv {path}.$$ {path}"
    )
    return f"cd && {{ [ -f {path} ] || {{ {fetch}; }}; }} && exec python3 -I -S -X utf8 {path}"


class AgentChannel:
    """One running agent. Requests go one after another; after a failure the channel is of no use any more."""

    def __init__(self, session: Session, archive: Archive) -> None:
        self.stream: Stream = session.stream(_command(archive))
        self.hello: dict[str, Any] = {}
        self._unsent = bytearray()
        try:
            kind, payload = self._frame()
            if kind == wire.NEEDED:
                self.stream.write(archive.data)
                kind, payload = self._frame()
            if kind != wire.HELLO:
                raise ConnectionLost(f"something else than the agent answered: {kind + payload[:200]!r}")
            self.hello = as_object(payload)
        except BaseException:
            self.close()
            raise

    def ask(self, verb: str, **arguments: Any) -> None:
        """Send a request. Further ones may follow before its reply is read."""
        self.send(wire.REQUEST, json.dumps({"verb": verb, **arguments}, separators=(",", ":")).encode("ascii"))

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send a frame, at the latest when an answer is awaited: a packet costs the same whatever is in it."""
        self._unsent += wire.pack_header(kind, len(payload))
        if len(payload) > GATHERED_BYTES:
            self.flush()
            self.stream.write(payload)
        else:
            self._unsent += payload
            if len(self._unsent) > GATHERED_BYTES:
                self.flush()

    def send_items(self, items: Iterable[Any]) -> None:
        """A list as DATA frames, each a list of its next items, up to FILE_END."""
        items = iter(items)
        while some := list(itertools.islice(items, wire.LIST_ITEMS)):
            self.send(wire.DATA, json.dumps(some, separators=(",", ":")).encode("ascii"))
        self.send(wire.FILE_END)

    def flush(self) -> None:
        unsent, self._unsent = self._unsent, bytearray()
        if unsent:
            self.stream.write(unsent)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Where the agent stops listening, let out why: that is the better error."""
        try:
            yield
            self.flush()
        except ConnectionLost:
            self._unsent.clear()
            while self.next()[0] != wire.FAILURE:  # raises what the agent said, or that it is gone
                pass
            raise

    def next(self) -> tuple[bytes, bytes]:
        """The next frame of the answer, ALIVE left out. Raises what the agent says went wrong; ConnectionLost."""
        while True:
            if self._unsent:
                self.flush()
            kind, payload = self._frame()
            if kind == wire.FAILURE:
                raise _failure(as_object(payload))
            if kind != wire.ALIVE:
                return kind, payload

    def reply(self) -> dict[str, Any]:
        """The end of the answer."""
        kind, payload = self.next()
        if kind != wire.REPLY:
            raise ConnectionLost(f"the agent is out of step: {kind!r} where a reply was due")
        return as_object(payload)

    def close(self) -> None:
        self.stream.close()

    def _frame(self) -> tuple[bytes, bytes]:
        try:
            frame = wire.read_frame(self.stream.reader)
        except wire.WireError as error:
            raise ConnectionLost(f"the agent stopped in the middle: {error}. {self.stream.errors()}") from error
        if frame is None:
            said = self.stream.errors()
            if said and not self.hello:
                raise LaunchError(
                    f"the agent does not start on the unit: {said}",
                    next_step="use an image whose `python3` is 3.9 or newer",
                )
            raise ConnectionLost(f"the agent ended without an answer{': ' + said if said else ''}")
        return frame


def as_object(payload: bytes) -> dict[str, Any]:
    """The JSON object in a frame. Raises ConnectionLost where there is none: then the other side is not our agent."""
    try:
        value = json.loads(payload)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ConnectionLost(f"the agent is out of step: {payload[:100]!r} where an object was due")
    return value


def _failure(answer: dict[str, Any]) -> CloudrunError:
    message = str(answer.get("message"))
    if answer.get("kind") == "transfer":
        return TransferError(message, next_step="run the command again; if it happens again, look at the file named")
    return CloudrunError(f"the agent failed: {message}", next_step="this is a bug in cloudrun: please report it")
