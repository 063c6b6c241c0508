"""The files that runs made, each stored once under the SHA-256 of its content.

A file is either whole, verified and on the disk under its digest, or not there: it is written beside its place under
another name, checked, synced and renamed. What a killed process leaves behind ends in `.part` and means nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from cloudrun.core.errors import LedgerError, NotFound, TransferError, UsageError
from cloudrun.core.records import FileEntry

CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BinaryWriter(Protocol):
    def write(self, data: bytes, /) -> object: ...


class ArtifactStore:
    """Files by content below `root`: `root/ab/abcdef...`, mode 0444."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, sha256: str) -> bool:
        return self._place(sha256).is_file()

    def path(self, sha256: str) -> Path:
        """Where that content is, to read and not to change. Raises NotFound."""
        place = self._place(sha256)
        if not place.is_file():
            raise NotFound(
                f"no artifact {sha256[:12]} in {self.root}", next_step="pull the run again, or restore a backup"
            )
        return place

    @contextmanager
    def writer(self, entry: FileEntry) -> Iterator[BinaryWriter]:
        """Something to write the file's bytes to. When the block ends well, size and digest are verified and the file
        is stored; otherwise nothing is, and what the block raised comes out unchanged.

        Raises TransferError for other bytes than announced, LedgerError where the disk is full or not writable.
        """
        with _new_file(self._place(entry.sha256), mode=0o444) as file:
            checked = _Checked(file, entry)
            yield checked
            checked.verify()

    def add(self, path: Path) -> FileEntry:
        """Store a local file; its name is the entry's path. Raises LedgerError where it cannot be read or stored."""
        with _disk_errors(path), path.open("rb") as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
            entry = FileEntry(path.name, os.fstat(source.fileno()).st_size, sha256)
            if not self.has(sha256):
                source.seek(0)
                with self.writer(entry) as sink:
                    _pump(source, sink)
        return entry

    def copy_out(self, sha256: str, destination: Path) -> None:
        """Put an own copy at `destination`, whole or not at all. Raises NotFound, UsageError where it is a folder,
        LedgerError where the stored file is damaged or the disk is full.
        """
        if destination.is_dir():
            raise UsageError(f"{destination} is a folder", next_step="name the file to write")
        with _disk_errors(destination), self.open(sha256) as source, _new_file(destination) as file:
            _pump(source, file)

    @contextmanager
    def open(self, sha256: str) -> Iterator[IO[bytes]]:
        """The stored file, its digest checked first. Raises NotFound, or LedgerError where it is damaged."""
        place = self.path(sha256)
        with _disk_errors(place):
            source = place.open("rb")
        with source:
            with _disk_errors(place):
                found = hashlib.file_digest(source, "sha256").hexdigest()
            if found != sha256:
                raise LedgerError(
                    f"the artifact {place} is damaged: its content is not that of its digest",
                    next_step=f"delete {place} and pull or submit the run again",
                )
            source.seek(0)
            yield source

    def _place(self, sha256: str) -> Path:
        if not _DIGEST.fullmatch(sha256):
            raise NotFound(
                f"{sha256!r} is not a SHA-256 digest", next_step="use a digest of `cloudrun show RUN --json`"
            )
        return self.root / sha256[:2] / sha256


class _Part:
    """A file that is being written; it has its name only once it is whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def write(self, data: bytes, /) -> None:
        rest = memoryview(data)
        with _disk_errors(self.path):
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]


class _Checked:
    """Counts and digests what passes through, and stops at the first byte too many."""

    def __init__(self, file: BinaryWriter, entry: FileEntry) -> None:
        self._file = file
        self._entry = entry
        self._size = 0
        self._digest = hashlib.sha256()

    def write(self, data: bytes, /) -> None:
        self._size += len(data)
        if self._size > self._entry.size:
            raise _wrong_bytes(self._entry, f"more than its {self._entry.size} bytes arrived")
        self._digest.update(data)
        self._file.write(data)

    def verify(self) -> None:
        if self._size != self._entry.size:
            raise _wrong_bytes(self._entry, f"{self._size} of {self._entry.size} bytes arrived")
        if self._digest.hexdigest() != self._entry.sha256:
            raise _wrong_bytes(self._entry, "its digest differs")


def _wrong_bytes(entry: FileEntry, what: str) -> TransferError:
    return TransferError(f"{entry.path!r} did not arrive whole: {what}", next_step="pull it again")


@contextmanager
def _new_file(place: Path, *, mode: int | None = None) -> Iterator[BinaryWriter]:
    """A file that appears at `place` when the block ends well, synced; without `mode` it has what the umask leaves."""
    with _disk_errors(place):
        _make_folder(place.parent)
        part = _Part(place.parent / f".{secrets.token_hex(8)}.part")
    try:
        yield part
        with _disk_errors(place):
            if mode is not None:
                os.fchmod(part.descriptor, mode)
            os.fsync(part.descriptor)
            part.path.replace(place)
            _sync_folder(place.parent)
    finally:
        os.close(part.descriptor)
        with suppress(FileNotFoundError):  # it has its name
            part.path.unlink()


def _pump(source: IO[bytes], sink: BinaryWriter) -> None:
    while chunk := source.read(CHUNK_BYTES):
        sink.write(chunk)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """A rename is only on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LedgerError(
                f"the disk is full: {path} was not written", next_step="free some space and try again"
            ) from error
        raise LedgerError(
            f"{path}: {error.strerror or error}", next_step=f"check {path.parent} and try again"
        ) from error
