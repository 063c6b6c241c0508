"""The package mirror, between real installers and a real index that is not the public one."""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uv
from werkzeug.serving import make_server

from cloudrun.sandbox import mirror as mirror_module
from cloudrun.sandbox.mirror import Mirror
from tests.waiting import until


def wheel(name: str, version: str) -> bytes:
    """A real, tiny wheel."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return packed.getvalue()


WHEEL = "tiny-1.0-py3-none-any.whl"


class Index:
    """A package index with one file, a password, and a count of what it was asked."""

    def __init__(self) -> None:
        self.content = wheel("tiny", "1.0")
        self.digest = hashlib.sha256(self.content).hexdigest()
        self.asked: list[str] = []
        self.page = ""
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                status, body = index.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (http.server's name)
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()
        self.url = f"http://user:pass%2Fword@127.0.0.1:{self.server.server_port}/simple"

    def answer(self, path: str, authorization: str) -> tuple[int, bytes]:
        if authorization != "Basic " + base64.b64encode(b"user:pass/word").decode():
            return 401, b""
        if path in ("/simple/tiny/", "/simple/small/", "/simple/short/"):
            return 200, (self.page or f'<a href="../../files/{WHEEL}#sha256={self.digest}">{WHEEL}</a>').encode()
        return (200, self.content) if path == f"/files/{WHEEL}" else (404, b"")

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    index = Index()
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.delenv("UV_INDEX_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    yield index
    index.close()


class Served:
    """A mirror behind a real server."""

    def __init__(self, cache: Path) -> None:
        self.server = make_server("127.0.0.1", 0, self.answer, threaded=True)
        self.mirror = Mirror(cache, f"http://127.0.0.1:{self.server.port}", Path(uv.find_uv_bin()))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def answer(self, environ: Any, start_response: Any) -> Any:
        return self.mirror(environ, start_response)

    def get(self, path: str) -> bytes:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.mirror.index_url.removesuffix("simple/") + path, timeout=60) as answer:
            return bytes(answer.read())

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def served(index: Index, cache: Path) -> Iterator[Served]:
    served = Served(cache)
    yield served
    served.close()


def test_uv_installs_through_the_mirror_and_the_index_is_asked_once(
    served: Served, index: Index, tmp_path: Path
) -> None:
    for target in ("first", "second"):
        command = [uv.find_uv_bin(), "pip", "install", "--no-config", "--no-cache", "--quiet", "--target", target]
        subprocess.run(
            [*command, "--python", sys.executable, "--default-index", served.mirror.index_url, "tiny"],
            check=True,
            timeout=60,
            env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        )
        assert (tmp_path / target / "tiny.py").read_text() == "version = '1.0'\n"
    assert sorted(index.asked) == [f"/files/{WHEEL}", "/simple/tiny/"]


def test_without_the_index_what_was_seen_is_still_served(served: Served, index: Index, cache: Path) -> None:
    served.get("simple/tiny/")
    served.get(f"files/tiny/{WHEEL}")
    index.close()
    later = Served(cache)
    try:
        assert WHEEL.encode() in later.get("simple/tiny/")
        assert later.get(f"files/tiny/{WHEEL}") == index.content
    finally:
        later.close()


def test_an_old_page_is_served_only_where_the_index_is_away(
    served: Served, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "PAGE_FRESH_S", 0.0)
    served.get("simple/tiny/")
    index.page = '<a href="../../files/tiny-2.0-py3-none-any.whl">x</a>'
    assert b"tiny-2.0" in served.get("simple/tiny/")
    index.close()
    assert b"tiny-2.0" in served.get("simple/tiny/")


def test_pages_beyond_those_kept_in_memory_come_from_disk(
    served: Served, index: Index, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "PAGES_IN_MEMORY", 1)
    for _ in range(2):
        for project in ("tiny", "small", "short"):
            assert WHEEL.encode() in served.get(f"simple/{project}/")
            assert len(served.mirror._pages) == 1
    assert sorted(index.asked) == ["/simple/short/", "/simple/small/", "/simple/tiny/"]


@pytest.mark.parametrize("padding", [0, 1_000_000])
def test_a_file_that_is_not_what_the_index_said_never_arrives_whole(
    served: Served, index: Index, cache: Path, padding: int
) -> None:
    served.get("simple/tiny/")
    index.content = index.content[:-1] + b"!"
    index.content += b"?" * padding
    with pytest.raises((urllib.error.HTTPError, http.client.IncompleteRead)) as error:
        served.get(f"files/tiny/{WHEEL}")
    if isinstance(error.value, urllib.error.HTTPError):
        error.value.close()
    until(lambda: not list((cache / "files").iterdir()))  # it goes once the client has been told


def test_the_cache_drops_what_was_not_used_for_longest(
    served: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = cache / "files" / ("0" * 64)
    old.write_bytes(b"x" * 1000)
    monkeypatch.setattr(mirror_module, "CACHE_MAX_BYTES", 1000)
    served.get(f"files/tiny/{WHEEL}")
    until(lambda: not old.exists())  # it goes once the file is handed on
    assert served.get(f"files/tiny/{WHEEL}")


@pytest.mark.parametrize(
    "path", ["simple/absent/", "simple/../../etc/", "simple/%2e%2e/", "files/tiny/absent.whl", "files/tiny/../x", ""]
)
def test_what_is_not_there_is_not_found(served: Served, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        served.get(path)
    with error.value as refusal:
        assert refusal.code == 404


def test_without_the_secret_nothing_is_found(served: Served) -> None:
    url = f"http://127.0.0.1:{served.server.port}/_packages/guessed/simple/tiny/"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=60)
    with error.value as refusal:
        assert refusal.code == 404
