"""Locks that end with the process that took them, and are not handed down to those that it forks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import Callable, Iterator

_held: set[int] = set()


def _let_go_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


def hold_shared(path: str) -> None:
    """Hold a shared lock on a file for as long as this process lives."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(descriptor)  # whoever has come and gone between two looks of the warden has been here all the same
    _held.add(descriptor)


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
