"""Who keeps files and who frees them, kept apart between processes and threads by a lock on a file.

Many may keep files at the same time; whoever frees some is alone, for milliseconds. The system lets go of the lock when
a process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cloudrun.core.errors import LedgerError

PATIENCE_S = 60.0  # with one who frees files: that takes milliseconds, unless it was stopped in the middle
IMPATIENCE_S = 2.0  # with those who keep files: that may take hours
POLL_S = 0.01


_gates: weakref.WeakSet[Gate] = weakref.WeakSet()


def _after_fork() -> None:
    """The locks are the parent's, and its threads are not here: one may have been in the middle of something."""
    for gate in list(_gates):
        gate.forget()


os.register_at_fork(after_in_child=_after_fork)


class Gate:
    """One for each process and folder, used by any thread. A block of `shared` may be inside another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.forget()
        _gates.add(self)

    def forget(self) -> None:
        """Hold nothing. A descriptor stays open: closing it here is no harm, and no use."""
        self._turn = threading.Lock()
        self._descriptor = -1
        self._holders = 0
        self._pid = os.getpid()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep files. Raises LedgerError where somebody who frees files does not let go."""
        with self._turn:
            if not self._holders:
                why = "a process that frees files holds them for a long time"
                self._descriptor = self._lock(fcntl.LOCK_SH, PATIENCE_S, why, "look for `cloudrun gc`, and end it")
            self._holders += 1
            pid = self._pid
        try:
            yield
        finally:
            with self._turn:
                if self._pid == pid:  # else this is a child of whoever holds it
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
