"""One command on one SSH channel, as a pair of byte streams whose every wait is bounded."""

from __future__ import annotations

import contextlib
import threading
import time
from types import TracebackType
from typing import Self

import paramiko

from cloudrun.core.errors import Cancelled, ConnectionLost

TICK_S = 0.2  # how late a cancellation may be noticed
PACKET = 32 * 1024  # bytes; no server takes more of a channel in one packet, so a larger slice is only copied
READ_BYTES = 256 * 1024  # taken at once of what has arrived
SILENCE_S = 30.0  # the other side says something at least every few seconds; after this long it is taken for dead


class Stream:
    """Reads and writes of a running command. Raises ConnectionLost for a peer that is gone or silent for `silence_s`.

    Where `cancelled` is set, a waiting read or write raises Cancelled.
    """

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self.silence_s = SILENCE_S
        self.give_up_at = float("inf")  # on the monotonic clock: no read is begun after it, however lively the unit
        self.cancelled: threading.Event | None = None
        self.reader = _Reader(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        waited_since = time.monotonic()
        self._channel.settimeout(TICK_S)
        while view:
            try:
                sent = self._channel.send(bytes(view[:PACKET]))
            except TimeoutError:
                self._still_waiting(waited_since)
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise ConnectionLost(f"the unit stopped listening: {error or 'the connection is closed'}") from error
            if not sent:
                raise ConnectionLost("the unit closed the channel")
            view = view[sent:]
            waited_since = time.monotonic()

    def read_some(self, size: int) -> bytes:
        """At least one byte, at most `size`; b"" at the end."""
        waited_since = time.monotonic()
        if waited_since > self.give_up_at:
            raise ConnectionLost("the unit lives, and does not come to an end")
        self._channel.settimeout(TICK_S)
        while True:
            try:
                data = self._channel.recv(size)
            except TimeoutError:
                self._still_waiting(waited_since)
                continue
            except (OSError, EOFError, paramiko.SSHException) as error:
                raise ConnectionLost(f"the connection to the unit broke: {error}") from error
            if not data and not self._channel.get_transport().is_active():
                raise ConnectionLost("the connection to the unit is closed")
            return data

    @property
    def is_open(self) -> bool:
        return not (self._channel.closed or self._channel.eof_received)

    def errors(self) -> str:
        """What the command has said on stderr so far, without waiting."""
        said = b""
        while self._channel.recv_stderr_ready():
            said += self._channel.recv_stderr(65536)
        return said.decode("utf-8", "replace").strip()

    def close(self) -> None:
        """On a connection that is lost, too, where nobody can be told: why it was lost is what its user is to hear."""
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.close()

    def _still_waiting(self, since: float) -> None:
        if self.cancelled is not None and self.cancelled.is_set():
            raise Cancelled("cancelled while waiting for the unit")
        if time.monotonic() - since > self.silence_s:
            raise ConnectionLost(f"the unit has been silent for {self.silence_s:.0f} s")


class _Reader:
    """Reads exactly so many bytes, fewer only at the end, and copies them once."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        pieces = []
        while size:
            if not self._rest:
                self._rest = memoryview(self._stream.read_some(READ_BYTES))
                if not self._rest:
                    break
            pieces.append(self._rest[:size])
            self._rest = self._rest[size:]
            size -= len(pieces[-1])
        return b"".join(pieces)
