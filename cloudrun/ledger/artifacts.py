"""The files that runs made, each stored once under the SHA-256 of its content.

A file is either whole, verified and on the disk under its digest, or not there: it is written beside its place under
another name, checked, synced and renamed. What an interrupted transfer or a killed process leaves behind ends in
`.part`: of a large file it is kept for a week, so that the transfer can go on from there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol

from cloudrun.core.errors import LedgerError, NotFound, TransferError, UsageError
from cloudrun.core.records import FileEntry
from cloudrun.ledger.syncing import begin_sync, sync, sync_all

CHUNK_BYTES = 1 << 20
KEPT_FROM_BYTES = 1 << 20  # a smaller file that did not come whole is fetched again from its first byte
KEPT_S = 7 * 86400.0  # how long what there is of a larger one waits to be gone on with
GROUP_FILES = 1000  # of a batch that are stored together
SYNC_BYTES = 32 << 20  # the disk is given work while more bytes arrive, not only at the end
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BinaryWriter(Protocol):
    def write(self, data: bytes, /) -> object: ...


OpenWriter = Callable[[FileEntry], AbstractContextManager[BinaryWriter]]


class ArtifactStore:
    """Files by content below `root`: `root/ab/abcdef...`, mode 0444."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._swept = False

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
        """Something to write the file's bytes to, from its `offset` on: that many an earlier try has left.

        When the block ends well, size and digest are verified and the file is stored. Otherwise what the block raised
        comes out unchanged; what has arrived of a large file is kept for the next try, unless the digest was wrong.
        Raises TransferError for other bytes than announced, LedgerError where the disk is full or not writable.
        """
        with self._written(entry) as checked:
            yield checked
            checked.verify()
            with _disk_errors(checked.place):
                checked.part.complete(checked.place, mode=0o444)

    @contextmanager
    def batch(self) -> Iterator[OpenWriter]:
        """A `writer` for many files. Small ones are stored in groups, at the latest when the block ends, however it
        ends: the disk is waited for a few times in all, where each file of its own takes milliseconds.
        """
        with _Group() as group:

            @contextmanager
            def writer(entry: FileEntry) -> Iterator[BinaryWriter]:
                if entry.size >= KEPT_FROM_BYTES:
                    with self.writer(entry) as checked:
                        yield checked
                    return
                with self._written(entry, group) as checked:
                    yield checked
                    checked.verify()
                    with _disk_errors(checked.place):
                        os.fchmod(checked.part.descriptor, 0o444)
                    group.add(checked.part, checked.place)

            yield writer

    @contextmanager
    def _written(self, entry: FileEntry, group: _Group | None = None) -> Iterator[_Checked]:
        """The file while it is written and has no name yet."""
        place = self._place(entry.sha256)
        with _disk_errors(place):
            if group is None:
                _make_folder(place.parent)
            elif not place.parent.is_dir():
                place.parent.mkdir(parents=True, exist_ok=True)
                group.folders.add(self.root)
            part = self._part(place, entry)
        checked = _Checked(part, entry, place)
        try:
            if part.kept:
                with _disk_errors(place):
                    checked.resume(part.path)
            yield checked
        except (TransferError, LedgerError):
            # A digest over what was there before may be wrong because of that; and on a full disk the ledger itself
            # needs the room, to say what became of the run.
            part.kept = False
            raise
        finally:
            part.close(keep=part.waits or (part.kept and checked.offset >= KEPT_FROM_BYTES))

    def _part(self, place: Path, entry: FileEntry) -> _Part:
        """Of a large file what an earlier try has left, unless somebody else goes on with it just now."""
        if entry.size >= KEPT_FROM_BYTES:
            self._sweep()
            part = _Part.resumed(place.parent / f".{entry.sha256}.part")
            if part is not None:
                return part
        return _Part.new(place.parent)

    def _sweep(self) -> None:
        """Remove, once for each store, the partial files that nobody has gone on with."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
        oldest = time.time() - KEPT_S
        for path in self.root.glob("??/.*.part"):
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

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
        with _disk_errors(destination), self.open(sha256) as source:
            _make_folder(destination.parent)
            part = _Part.new(destination.parent)
            try:
                _pump(source, part)
                part.complete(destination)
            finally:
                part.close()

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
    """A file that is being written; it has its name only once it is whole. `kept`: it may stay where it is not."""

    def __init__(self, path: Path, descriptor: int, *, kept: bool) -> None:
        self.path = path
        self.descriptor = descriptor
        self.kept = kept
        self.waits = False  # to be stored with others
        self._unsynced = 0

    @classmethod
    def new(cls, folder: Path) -> _Part:
        path = folder / f".{secrets.token_hex(8)}.part"
        return cls(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), kept=False)

    @classmethod
    def resumed(cls, path: Path) -> _Part | None:
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
        with _disk_errors(self.path):
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


class _Group:
    """Small files that are whole and get their names together."""

    def __init__(self) -> None:
        self.folders: set[Path] = set()
        self._files: list[tuple[Path, Path]] = []

    def __enter__(self) -> _Group:
        return self

    def __exit__(self, *error: object) -> None:
        self._store()

    def add(self, part: _Part, place: Path) -> None:
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
            with _disk_errors(files[0][1]):
                sync_all(path for path, _ in files)
                for path, place in files:
                    path.replace(place)
                sync_all(folders)
        finally:
            for path, _ in files:
                path.unlink(missing_ok=True)


class _Checked:
    """Counts and digests what passes through, and stops at the first byte too many. `offset`: bytes so far."""

    def __init__(self, part: _Part, entry: FileEntry, place: Path) -> None:
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


def _pump(source: IO[bytes], sink: BinaryWriter) -> None:
    while chunk := source.read(CHUNK_BYTES):
        sink.write(chunk)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync(folder.parent)


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
