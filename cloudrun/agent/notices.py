"""Notices of what happens in a folder (inotify(7)), for whoever would otherwise have to look again and again."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Optional

IN_MODIFY = 0x00000002  # <sys/inotify.h>: a file in it was written to,
IN_MOVED_TO = 0x00000080  # or got its name there
_ROOM = 64 * 1024  # bytes; many events


class Watch:
    """Readable, for `select`, when a file in the folder has grown or was replaced since the last `drain`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def drain(self) -> None:
        """Forget what has happened so far. What is lost where there were too many events is one event itself."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._descriptor, _ROOM):
                pass

    def close(self) -> None:
        os.close(self._descriptor)


def watch(folder: str) -> Optional[Watch]:
    """None where the system has no such thing, or no more of them for this user: whoever asks has to look, then."""
    try:
        library = _library()
        descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    except (ImportError, AttributeError, OSError):
        return None
    if descriptor < 0:
        return None
    if library.inotify_add_watch(descriptor, os.fsencode(folder), IN_MODIFY | IN_MOVED_TO) < 0:
        os.close(descriptor)
        return None
    return Watch(descriptor)


def _library() -> Any:
    import ctypes  # not every Python has it

    return ctypes.CDLL(None)
