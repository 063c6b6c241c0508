"""Notices of what happens in a folder (inotify(7)), for whoever would otherwise have to look again and again."""

from __future__ import annotations

import contextlib
import os
import struct
from typing import Any, Collection, List, Optional

IN_MODIFY = 0x00000002  # <sys/inotify.h>: a file in it was written to,
IN_MOVED_TO = 0x00000080  # or got its name there
IN_Q_OVERFLOW = 0x00004000
_EVENT = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, and the length of the name behind it
_ROOM = 64 * 1024  # bytes; many events

_spare: List[int] = []  # to close one takes the kernel 10 ms and more: one is kept for the next time


class Watch:
    """Readable, for `select`, when a file in the folder has grown or was replaced since the last `drain`."""

    def __init__(self, library: Any, descriptor: int, number: int, names: Collection[bytes]) -> None:
        self._library = library
        self._descriptor = descriptor
        self._number = number
        self._names = names

    def fileno(self) -> int:
        return self._descriptor

    def drain(self) -> bool:
        """Forget what has happened so far; returns whether any of it was worth a look."""
        happened = False
        with contextlib.suppress(BlockingIOError):
            while events := os.read(self._descriptor, _ROOM):
                happened = self._concern(events) or happened
        return happened

    def _concern(self, events: bytes) -> bool:
        place = 0
        while place < len(events):
            number, mask, _, length = _EVENT.unpack_from(events, place)
            place += _EVENT.size + length
            name = events[place - length : place].rstrip(b"\0")
            if mask & IN_Q_OVERFLOW or (number == self._number and name in self._names):
                return True
        return False

    def close(self) -> None:
        if _spare or self._library.inotify_rm_watch(self._descriptor, self._number) < 0:
            os.close(self._descriptor)
        else:
            _spare.append(self._descriptor)


def watch(folder: str, names: Collection[str]) -> Optional[Watch]:
    """For the files of those names in the folder. None where the system has no such thing, or no more of them for this
    user: whoever asks has to look, then."""
    try:
        library = _library()
        descriptor = _spare.pop() if _spare else library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except (ImportError, AttributeError, OSError):
        return None
    if descriptor < 0:
        return None
    number = library.inotify_add_watch(descriptor, os.fsencode(folder), IN_MODIFY | IN_MOVED_TO)
    if number < 0:
        os.close(descriptor)
        return None
    return Watch(library, descriptor, number, frozenset(map(os.fsencode, names)))


def _library() -> Any:
    import ctypes  # not every Python has it

    return ctypes.CDLL(None)
