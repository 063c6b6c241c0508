"""Writing what must not be lost: a job's end, on a disk that may be full and in a folder that a job may have spoilt."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

from cloudrun.core.rundir import write_json

SLOWEST_S = 1.0  # how often to try again while the disk is full
RESERVE_BYTES = 1024  # room that a document is given in advance


def write_at_last(path: Path, value: Any) -> None:
    """Write the document, however long it takes; only where its folder is gone there is nothing to do."""
    pause_s = 0.02
    while not try_write(path, value) and path.parent.is_dir():
        time.sleep(pause_s)
        pause_s = min(SLOWEST_S, pause_s * 2)


def try_write(path: Path, value: Any) -> bool:
    """Replace the document; where there is no room for another one, write it over the one that is there."""
    try:
        write_json(path, value)
        return True
    except OSError:
        pass
    for temporary in path.parent.glob(path.name + ".tmp*"):  # of one that was killed
        with contextlib.suppress(OSError):
            temporary.unlink()
    if _overwrite(path, value):
        return True
    with contextlib.suppress(OSError):  # what the job did to the folder, most likely
        os.chmod(path.parent, 0o700)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            remove_tree(str(path))
    return False


def remove_tree(path: str) -> None:
    """Remove a folder, whatever a job has made of it: shut to its owner, or deeper than `shutil` can go. No errors."""
    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(path)
        return
    if not os.path.lexists(path) or os.path.islink(path):
        return
    waiting = [path]
    while waiting:  # what is in a folder can be removed by who may write to it
        folder = waiting.pop()
        with contextlib.suppress(OSError):
            os.chmod(folder, stat.S_IRWXU)
            with os.scandir(folder) as listing:
                waiting += [item.path for item in listing if item.is_dir(follow_symlinks=False)]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        subprocess.run(["rm", "-rf", "--", path], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def reserve(path: Path) -> None:
    """Make room for a document that is to be written later; until then it reads as none."""
    blank = path.with_name(path.name + f".tmp{os.getpid()}")
    with contextlib.suppress(OSError):
        blank.write_bytes(b" " * RESERVE_BYTES)
        os.link(blank, path)  # at once, and never over what somebody has just written
    with contextlib.suppress(OSError):
        blank.unlink()


def _overwrite(path: Path, value: Any) -> bool:
    # in place, a file's first block is not allocated again; blanks cover what was there, and are JSON too
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    with open(descriptor, "wb", buffering=0) as stream:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_size == 0:
            return False
        text = json.dumps(value, separators=(",", ":")).encode("ascii")
        with contextlib.suppress(OSError):
            if stream.write(text.ljust(info.st_size)) >= len(text):
                os.fsync(descriptor)
                return True
    return False
