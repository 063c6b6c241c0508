"""Who keeps files and who frees them, kept apart between processes and threads by a lock on a file.

Many may keep files at the same time; whoever frees some is alone, for milliseconds. The system lets go of the lock when
a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudrun.core.errors import LedgerError

PATIENCE_S = 60.0  # with one who frees files: that takes milliseconds, unless it was stopped in the middle
IMPATIENCE_S = 2.0  # with those who keep files: that may take hours
POLL_S = 0.01


class Gate:
    """One for each process and folder, used by any thread. A block of `shared` may be inside another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._turn = threading.Lock()
        self._descriptor = -1
        self._holders = 0
        self._pid = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep files. Raises LedgerError where somebody who frees files does not let go."""
        with self._turn:
            if self._pid != os.getpid():  # a fork: the lock of the parent's descriptor is the parent's
                self._descriptor, self._holders, self._pid = -1, 0, os.getpid()
            if not self._holders:
                why = "a process that frees files holds them for a long time"
                self._descriptor = self._lock(fcntl.LOCK_SH, PATIENCE_S, why, "look for `cloudrun gc`, and end it")
            self._holders += 1
        try:
            yield
        finally:
            with self._turn:
                if self._pid == os.getpid():
                    self._holders -= 1
                    if not self._holders:
                        os.close(self._descriptor)
                        self._descriptor = -1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Free files. Raises LedgerError where somebody keeps some now."""
        why = "files are being brought home just now"
        descriptor = self._lock(fcntl.LOCK_EX, IMPATIENCE_S, why, "cloudrun gc, when that is over: cloudrun ps")
        try:
            yield
        finally:
            os.close(descriptor)

    def _lock(self, kind: int, patience_s: float, why: str, next_step: str) -> int:
        end = time.monotonic() + patience_s
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise LedgerError(
                f"{self._path}: {error.strerror or error}", next_step=f"make {self._path.parent} writable"
            ) from error
        try:
            while True:
                try:
                    fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                    return descriptor
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise LedgerError(f"{self._path.parent}: {why}", next_step=next_step) from None
                    time.sleep(POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
