"""The agent of a folder that plays the unit, over pipes: all of it but SSH, so a test may ask it a thousand times."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, BinaryIO, cast

from cloudrun.core.errors import ConnectionLost
from tests.leftovers import end_all_in


class PipeSession:
    """In place of a `Session`. `cut_after`: bytes that are still taken from the client before the line breaks."""

    def __init__(self, home: Path, *, before: tuple[str, ...] = ()) -> None:
        self.home = home
        self.cut_after: int | None = None
        self.sent = 0
        self._before = before
        self._streams: list[PipeStream] = []

    def stream(self, command: str) -> PipeStream:
        stream = PipeStream(self, [*self._before, "sh", "-c", command])
        self._streams.append(stream)
        return stream

    def close(self) -> None:
        """Nothing of the unit outlives it, the warden neither."""
        for stream in self._streams:
            stream.close()
        end_all_in(self.home)


class PipeStream:
    def __init__(self, session: PipeSession, command: list[str]) -> None:
        self.silence_s = 30.0
        self.give_up_at = float("inf")
        self.cancelled: threading.Event | None = None
        self._session = session
        environment = dict(os.environ, HOME=str(session.home))
        self._process = subprocess.Popen(
            command,
            cwd=session.home,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.reader = cast("BinaryIO", self._process.stdout)

    @property
    def is_open(self) -> bool:
        return self._process.poll() is None

    def write(self, data: Any) -> None:
        session = self._session
        if session.cut_after is not None:
            data = bytes(data)[: session.cut_after]
            session.cut_after -= len(data)
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise ConnectionLost(f"the pipe broke: {error}") from error
        session.sent += len(data)
        if session.cut_after == 0:
            self._process.stdin.close()
            raise ConnectionLost("cut")

    def errors(self) -> str:
        return ""

    def close(self) -> None:
        """As a lost connection does, it ends the agent's input; here the agent is waited for."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise
