"""Digests of the project's files, remembered: a tree that did not change is looked at, not read.

An entry counts while the file's stat fingerprint is the same, the ctime in it, which no program can set back. A file
that changed at about the moment at which it was digested could have changed once more without a trace (git calls such
entries racy): it is digested again until it has been left alone for RACY_NS.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

NAME = "digests.json"
VERSION = 1
RACY_NS = 2_000_000_000  # the coarsest clock of a file system in use, FAT's, ticks every 2 s
CHUNK_BYTES = 1 << 20


class Digests:
    """SHA-256 by path below `root`. Without a `folder` to keep them in, or where that cannot be written, nothing is
    remembered; a damaged memory is none."""

    def __init__(self, root: Path, folder: Path | None) -> None:
        self._root = os.fspath(root)
        self._file = None if folder is None else folder / NAME
        self._new: Path | None = None
        self._moment_ns = 0
        self._known = self._load()
        self._changed = False

    def of(self, name: str, info: os.stat_result) -> tuple[int, str]:
        """Size and digest of a file whose stat is `info`. Raises OSError."""
        known = self._known.get(name)
        print_now = _fingerprint(info)
        if known is not None and known[0] == print_now:
            return info.st_size, known[1]
        self._begin()
        with open(f"{self._root}/{name}", "rb", buffering=0) as stream:  # noqa: PTH123  # thousands of them
            before = _fingerprint(os.fstat(stream.fileno()))
            digest = hashlib.sha256()
            size = 0
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
            same = _fingerprint(os.fstat(stream.fileno())) == before
        sha256 = digest.hexdigest()
        if same and max(before[3:]) < self._moment_ns - RACY_NS:
            self._known[name] = [before, sha256]
            self._changed = True
        return size, sha256

    def save(self, names: Iterable[str]) -> None:
        """Remember those of `names`, and no others."""
        if self._new is None:
            return
        try:
            if self._changed and self._file is not None:
                kept = {name: self._known[name] for name in names if name in self._known}
                document = {"version": VERSION, "root": self._root, "files": kept}
                self._new.write_text(json.dumps(document, separators=(",", ":")), "ascii")
                self._new.replace(self._file)
        except OSError:  # a cache is worth no error
            pass
        finally:
            with suppress(OSError):
                self._new.unlink(missing_ok=True)

    def _load(self) -> dict[str, list[Any]]:
        if self._file is None:
            return {}
        try:
            document = json.loads(self._file.read_bytes())
            if document["version"] == VERSION and document["root"] == self._root:
                files: dict[str, list[Any]] = document["files"]
                return files
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return {}

    def _begin(self) -> None:
        """Learn what time it is by the clock of the file system, which may be another computer's."""
        if self._moment_ns or self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._new = self._file.with_name(f".{NAME}.{secrets.token_hex(8)}")
            self._new.touch(0o600)
            self._moment_ns = self._new.stat().st_mtime_ns
        except OSError:
            self._new = None


def _fingerprint(info: os.stat_result) -> list[int]:
    return [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]
