"""The agent's byte code beside its archive: a Python that finds it there starts an agent in half the time.

An agent leaves it behind when its client has gone, so that nobody waits for the compiler, and only on a machine that is
used more than once. It holds for one version of Python, as the folder's name says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time

ARCHIVE = ".pyz"
KEPT_S = 60.0  # a machine that has had its agent for so long is one that clients come back to
COMPILED = "." + (sys.implementation.cache_tag or "python")


def version_of(place: str) -> str:
    """The same for an archive and for what was compiled of it."""
    for ending in (ARCHIVE, COMPILED):
        if place.endswith(ending):
            return place[: -len(ending)]
    return place


def keep(archive: str) -> None:
    """Leave the byte code of `archive` beside it, all of it or nothing. For anything but an archive nothing is done."""
    if not archive.endswith(ARCHIVE):
        return
    place = version_of(archive) + COMPILED
    unfinished = f"{place}.{os.getpid()}"
    with contextlib.suppress(OSError):
        if os.path.exists(place) or time.time() - os.stat(archive).st_mtime < KEPT_S:
            return
        try:
            if _compile(archive, unfinished):
                os.rename(unfinished, place)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _compile(archive: str, folder: str) -> bool:
    """False where that cannot be done."""
    import py_compile  # both of them here: few agents need them, and each would start a tenth more slowly
    import zipfile

    with contextlib.suppress(py_compile.PyCompileError, zipfile.BadZipFile), zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            with open(path, "wb") as source:
                source.write(file.read(name))
            # not checked against the source's time: nobody changes either of them
            mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
            made = py_compile.compile(path, doraise=True, invalidation_mode=mode)
            # or a machine that loses its power has names without contents, and no agent that starts
            for written in (path, made):
                with open(str(written), "rb") as stream:
                    os.fsync(stream.fileno())
        return True
    return False
