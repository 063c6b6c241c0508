"""Locks that end with the process that took them, and are not handed down to those that it forks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import time
from typing import Callable, Iterator

SHARED_S = 2.0  # how long to wait for a lock that nobody holds for longer than a look
_held: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def open_lock(path: str) -> int:
    """A descriptor for a lock's file, which is made. Never waits: what else a job has put there is removed first.

    Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(2):
        try:
            descriptor = os.open(path, flags, 0o600)
        except OSError:
            if not _is_spoilt(path):
                raise
        else:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
    return os.open(path, flags, 0o600)


def _is_spoilt(path: str) -> bool:
    return os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode)


def hold_shared(path: str) -> None:
    """Hold a shared lock on a file for as long as this process lives.

    One that another process keeps for itself is not waited for: it would be one that has no business with it.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor = open_lock(path)
    give_up = time.monotonic() + SHARED_S
    while time.monotonic() < give_up:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(0.01)
    os.utime(descriptor)  # whoever has come and gone between two looks of the warden has been here all the same
    _held.add(descriptor)


def is_held(path: str) -> bool:
    """Whether anybody holds the lock, shared or not."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def folder_lock(folder: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Be the only one at work in `folder`, which is made; `waiting` is called while another one is."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    _held.add(descriptor)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.01)
        yield
    finally:
        if descriptor in _held:  # not in a forked child
            _held.discard(descriptor)
            os.close(descriptor)
