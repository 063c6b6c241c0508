"""The files that runs made, each stored once under the SHA-256 of its content.

A file is either whole, verified and on the disk under its digest, or not there: it is written beside its place under
another name, checked, synced and renamed. What an interrupted transfer or a killed process leaves behind ends in
`.part`: of a large file it is kept for a week, so that the transfer can go on from there.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO

from cloudrun.core.errors import LedgerError, NotFound, TransferError, UsageError
from cloudrun.core.records import FileEntry
from cloudrun.ledger.gate import Gate
from cloudrun.ledger.parts import BinaryWriter, Checked, Group, Part, disk_errors, make_folder, pump

KEPT_FROM_BYTES = 1 << 20  # a smaller file that did not come whole is fetched again from its first byte
KEPT_S = 7 * 86400.0  # how long what there is of a larger one waits to be gone on with
_DIGEST = re.compile(r"[0-9a-f]{64}")


OpenWriter = Callable[[FileEntry], AbstractContextManager[BinaryWriter]]


class ArtifactStore:
    """Files by content below `root`: `root/ab/abcdef...`, mode 0444."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._swept = False
        self._gate = Gate(root / ".lock")

    def has(self, sha256: str) -> bool:
        """Whether it is here now. Only in a block of `in_use` does that stay so."""
        return self._place(sha256).is_file()

    def touch(self, sha256: str) -> bool:
        """As `has`, for one that somebody is about to refer to: it counts as new from now on."""
        try:
            os.utime(self._place(sha256))
        except FileNotFoundError:
            return False
        except OSError:  # not ours to touch: it is there all the same
            return self.has(sha256)
        return True

    def in_use(self) -> AbstractContextManager[None]:
        """As long as the block lasts nothing is freed, by no process: what `has` finds in it is there at its end, when
        the ledger refers to it. Raises LedgerError where somebody who frees files does not come to an end.
        """
        return self._gate.shared()

    def alone(self) -> AbstractContextManager[None]:
        """As long as the block lasts nobody is in one of `in_use`. Raises LedgerError where somebody is: files are
        being brought home."""
        return self._gate.alone()

    def free(self, candidates: Iterable[str], is_unused: Callable[[list[str]], set[str]], *, before: float) -> int:
        """Remove those of `candidates` that nobody refers to and that were last touched `before` (seconds since 1970).
        `is_unused` is asked while nobody is in a block of `in_use`, and says which of them nobody refers to.

        Returns the bytes that were freed. Raises LedgerError where the files are in use now.
        """
        freed = 0
        with self._gate.alone():
            for sha256 in is_unused(list(candidates)):
                place = self._place(sha256)
                with suppress(FileNotFoundError), disk_errors(place):
                    status = place.stat()
                    if status.st_mtime < before:
                        place.unlink()
                        freed += status.st_size
        return freed

    def digests(self) -> Iterator[tuple[str, os.stat_result]]:
        """Everything that is stored."""
        for path in self.root.glob("??/*"):
            if _DIGEST.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    yield path.name, path.stat()

    def parts(self) -> Iterator[tuple[Path, os.stat_result]]:
        """What transfers have left that did not end."""
        for path in self.root.glob("??/.*.part"):
            with suppress(FileNotFoundError):
                yield path, path.stat()

    def free_part(self, path: Path, *, before: float) -> int:
        """Remove such a one, unless somebody writes it. Returns the bytes that were freed. Raises as `free`."""
        with self._gate.alone():
            part = Part.resumed(path) if path.exists() else None
            if part is None:
                return 0
            status = os.fstat(part.descriptor)
            part.close(keep=status.st_mtime >= before)
            return 0 if status.st_mtime >= before else status.st_size

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
            with disk_errors(checked.place):
                checked.part.complete(checked.place, mode=0o444)

    @contextmanager
    def batch(self) -> Iterator[OpenWriter]:
        """A `writer` for many files. Small ones are stored in groups, at the latest when the block ends, however it
        ends: the disk is waited for a few times in all, where each file of its own takes milliseconds.
        """
        with Group() as group:

            @contextmanager
            def writer(entry: FileEntry) -> Iterator[BinaryWriter]:
                if entry.size >= KEPT_FROM_BYTES:
                    with self.writer(entry) as checked:
                        yield checked
                    return
                with self._written(entry, group) as checked:
                    yield checked
                    checked.verify()
                    with disk_errors(checked.place):
                        os.fchmod(checked.part.descriptor, 0o444)
                    group.add(checked.part, checked.place)

            yield writer

    @contextmanager
    def _written(self, entry: FileEntry, group: Group | None = None) -> Iterator[Checked]:
        """The file while it is written and has no name yet."""
        place = self._place(entry.sha256)
        with disk_errors(place):
            if group is None:
                make_folder(place.parent)
            elif not place.parent.is_dir():
                place.parent.mkdir(parents=True, exist_ok=True)
                group.folders.add(self.root)
            part = self._part(place, entry)
        checked = Checked(part, entry, place)
        try:
            if part.kept:
                with disk_errors(place):
                    checked.resume(part.path)
            yield checked
        except (TransferError, LedgerError):
            # A digest over what was there before may be wrong because of that; and on a full disk the ledger itself
            # needs the room, to say what became of the run.
            part.kept = False
            raise
        finally:
            part.close(keep=part.waits or (part.kept and checked.offset >= KEPT_FROM_BYTES))

    def _part(self, place: Path, entry: FileEntry) -> Part:
        """Of a large file what an earlier try has left, unless somebody else goes on with it just now."""
        if entry.size >= KEPT_FROM_BYTES:
            self._sweep()
            part = Part.resumed(place.parent / f".{entry.sha256}.part")
            if part is not None:
                return part
        return Part.new(place.parent)

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
        with disk_errors(path), path.open("rb") as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
            entry = FileEntry(path.name, os.fstat(source.fileno()).st_size, sha256)
            if not self.has(sha256):
                source.seek(0)
                with self.writer(entry) as sink:
                    pump(source, sink)
        return entry

    def copy_out(self, sha256: str, destination: Path) -> None:
        """Put an own copy at `destination`, whole or not at all. Raises NotFound, UsageError where it is a folder,
        LedgerError where the stored file is damaged or the disk is full.
        """
        if destination.is_dir():
            raise UsageError(f"{destination} is a folder", next_step="name the file to write")
        with disk_errors(destination), self.open(sha256) as source:
            make_folder(destination.parent)
            part = Part.new(destination.parent)
            try:
                pump(source, part)
                part.complete(destination)
            finally:
                part.close()

    @contextmanager
    def open(self, sha256: str) -> Iterator[IO[bytes]]:
        """The stored file, its digest checked first. Raises NotFound, or LedgerError where it is damaged."""
        place = self.path(sha256)
        with disk_errors(place):
            source = place.open("rb")
        with source:
            with disk_errors(place):
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
