"""A finished run goes into the bucket: each content once, then its manifest, by a presigned POST and no credentials.

<prefix>data/<sha256>        the content of an output or a log; data/<sha256>.<n> where it is too long for one object
<prefix>manifest.json        last of all: where it is, everything that it names is there too
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import threading
import time
from typing import IO, Any, Callable, Iterator

from cloudrun.agent import manifest as manifests
from cloudrun.agent import web
from cloudrun.agent.errors import AgentError
from cloudrun.core.rundir import LIST_MAX_BYTES, SCHEMA_VERSION, RunDir, never_waiting, read_object, write_json

PART_MAX_BYTES = 4 * 1024**3  # of one object; S3 takes 5 GiB in a POST
CHUNK = 1024 * 1024
THREADS = 4  # small files cost a round trip each
NOTES = "uploaded.txt"  # in the run directory: what is up, one name a line
_NAME = re.compile(r"[0-9a-f]{64}(\.[0-9]+)?\n")


class _Changed(Exception):
    """A file is not what the manifest says any more."""


def upload(run: RunDir, upload: dict[str, Any], status: dict[str, Any], pause_s: float = web.FIRST_PAUSE_S) -> None:
    """Put all of a finished run into its store; `upload` has the fields of `core.records.Upload`. Asked again, it goes
    on with what is missing.

    Raises AgentError where the store refuses, or cannot be reached for some minutes.
    """
    if run.stored.exists():
        return
    manifest = read_object(run.outputs, LIST_MAX_BYTES) or _made_now(run)
    contents = _contents(run, manifest)
    limit = max(1, min(upload["max_bytes"], PART_MAX_BYTES))
    lost = _Sender(run, upload, limit, pause_s).send_all(contents)
    manifest = _without(manifest, lost)
    kept = {entry["sha256"]: entry["size"] for entry in [*manifest["entries"], *manifest["logs"]]}
    document = {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "outputs": manifest,
        "parts": {digest: _part_count(size, limit) for digest, size in kept.items() if size > limit},
        "part_bytes": limit,
    }
    text = json.dumps(document, separators=(",", ":")).encode("ascii")
    if len(text) > upload["max_bytes"]:
        raise AgentError("transfer", f"the manifest alone has {len(text)} bytes, {upload['max_bytes']} are allowed")
    with contextlib.closing(_Poster(upload, pause_s)) as poster:
        poster.post("manifest.json", len(text), lambda: iter([text]))
    stored = {"schema_version": SCHEMA_VERSION, "stored_at": time.time(), "url": upload["url"]}
    write_json(run.stored, dict(stored, prefix=upload["prefix"], left_out=len(lost)))


def _made_now(run: RunDir) -> dict[str, Any]:
    """The manifest where the job's supervisor could not make it, without what only that knew."""
    spec = read_object(run.spec) or {}
    return manifests.outputs(run, spec.get("output_max_bytes", 0), spec.get("output_max_files", 0), since_ns=0)


def _contents(run: RunDir, manifest: dict[str, Any]) -> dict[str, tuple[int, list[str]]]:
    """Size and places of every content, by its digest."""
    contents: dict[str, tuple[int, list[str]]] = {}
    for folder, entries in ((run.work, manifest["entries"]), (run.root, manifest["logs"])):
        for entry in entries:
            places = contents.setdefault(entry["sha256"], (entry["size"], []))[1]
            places.append(os.path.join(folder, entry["path"]))
    return contents


def _without(manifest: dict[str, Any], lost: dict[str, str]) -> dict[str, Any]:
    """The manifest less the contents that are lost, which it names with their reasons instead."""
    if not lost:
        return manifest
    left_out = [
        [entry["path"], lost[entry["sha256"]]]
        for entry in [*manifest["entries"], *manifest["logs"]]
        if entry["sha256"] in lost
    ]
    kept = {area: [entry for entry in manifest[area] if entry["sha256"] not in lost] for area in ("entries", "logs")}
    return dict(manifest, left_out=[*manifest["left_out"], *left_out], **kept)


def _part_count(size: int, limit: int) -> int:
    return -(-size // limit)


class _Notes:
    """What is up already, for the next try after a restart. Without them everything is only sent again."""

    def __init__(self, run: RunDir, upload: dict[str, Any], limit: int) -> None:
        path = str(run.root / NOTES)
        heading = json.dumps([upload["url"], upload["prefix"], limit]) + "\n"
        self.names = set(_noted(path, heading))
        self._stream: IO[str] | None = None
        self._lock = threading.Lock()
        with contextlib.suppress(OSError):  # a full disk keeps nobody from uploading
            if os.path.lexists(path):
                os.unlink(path)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._stream = os.fdopen(descriptor, "w", encoding="ascii", buffering=1)
            self._stream.writelines([heading, *(name + "\n" for name in sorted(self.names))])

    def add(self, name: str) -> None:
        with self._lock:
            self.names.add(name)
            with contextlib.suppress(OSError):
                if self._stream is not None:
                    self._stream.write(name + "\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._stream is not None:
                self._stream.close()


def _noted(path: str, heading: str) -> Iterator[str]:
    """What an earlier try has put under the same prefix. The job may have put anything else in the file's place."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(path, encoding="ascii", opener=never_waiting) as stream:
        if stream.readline() == heading:
            yield from (line[:-1] for line in stream if _NAME.fullmatch(line))


class _Sender:
    """Sends contents with several threads."""

    def __init__(self, run: RunDir, upload: dict[str, Any], limit: int, pause_s: float) -> None:
        self._run = run
        self._upload = upload
        self._limit = limit
        self._pause_s = pause_s
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._lost: dict[str, str] = {}
        self._failures: list[BaseException] = []

    def send_all(self, contents: dict[str, tuple[int, list[str]]]) -> dict[str, str]:
        """Returns why, by digest, for contents that no file has any more."""
        notes = _Notes(self._run, self._upload, self._limit)
        # the long ones first: at the end nobody shall wait for one of them
        rest = iter(sorted(contents.items(), key=lambda item: -item[1][0]))
        threads = [
            threading.Thread(target=self._work, args=(rest, notes), daemon=True)
            for _ in range(min(THREADS, len(contents)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        notes.close()
        if self._failures:
            raise self._failures[0]
        return self._lost

    def _work(self, rest: Iterator[tuple[str, tuple[int, list[str]]]], notes: _Notes) -> None:
        try:
            with contextlib.closing(_Poster(self._upload, self._pause_s, self._stop)) as poster:
                while not self._stop.is_set():
                    with self._lock:
                        item = next(rest, None)
                    if item is None:
                        return
                    digest, (size, places) = item
                    reason = self._send(poster, notes, digest, size, places)
                    if reason:
                        with self._lock:
                            self._lost[digest] = reason
        except BaseException as error:  # noqa: BLE001  # told to whoever waits for the threads
            with self._lock:
                self._failures.append(error)
            self._stop.set()

    def _send(self, poster: _Poster, notes: _Notes, digest: str, size: int, places: list[str]) -> str:
        """Put one content up from the first place that still has it. Returns why not, or ""."""
        count = _part_count(size, self._limit) if size > self._limit else 1
        names = [digest] if count == 1 else [f"{digest}.{number}" for number in range(count)]
        if all(name in notes.names for name in names):
            return ""
        reason = ""
        for place in places:
            try:
                with _Source(place, size, digest) as source:
                    for number, name in enumerate(names):
                        length = min(self._limit, size - number * self._limit)
                        if name in notes.names:
                            source.skip(length)
                            continue
                        poster.post(f"data/{name}", length, source.part(number * self._limit, length))
                        notes.add(name)
                return ""
            except _Changed as changed:
                reason = str(changed)
        return reason


class _Source:
    """A file that has to be what the manifest says. Its last piece is held back until that is certain, so that an
    object is whole only where its content is right; the digest is made while it is read, once."""

    def __init__(self, path: str, size: int, digest: str) -> None:
        try:
            self._stream = open(path, "rb", buffering=0, opener=never_waiting)  # noqa: SIM115  # `__exit__` closes it
        except OSError as error:
            raise _Changed(error.strerror or "unreadable") from error
        self._size = size
        self._digest = digest
        self._sums = hashlib.sha256()
        self._summed = 0  # how far the digest has come
        self._before = (0, self._sums.copy())  # and what it was where this part begins, which may be sent again

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def part(self, start: int, length: int) -> Callable[[], Iterator[bytes]]:
        return lambda: self._pieces(start, length)

    def skip(self, length: int) -> None:
        for _ in self._pieces(self._summed, length):
            pass

    def _pieces(self, start: int, length: int) -> Iterator[bytes]:
        if start != self._summed:
            self._summed, sums = self._before
            self._sums = sums.copy()
        self._before = (start, self._sums.copy())
        if not length:
            self._check()
        end = start + length
        while self._summed < end:
            try:
                self._stream.seek(self._summed)
                piece = self._stream.read(min(CHUNK, end - self._summed))
            except OSError as error:
                raise _Changed(error.strerror or "unreadable") from error
            if not piece:
                raise _Changed("it was cut short after the job had ended")
            self._sums.update(piece)
            self._summed += len(piece)
            self._check()
            yield piece

    def _check(self) -> None:
        if self._summed == self._size and self._sums.hexdigest() != self._digest:
            raise _Changed("it was changed after the job had ended")


class _Poster:
    """Posts objects below the prefix over one connection, each until it is there or refused."""

    def __init__(self, upload: dict[str, Any], pause_s: float, stop: threading.Event | None = None) -> None:
        self._upload = upload
        self._target = web.target(upload["url"])
        self._site = web.Site(upload["url"])
        self._pause_s = pause_s
        self._stop = stop or threading.Event()

    def close(self) -> None:
        self._site.close()

    def post(self, name: str, length: int, pieces: Callable[[], Iterator[bytes]]) -> None:
        """Put `length` bytes under `<prefix><name>`. Raises AgentError, and whatever `pieces` raises."""
        for failed in range(1, web.TRIES + 1):
            try:
                self._try(name, length, pieces())
                return
            except (web.Again, *web.BROKEN) as error:
                self._site.close()
                if failed == web.TRIES or self._stop.wait(web.pause_s(failed, self._pause_s)):
                    raise AgentError("transfer", f"could not put {name} into the bucket: {web.why(error)}") from error
            except BaseException:
                self._site.close()
                raise

    def _try(self, name: str, length: int, pieces: Iterator[bytes]) -> None:
        boundary = secrets.token_hex(16)
        fields = {field: value for field, value in self._upload["fields"].items() if field != "key"}
        fields["key"] = self._upload["prefix"] + name
        head = "".join(
            f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n{value}\r\n'
            for field, value in fields.items()
        )
        # whatever comes after the file is not read by S3, so it comes last
        head += f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="content"\r\n'
        opening = (head + "Content-Type: application/octet-stream\r\n\r\n").encode("utf-8")
        closing = f"\r\n--{boundary}--\r\n".encode("ascii")
        connection = self._site.connection
        connection.putrequest("POST", self._target, skip_accept_encoding=True)
        connection.putheader("Content-Type", f"multipart/form-data; boundary={boundary}")
        connection.putheader("Content-Length", str(len(opening) + length + len(closing)))
        broken: OSError | None = None
        try:
            connection.endheaders(opening)
            for piece in pieces:
                connection.send(piece)
            connection.send(closing)
        except OSError as error:
            broken = error  # it may have been answered before it was read to its end, and that says more
        try:
            answer = connection.getresponse()
        except web.BROKEN:
            raise broken or web.Again("no answer") from broken
        with contextlib.closing(answer):
            if not 200 <= answer.status < 300:
                raise web.refused(f"could not put {name} into the bucket", answer)
            answer.read()
            if broken is not None:
                raise broken
            if answer.will_close:
                self._site.close()
