"""A file that is being written beside its place: it has its name only once it is whole and on the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from cloudrun.core.errors import LedgerError, TransferError
from cloudrun.core.records import FileEntry
from cloudrun.ledger.syncing import begin_sync, sync, sync_all

CHUNK_BYTES = 1 << 20
GROUP_FILES = 1000  # of a batch that are stored together
SYNC_BYTES = 32 << 20  # the disk is given work while more bytes arrive, not only at the end


class BinaryWriter(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Part:
    """A file that is being written; it has its name only once it is whole. `kept`: it may stay where it is not."""

    def __init__(self, path: Path, descriptor: int, *, kept: bool) -> None:
        self.path = path
        self.descriptor = descriptor
        self.kept = kept
        self.waits = False  # to be stored with others
        self._unsynced = 0

    @classmethod
    def new(cls, folder: Path) -> Part:
        path = folder / f".{secrets.token_hex(8)}.part"
        return cls(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), kept=False)

    @classmethod
    def resumed(cls, path: Path) -> Part | None:
        """The one of a known name, made where there is none; None while another process or thread writes it."""
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return cls(path, descriptor, kept=True)
            except BlockingIOError:
                os.close(descriptor)
                return None
            except FileNotFoundError:
                pass
            os.close(descriptor)  # whoever had it has just given it its name, or removed it

    def write(self, data: bytes, /) -> None:
        rest = memoryview(data)
        self._unsynced += len(rest)
        with disk_errors(self.path):
            while rest:
                rest = rest[os.write(self.descriptor, rest) :]
            if self._unsynced >= SYNC_BYTES:
                self._unsynced = 0
                begin_sync(self.descriptor)

    def complete(self, place: Path, *, mode: int | None = None) -> None:
        """Give it its name, synced; without `mode` it has what the umask leaves."""
        if mode is not None:
            os.fchmod(self.descriptor, mode)
        os.fsync(self.descriptor)
        self.path.replace(place)
        sync(place.parent)

    def close(self, *, keep: bool = False) -> None:
        try:
            if not keep:
                with suppress(FileNotFoundError):  # it has its name
                    self.path.unlink()
        finally:
            os.close(self.descriptor)


class Group:
    """Small files that are whole and get their names together."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()
        self._files: list[tuple[Path, Path]] = []

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *error: object) -> None:
        self._store()

    def add(self, part: Part, place: Path) -> None:
        part.waits = True
        self._files.append((part.path, place))
        if len(self._files) >= GROUP_FILES:
            self._store()

    def _store(self) -> None:
        files, self._files = self._files, []
        folders, self.folders = self.folders | {place.parent for _, place in files}, set()
        if not files:
            return
        try:
            with disk_errors(files[0][1]):
                sync_all(path for path, _ in files)
                for path, place in files:
                    path.replace(place)
                sync_all(folders)
        finally:
            for path, _ in files:
                path.unlink(missing_ok=True)


class Checked:
    """Counts and digests what passes through, and stops at the first byte too many. `offset`: bytes so far."""

    def __init__(self, part: Part, entry: FileEntry, place: Path) -> None:
        self.part = part
        self.place = place
        self._entry = entry
        self._digest = hashlib.sha256()
        self.offset = 0

    def resume(self, path: Path) -> None:
        """Take up what is in the file already."""
        with path.open("rb") as there:
            size = os.fstat(there.fileno()).st_size
            if size > self._entry.size:
                os.ftruncate(self.part.descriptor, 0)
                return
            while chunk := there.read(CHUNK_BYTES):
                self._digest.update(chunk)
                self.offset += len(chunk)
        os.lseek(self.part.descriptor, self.offset, os.SEEK_SET)

    def write(self, data: bytes, /) -> None:
        if self.offset + len(data) > self._entry.size:
            raise _wrong_bytes(self._entry, f"more than its {self._entry.size} bytes arrived")
        self._digest.update(data)
        self.part.write(data)
        self.offset += len(data)

    def verify(self) -> None:
        if self.offset != self._entry.size:
            raise _wrong_bytes(self._entry, f"{self.offset} of {self._entry.size} bytes arrived")
        if self._digest.hexdigest() != self._entry.sha256:
            raise _wrong_bytes(self._entry, "its digest differs")


def _wrong_bytes(entry: FileEntry, what: str) -> TransferError:
    return TransferError(f"{entry.path!r} did not arrive whole: {what}", next_step="pull it again")


def pump(source: IO[bytes], sink: BinaryWriter) -> None:
    while chunk := source.read(CHUNK_BYTES):
        sink.write(chunk)


def make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
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
