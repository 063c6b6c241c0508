"""Data that a unit fetches itself, from presigned addresses: several files at a time, each gone on with after a cut."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any, Callable

from cloudrun.agent import web
from cloudrun.agent.errors import AgentError
from cloudrun.core.rundir import safe_relative

CHUNK = 1024 * 1024
THREADS = 4
TELL_S = 0.2  # how often to tell how far it is
PARTIAL = ".cloudrun-partial"  # below the folder: what is on its way; removed when all is there
OnProgress = Callable[[int, int], None]
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+)")


def fetch(
    folder: Path, files: list[dict[str, Any]], on_progress: OnProgress, pause_s: float = web.FIRST_PAUSE_S
) -> None:
    """Fetch the files (`core.records.RemoteFile`: path, url, size, etag) into `folder`, which must be for them alone.

    `on_progress` is called in this thread with bytes done and in all, several times a second; what it raises ends the
    fetch. What is there from an earlier try is kept. Raises AgentError for a path that leads elsewhere, an object that
    is not what was promised, an address that has expired, a disk that is full, a site that cannot be reached.
    """
    names = [file["path"] for file in files]
    for name in names:
        if not safe_relative(name) or name.split("/")[0] == PARTIAL:
            raise AgentError("transfer", f"refused to write {name!r}: not a plain relative path")
    if len(set(names)) < len(names):
        raise AgentError("transfer", "refused: two objects for one file")
    os.makedirs(folder / PARTIAL, mode=0o700, exist_ok=True)
    _Fetch(str(folder), files, pause_s).run(on_progress)
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


class _Fetch:
    def __init__(self, folder: str, files: list[dict[str, Any]], pause_s: float) -> None:
        self._folder = folder
        self._total = sum(file["size"] for file in files)
        self._rest = iter(sorted(files, key=lambda file: -int(file["size"])))
        self._pause_s = pause_s
        self._done = 0
        self._failures: list[BaseException] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def run(self, on_progress: OnProgress) -> None:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(TELL_S)
                    on_progress(self._done, self._total)
        finally:
            self._stop.set()
        if self._failures:
            raise self._failures[0]
        on_progress(self._done, self._total)

    def _work(self) -> None:
        try:
            with contextlib.closing(_Sites()) as sites:
                while not self._stop.is_set():
                    with self._lock:
                        file = next(self._rest, None)
                    if file is None:
                        return
                    self._fetch(sites, file)
        except BaseException as error:  # noqa: BLE001  # told to whoever waits for the threads
            with self._lock:
                self._failures.append(error)
            self._stop.set()

    def _advance(self, count: int) -> None:
        with self._lock:
            self._done += count

    def _fetch(self, sites: _Sites, file: dict[str, Any]) -> None:
        """One file, until it is in its place or there is no hope."""
        name = file["path"]
        place = os.path.join(self._folder, name)
        try:
            if os.path.isfile(place) and os.stat(place).st_size == file["size"]:
                self._advance(file["size"])  # only what was whole is ever there
                return
            partial = os.path.join(self._folder, PARTIAL, _partial_name(file))
            self._bring(sites, file, partial)
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
            os.replace(partial, place)
        except OSError as error:
            raise AgentError("transfer", f"could not write {name} on the unit: {error.strerror or error}") from error

    def _bring(self, sites: _Sites, file: dict[str, Any], partial: str) -> None:
        """Fill the partial file, from where it is."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(partial, flags, 0o600), "r+b", buffering=0) as stream:
            self._own(stream)
            best = have = stream.seek(0, os.SEEK_END)
            self._advance(have)
            failed = 0
            while have != file["size"]:
                try:
                    self._read(sites.at(file["url"]), file, stream, have)
                    failed = 0
                except web.Again as again:
                    sites.at(file["url"]).close()
                    failed += 1
                    if failed == web.TRIES:
                        raise AgentError("transfer", f"could not fetch {file['path']}: {again}") from again
                have = stream.seek(0, os.SEEK_END)
                if have > best:  # it goes on
                    best = have
                    failed = min(failed, 1)
                if failed and self._stop.wait(web.pause_s(failed, self._pause_s)):
                    raise AgentError("transfer", "the fetch was ended")
            os.fsync(stream.fileno())

    def _own(self, stream: Any) -> None:
        """Wait until no earlier fetch, whose client has gone, writes to this file any more."""
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if self._stop.wait(TELL_S):
                    raise AgentError("transfer", "the fetch was ended") from None

    def _read(self, site: web.Site, file: dict[str, Any], stream: Any, offset: int) -> None:
        """Append what the object has from `offset` on. Raises `web.Again` where it broke off, OSError for the disk."""
        # closed whatever happens: one that ends its connection holds the socket alone
        with contextlib.closing(_ask(site, file["url"], offset)) as answer:
            self._take(answer, file, stream, offset)
            if answer.will_close:
                site.close()

    def _take(self, answer: http.client.HTTPResponse, file: dict[str, Any], stream: Any, offset: int) -> None:
        if answer.status == 416:
            self._restart(stream, offset)
            raise web.Again("the partial file does not fit the object")
        if answer.status not in (200, 206):
            raise web.refused(f"could not fetch {file['path']}", answer)
        start, size = _extent(answer)
        etag = (answer.getheader("ETag") or "").strip('"')
        if etag != file["etag"] or size != file["size"]:
            raise AgentError("transfer", f"{file['path']} was replaced in its bucket meanwhile: {etag}, {size} bytes")
        if start != offset:
            self._restart(stream, offset)
            if start:
                raise web.Again(f"bytes from {offset} on were asked for, and those from {start} on came")
        left = size - start
        while left:
            if self._stop.is_set():
                raise web.Again("the fetch was ended")
            try:
                piece = answer.read1(min(CHUNK, left))
            except web.BROKEN as error:
                raise web.Again(web.why(error)) from error
            if not piece:
                raise web.Again(f"the connection was closed {left} bytes before the end")
            _write_all(stream, piece)
            left -= len(piece)
            self._advance(len(piece))

    def _restart(self, stream: Any, offset: int) -> None:
        stream.truncate(0)
        stream.seek(0)
        self._advance(-offset)


def _ask(site: web.Site, url: str, offset: int) -> http.client.HTTPResponse:
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        site.connection.request("GET", web.target(url), headers=headers)
        return site.connection.getresponse()
    except web.BROKEN as error:
        raise web.Again(web.why(error)) from error


def _extent(answer: http.client.HTTPResponse) -> tuple[int, int]:
    """Where the answer begins in the object, and how long the whole object is; -1 where it does not say."""
    if answer.status == 206:
        match = _RANGE.fullmatch(answer.getheader("Content-Range") or "")
        return (int(match.group(1)), int(match.group(2))) if match else (0, -1)
    return 0, -1 if answer.length is None else answer.length


def _write_all(stream: Any, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[stream.write(view) :]


def _partial_name(file: dict[str, Any]) -> str:
    return hashlib.sha256(repr((file["path"], file["etag"], file["size"])).encode("utf-8")).hexdigest()


class _Sites:
    """One thread's connections, by host."""

    def __init__(self) -> None:
        self._sites: dict[str, web.Site] = {}

    def at(self, url: str) -> web.Site:
        host = url.split("/", 3)[2] if url.count("/") > 2 else url
        if host not in self._sites:
            self._sites[host] = web.Site(url)
        return self._sites[host]

    def close(self) -> None:
        for site in self._sites.values():
            site.close()
