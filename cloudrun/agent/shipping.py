"""Files that come from a client: a run's project, an earlier attempt's outputs, the files of a data set.

The client sends the manifest. Unless all contents follow at once, it hears what of it the unit lacks and sends only
that. A large file grows in `incoming/` under its digest, so that a transfer that was cut goes on from there; no file
has its own name before its digest was seen to be right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from typing import Any, Dict, Iterator

from cloudrun.agent import durable, reuse
from cloudrun.agent.call import Call
from cloudrun.agent.errors import AgentError
from cloudrun.agent.locks import folder_lock
from cloudrun.agent.manifest import fingerprint
from cloudrun.agent.reuse import Entry
from cloudrun.core import wire
from cloudrun.core.rundir import RunDir, safe_relative

RESUMED_FROM = 1024 * 1024  # bytes; a smaller file is held in memory, and sent again where it was cut
_SHA256 = re.compile(r"[0-9a-f]{64}")


def ship(call: Call) -> dict[str, Any]:
    """The `ship` of a run's project ("project"), or of files that are to be outputs again ("outputs").

    The project is what is in work/ afterwards, and nothing else. A run that has been started is left alone: then a
    client that lost its connection ships again what has arrived. Raises AgentError for a path that leads elsewhere, a
    digest that is not the promised one, or a disk that is full.
    """
    run = call.run()
    is_project = call.arguments.get("area", "project") == "project"
    inline = bool(call.arguments.get("inline"))
    entries = read_manifest(call)
    with explained(), folder_lock(str(run.root), call.alive):
        delivery = Delivery(call, str(run.work), str(run.incoming), entries)
        if os.path.lexists(run.status):
            delivery.pass_over(inline)
        elif is_project:
            _receive_project(run, delivery, inline)
        else:
            delivery.receive(inline, _unrecorded(run, entries, call))
    return delivery.reply()


def _receive_project(run: RunDir, delivery: Delivery, inline: bool) -> None:
    entries = delivery.entries
    there: dict[int, list[int]] = {}
    if inline:
        durable.remove_tree(str(run.work))  # of a first try: small, and cheaper to get again than to look at
    else:
        known = reuse.recorded(run) if run.work.exists() else reuse.take_tree(run, entries)
        if run.work.exists():
            with contextlib.suppress(OSError):  # a job has left what cannot be listed or removed
                there = reuse.sift(str(run.work), entries, known, delivery.call.alive)
            if not there:
                durable.remove_tree(str(run.work))
    delivery.receive(inline, there, lambda digests: reuse.find(run, digests))
    reuse.write_shipped(run, entries, delivery.there)


def _unrecorded(run: RunDir, entries: list[Entry], call: Call) -> dict[int, list[int]]:
    """Which files a first try has brought: they are what they should be, and not the project's own."""
    recorded = reuse.recorded(run)
    there = {}
    for index, (path, size, sha256, _) in enumerate(entries):
        place = os.path.join(run.work, path)
        with contextlib.suppress(OSError):
            before = fingerprint(os.lstat(place))
            if before[1] == size and path not in recorded and reuse.digest_of(place, call.alive).hexdigest() == sha256:
                there[index] = before
    return there


def read_manifest(call: Call) -> list[Entry]:
    """The entries [path, size, sha256, mode] of a ship. Raises AgentError for one that could do harm.

    As tuples: some 300 bytes each, which is 120 MB for 400,000 files.
    """
    entries: list[Entry] = []
    seen = set()
    for path, size, sha256, mode in call.items():
        if not safe_relative(path) or path in seen:
            raise AgentError("transfer", f"refused to write {path!r}: not a plain relative path, or listed twice")
        if not isinstance(size, int) or size < 0 or not _SHA256.fullmatch(sha256):
            raise AgentError("transfer", f"refused to write {path!r}: {size!r} bytes of digest {sha256!r}")
        seen.add(path)
        entries.append((path, size, sha256, int(mode)))
    return entries


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """What the disk says, for the client."""
    try:
        yield
    except (BrokenPipeError, ConnectionError):
        raise
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        raise AgentError("transfer", f"could not write{where} on the unit: {error.strerror or error}") from error


class Delivery:
    """Files on their way into `folder`. `there` are the fingerprints of those that have arrived, by index."""

    def __init__(self, call: Call, folder: str, incoming: str, entries: list[Entry]) -> None:
        self.call = call
        self.folder = folder
        self.incoming = incoming
        self.entries = entries
        self.there: Dict[int, list[int]] = {}
        self.received_bytes = 0
        self.reused = 0
        self._made: set[str] = set()

    def reply(self) -> dict[str, Any]:
        return {"files": len(self.entries), "bytes": self.received_bytes, "reused": self.reused}

    def pass_over(self, inline: bool) -> None:
        """Need nothing, whatever the client sends."""
        self.reused = len(self.entries)
        if not inline:
            self.call.send_items(wire.NEED, [])
            return
        for _ in self.entries:
            while self.call.frame()[0] != wire.FILE_END:
                pass

    def receive(self, inline: bool, there: dict[int, list[int]], find: Any = None) -> None:
        """Get what is not `there`. `find(digests)` says where on this unit it may be. Raises AgentError, OSError."""
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        if inline:
            for index, entry in enumerate(self.entries):
                self._receive_small(index, entry)
            return
        self.there = there
        missing: dict[str, list[int]] = {}
        for index, (_, size, sha256, _) in enumerate(self.entries):
            if index in there:
                continue
            if size == 0:
                self._write(index, b"")
            else:
                missing.setdefault(sha256, []).append(index)
        if missing and find is not None:
            self._copy_found(missing, find)
        self.reused = len(self.there)
        resumed = {indices[0]: self._partial(indices[0]) for indices in missing.values()}
        needed = [[index, have] for index, (_, have) in resumed.items() if have >= 0]
        self.call.send_items(wire.NEED, needed)
        for index, offset in needed:
            entry = self.entries[index]
            if entry[1] < RESUMED_FROM:
                self._receive_small(index, entry)
            else:
                self._receive_large(index, entry, resumed[index][0], offset)
        for indices in missing.values():
            source = os.path.join(self.folder, self.entries[indices[0]][0])
            for index in indices[1:]:
                if not self._copy(index, source, None):
                    raise AgentError("transfer", f"{self.entries[index][0]} changed while it was written on the unit")
        shutil.rmtree(self.incoming, ignore_errors=True)

    def _copy_found(self, missing: dict[str, list[int]], find: Any) -> None:
        for sha256, path, trusted in find(missing.keys()):
            indices = missing.get(sha256, [])
            while indices and self._copy(indices[-1], path, trusted):
                indices.pop()
            if not indices:
                missing.pop(sha256, None)
            self.call.alive()

    def _copy(self, index: int, source: str, trusted: Any) -> bool:
        entry = self.entries[index]
        path = self._place(entry[0])
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        done = False
        try:
            done = reuse.copy(source, descriptor, entry, trusted, self.call.alive)
            if done:
                os.fchmod(descriptor, reuse.file_mode(entry[3]))
                self.there[index] = fingerprint(os.fstat(descriptor))
        finally:
            os.close(descriptor)
            if not done:
                os.unlink(path)
        return done

    def _partial(self, index: int) -> tuple[Any, int]:
        """What an earlier try has left of a file: its digest so far and its bytes; -1 where it was all there."""
        _, size, sha256, _ = self.entries[index]
        path = os.path.join(self.incoming, sha256)
        if size < RESUMED_FROM or not os.path.lexists(path):
            return hashlib.sha256(), 0
        have = os.lstat(path).st_size
        digest = reuse.digest_of(path, self.call.alive)
        if have < size:
            return digest, have
        if have == size and digest.hexdigest() == sha256:
            self._name(index, path)
            return digest, -1
        os.unlink(path)
        return hashlib.sha256(), 0

    def _receive_small(self, index: int, entry: Entry) -> None:
        content = b"".join(self._contents(entry, entry[1]))
        if hashlib.sha256(content).hexdigest() != entry[2]:
            raise _changed(entry)
        self._write(index, content)

    def _receive_large(self, index: int, entry: Entry, digest: Any, offset: int) -> None:
        os.makedirs(self.incoming, mode=0o700, exist_ok=True)
        path = os.path.join(self.incoming, entry[2])
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_APPEND, 0o600)
        try:
            for payload in self._contents(entry, entry[1] - offset):
                digest.update(payload)
                reuse.write_all(descriptor, payload)
        finally:
            os.close(descriptor)
        if digest.hexdigest() != entry[2]:
            os.unlink(path)
            raise _changed(entry)
        self._name(index, path)

    def _contents(self, entry: Entry, remaining: int) -> Iterator[bytes]:
        """The DATA frames of a file, exactly as many bytes as are due."""
        while True:
            kind, payload = self.call.frame()
            if kind == wire.FILE_END:
                break
            if kind != wire.DATA or len(payload) > remaining:
                raise _changed(entry)
            remaining -= len(payload)
            self.received_bytes += len(payload)
            yield payload
        if remaining:
            raise _changed(entry)

    def _write(self, index: int, content: bytes) -> None:
        path, _, _, mode = self.entries[index]
        place = self._place(path)
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            reuse.write_all(descriptor, content)
            if mode & 0o777 != 0o600:
                os.fchmod(descriptor, reuse.file_mode(mode))
            self.there[index] = fingerprint(os.fstat(descriptor))
        except OSError:
            os.unlink(place)
            raise
        finally:
            os.close(descriptor)

    def _name(self, index: int, path: str) -> None:
        """Give a file that is whole its name."""
        name, _, _, mode = self.entries[index]
        os.chmod(path, reuse.file_mode(mode))
        place = self._place(name)
        os.rename(path, place)
        self.there[index] = fingerprint(os.lstat(place))  # after the rename, which changes the ctime

    def _place(self, name: str) -> str:
        """The path of a file that is not there yet: what has its name is removed, its folders are made."""
        path = os.path.join(self.folder, name)
        parent = os.path.dirname(path)
        if parent not in self._made:
            os.makedirs(parent, mode=0o700, exist_ok=True)
            self._made.add(parent)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return path


def _changed(entry: Entry) -> AgentError:
    return AgentError("transfer", f"{entry[0]} changed while it was shipped")
