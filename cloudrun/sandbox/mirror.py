"""The region's package mirror: a read-only, caching proxy of this computer's own package index, for its units.

Units have no network set-up of their own: they install from here, and what one unit fetched the next one finds on
disk. Paths below a secret prefix: `simple/PROJECT/` (PEP 503, 691) and `files/PROJECT/FILENAME`, with PEP 658's
`.metadata`. A file is kept by its SHA-256, checked before its last byte is handed on. Without a network, pages that
were seen before are served however old they are.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import html
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote, unquote

from cloudrun.sandbox.upstream import JSON_TYPE, File, Unreachable, Upstream
from cloudrun.sandbox.wsgi import Environ, StartResponse, answer, header_fields, request_target

PREFIX = "_packages"
PAGE_FRESH_S = 600.0  # as long as indexes commonly let a page be cached
PAGES_IN_MEMORY = 64  # pages of large projects take megabytes; all of them are on disk too
CACHE_MAX_BYTES = 4 * 1024**3
_CHUNK_BYTES = 256 * 1024
_PROJECT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")  # a normalised name (PEP 503)

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Page:
    fetched_at: float  # seconds since 1970
    files: dict[str, File]  # by filename


class Mirror:
    """A WSGI application for everything below `/_packages/`."""

    def __init__(self, cache: Path, endpoint_url: str, uv: Path | None) -> None:
        self._secret = secrets.token_urlsafe(24)
        self._base = f"/{PREFIX}/{self._secret}"
        self.index_url = f"{endpoint_url}{self._base}/simple/"
        self._endpoint_url = endpoint_url
        self._uv = uv
        self._page_dir = cache / "pages"
        self._file_dir = cache / "files"
        for directory in (self._page_dir, self._file_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._guard = threading.Lock()
        self._upstream: Upstream | None = None
        self._pages: dict[str, _Page] = {}  # the last PAGES_IN_MEMORY, the one used last at the end

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        path, _ = request_target(environ)
        parts = [unquote(part) for part in path.split("/")[2:]]
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return answer(start_response, 405, b"The mirror is read-only")
        if not hmac.compare_digest(parts[0].encode(), self._secret.encode()):
            return answer(start_response, 404, b"Not Found")
        try:
            match parts[1:]:
                case ["simple", project, *rest] if _PROJECT.fullmatch(project) and rest in ([], [""]):
                    return self._send_page(project, environ, start_response)
                case ["files", project, filename] if _PROJECT.fullmatch(project):
                    return self._send_file(project, filename, environ, start_response)
        except Unreachable as error:
            _LOG.warning("%s: %s", "/".join(parts[1:]), error)
            return answer(start_response, 502, f"The package index cannot be reached: {error}".encode())
        return answer(start_response, 404, b"Not Found")

    # -- pages ---------------------------------------------------------------------------------------------------------

    def _send_page(self, project: str, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        page = self._page(project)
        if page is None:
            return answer(start_response, 404, b"Not Found")
        files = [{**file, "url": self._url(project, name)} for name, file in page.files.items()]
        if JSON_TYPE in header_fields(environ).get("accept", ""):
            document = {"meta": {"api-version": "1.0"}, "name": project, "files": files}
            body, content_type = json.dumps(document).encode(), JSON_TYPE
        else:
            body, content_type = _as_html(files), "text/html; charset=utf-8"
        return _send(environ, start_response, body, content_type)

    def _url(self, project: str, filename: str) -> str:
        return f"{self._endpoint_url}{self._base}/files/{project}/{quote(filename)}"

    def _page(self, project: str) -> _Page | None:
        """The page in memory, else on disk, else from the index. One too old is used where the index is away."""
        known = self._remembered(project) or self._load_page(project)
        if known is not None and time.time() - known.fetched_at < PAGE_FRESH_S:
            return known
        try:
            files = self._index().files(project)
        except Unreachable as error:
            if known is None:
                raise
            _LOG.warning("%s: %s; an older page is served", project, error)
            return known
        if files is None:
            return None
        page = _Page(time.time(), {file["filename"]: file for file in files})
        self._remember(project, page)
        with tempfile.NamedTemporaryFile("w", dir=self._page_dir, delete=False, encoding="utf-8") as stream:
            json.dump({"fetched_at": page.fetched_at, "files": files}, stream)
        Path(stream.name).replace(self._page_path(project))
        return page

    def _load_page(self, project: str) -> _Page | None:
        try:
            document = json.loads(self._page_path(project).read_text(encoding="utf-8"))
            page = _Page(document["fetched_at"], {file["filename"]: file for file in document["files"]})
        except (OSError, ValueError, KeyError):
            return None
        self._remember(project, page)
        return page

    def _remembered(self, project: str) -> _Page | None:
        with self._guard:
            page = self._pages.pop(project, None)
            if page is not None:
                self._pages[project] = page
            return page

    def _remember(self, project: str, page: _Page) -> None:
        with self._guard:
            self._pages.pop(project, None)
            self._pages[project] = page
            while len(self._pages) > PAGES_IN_MEMORY:
                del self._pages[next(iter(self._pages))]

    def _page_path(self, project: str) -> Path:
        """Two configurations of indexes have two caches: the same name may mean another project there."""
        indexes = hashlib.sha256("\n".join(self._index().indexes).encode()).hexdigest()[:16]
        return self._page_dir / f"{indexes}-{project}.json"

    def _index(self) -> Upstream:
        with self._guard:
            self._upstream = self._upstream or Upstream(self._uv)
            return self._upstream

    # -- files ---------------------------------------------------------------------------------------------------------

    def _send_file(
        self, project: str, filename: str, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        page = self._page(project)
        file = page.files.get(filename.removesuffix(".metadata")) if page else None
        if file is None:
            return answer(start_response, 404, b"Not Found")
        url, hashes = file["url"], file.get("hashes")
        if filename.endswith(".metadata") and filename != file["filename"]:
            url += ".metadata"
            hashes = file.get("core-metadata") or file.get("data-dist-info-metadata")
            if not hashes:
                return answer(start_response, 404, b"Not Found")
        expected = hashes.get("sha256", "") if isinstance(hashes, dict) else ""
        # what the index gives no digest of is kept by its address, which for an index is as good as a name
        path = self._file_dir / (expected or hashlib.sha256(url.encode()).hexdigest())
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # lately used
            stream = path.open("rb")
            return _send_stream(environ, start_response, stream, path.stat().st_size)
        return self._fetch(url, path, expected, environ, start_response)

    def _fetch(
        self, url: str, path: Path, expected: str, environ: Environ, start_response: StartResponse
    ) -> Iterable[bytes]:
        headers = [("Content-Type", "application/octet-stream")]
        if environ["REQUEST_METHOD"] == "HEAD":  # asked by installers that would rather read a part; there are none
            start_response("200 OK", headers)
            return []
        try:
            source = self._index().open(url)
        except (OSError, ValueError) as error:
            raise Unreachable(str(error)) from error
        length = source.headers.get("Content-Length")
        if length is not None:
            headers.append(("Content-Length", length))
        start_response("200 OK", headers)
        return self._tee(source, path, expected)

    def _tee(self, source: IO[bytes], path: Path, expected: str) -> Iterator[bytes]:
        """Hand the bytes on while they come, and keep them. The last piece is handed on only once the digest agrees:
        before that a client has a file that is too short, and refuses it."""
        digest = hashlib.sha256()
        descriptor, name = tempfile.mkstemp(dir=self._file_dir, prefix="part-")
        temporary = Path(name)
        try:
            with source, os.fdopen(descriptor, "wb") as copy:
                held = b""
                while piece := source.read(_CHUNK_BYTES):
                    digest.update(piece)
                    copy.write(piece)
                    if held:
                        yield held
                    held = piece
            if expected and digest.hexdigest() != expected:
                raise OSError(f"the package index sent something else than it said: {path.name}")
            temporary.replace(path)
            yield held
        finally:
            temporary.unlink(missing_ok=True)
        self._evict()

    def _evict(self) -> None:
        """Remove what was not used for longest until the cache is below its size."""
        with self._guard:
            known = [(file.stat(), file) for file in self._file_dir.iterdir() if not file.name.startswith("part-")]
            excess = sum(status.st_size for status, _ in known) - CACHE_MAX_BYTES
            for status, file in sorted(known, key=lambda entry: entry[0].st_mtime):
                if excess <= 0:
                    break
                file.unlink(missing_ok=True)
                excess -= status.st_size


def _send(environ: Environ, start_response: StartResponse, body: bytes, content_type: str) -> list[bytes]:
    sent = answer(start_response, 200, body, content_type, [("Cache-Control", f"max-age={PAGE_FRESH_S:.0f}")])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else sent


def _send_stream(environ: Environ, start_response: StartResponse, stream: IO[bytes], size: int) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "application/octet-stream"), ("Content-Length", str(size))])
    if environ["REQUEST_METHOD"] == "HEAD":
        stream.close()
        return []
    return _pieces(stream)


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(_CHUNK_BYTES):
            yield piece


def _as_html(files: list[File]) -> bytes:
    lines = ["<!DOCTYPE html>", "<html><body>"]
    for file in files:
        sha256 = file.get("hashes", {}).get("sha256")
        attributes = {"href": file["url"] + (f"#sha256={sha256}" if sha256 else "")}
        if requires := file.get("requires-python"):
            attributes["data-requires-python"] = requires
        metadata = file.get("core-metadata")
        if isinstance(metadata, dict) and metadata.get("sha256"):
            attributes["data-core-metadata"] = f"sha256={metadata['sha256']}"
        if yanked := file.get("yanked"):
            attributes["data-yanked"] = yanked if isinstance(yanked, str) else ""
        marked = " ".join(f'{name}="{html.escape(value)}"' for name, value in attributes.items())
        lines.append(f"<a {marked}>{html.escape(file['filename'])}</a><br>")
    return "\n".join([*lines, "</body></html>"]).encode()
