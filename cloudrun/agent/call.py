"""One request under way: what the client asked, what it goes on sending, and what it is told meanwhile."""

from __future__ import annotations

import io
import json
import os
import select
import threading
import time
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator

from cloudrun.agent.errors import AgentError
from cloudrun.core import rundir, wire
from cloudrun.core.rundir import RunDir

ALIVE_S = 5.0  # how long to be silent oneself
MID_REQUEST_S = 60.0  # a client that stops in the middle of its own request is gone, whatever TCP still believes
IDLE_S = 300.0  # a client says every minute or so that it is there; one that does not shall keep no unit awake


class Call:
    """`arguments` of a request, and the streams on which some verbs go on talking before they reply."""

    def __init__(self, arguments: dict[str, Any], stdin: Input, stdout: BinaryIO) -> None:
        self.arguments = arguments
        self.stdin = stdin
        self.stdout = stdout
        self._lock = threading.Lock()
        self._last_sent = time.monotonic()

    def run(self) -> RunDir:
        name = self.arguments["run_dir"]
        if not rundir.safe_relative(name):
            raise AgentError("usage", f"{name!r} is not the name of a run directory")
        return RunDir(Path.cwd() / name)

    def frame(self) -> tuple[bytes, bytes]:
        """The next frame of the request. Raises WireError where the client has gone away."""
        frame = self.stdin.frame(MID_REQUEST_S)
        if frame is None:
            raise wire.WireError("the client went away in the middle of a request")
        return frame

    def items(self) -> Iterator[Any]:
        """The items of a list that comes as DATA frames up to FILE_END."""
        while True:
            kind, payload = self.frame()
            if kind == wire.FILE_END:
                return
            if kind != wire.DATA:
                raise AgentError("internal", f"{kind!r} where a list was due")
            yield from json.loads(payload)

    def send(self, kind: bytes, value: Any) -> None:
        """Tell the client at once."""
        with self._lock:
            self.stdout.write(wire.pack_json(kind, value))
            self.stdout.flush()
            self._last_sent = time.monotonic()

    def send_items(self, kind: bytes, items: list[Any]) -> None:
        """A list, as frames of `kind` up to FILE_END."""
        for start in range(0, len(items), wire.LIST_ITEMS):
            self.stdout.write(wire.pack_json(kind, items[start : start + wire.LIST_ITEMS]))
        self.stdout.write(wire.pack_json(wire.FILE_END, {}))
        self.stdout.flush()

    def alive(self) -> None:
        """Called often during work that has nothing to tell: lets the client know every few seconds."""
        if time.monotonic() - self._last_sent >= ALIVE_S:
            with self._lock:
                self.stdout.write(wire.pack(wire.ALIVE))
                self.stdout.flush()
                self._last_sent = time.monotonic()

    def while_alive(self, work: Callable[[], Any]) -> Any:
        """Do something that may be silent for long, and say meanwhile that we are here."""
        over = threading.Event()

        def tell() -> None:
            while not over.wait(ALIVE_S / 5):
                self.alive()

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            return work()
        finally:
            over.set()
            teller.join()


class Input(io.RawIOBase):
    """What the other side says, with an end to every wait: `patience_s` without a byte is a WireError."""

    def __init__(self, descriptor: int, whose: str = "the client", patience_s: float = IDLE_S) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._whose = whose
        self._patience_s = patience_s
        self.reader = io.BufferedReader(self, 256 * 1024)

    def frame(self, patience_s: float) -> tuple[bytes, bytes] | None:
        """As `wire.read_frame`; WireError too where nothing comes for `patience_s`."""
        self._patience_s = patience_s
        return wire.read_frame(self.reader)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def readinto(self, buffer: Any) -> int:
        if not select.select([self._descriptor], [], [], self._patience_s)[0]:
            raise wire.WireError(f"{self._whose} has been silent for {self._patience_s:.0f} s")
        return os.readv(self._descriptor, [buffer])
