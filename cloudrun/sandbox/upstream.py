"""The package index that this computer is set up to use: found by asking uv, read as PEP 503 HTML or PEP 691 JSON.

No index is named here, and the user's own configuration decides; credentials in an index's URL go to that host alone.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import ssl
import subprocess
import urllib.error
import urllib.request
from html.parser import HTMLParser
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit

CONNECT_TIMEOUT_S = 20.0
PAGE_MAX_BYTES = 64 * 1024**2
JSON_TYPE = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{JSON_TYPE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

_LOG = logging.getLogger(__name__)

File = dict[str, Any]  # one of PEP 691's `files`


class Unreachable(Exception):
    """The index did not answer, or not with anything that can be used."""


class Upstream:
    """The configured indexes, in the order uv looks into them: extra ones first, then the default one."""

    def __init__(self, uv: Path | None) -> None:
        self.indexes = _configured_indexes(uv) if uv else ()
        https = urllib.request.HTTPSHandler(context=_tls())
        self._opener = urllib.request.build_opener(https)

    def files(self, project: str) -> list[File] | None:
        """A project's files with absolute URLs, or None where no index knows it. Raises Unreachable."""
        for index in self.indexes:
            page = f"{index.rstrip('/')}/{project}/"
            try:
                with self.open(page, accept=_ACCEPT) as answer:
                    body = answer.read(PAGE_MAX_BYTES)
                    parse = _from_json if "json" in answer.headers.get_content_type() else _from_html
                    return parse(body, answer.url or page)
            except urllib.error.HTTPError as error:
                if error.code not in (404, 410):
                    raise Unreachable(f"the package index answered {error.code}") from error
            except (OSError, ValueError) as error:
                raise Unreachable(str(error)) from error
        if not self.indexes:
            raise Unreachable("no package index is configured")
        return None

    def open(self, url: str, accept: str = "*/*") -> HTTPResponse:
        """Raises OSError (urllib's errors are ones), or ValueError for what is not http(s)."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise ValueError(f"not an http address: {parts.scheme}:")
        host = parts.hostname + (f":{parts.port}" if parts.port else "")
        request = urllib.request.Request(  # noqa: S310 (the scheme was looked at)
            urlunsplit(parts._replace(netloc=host)), headers={"Accept": accept, "User-Agent": "cloudrun-sandbox"}
        )
        if userinfo := self._userinfo(parts.netloc, host):
            token = base64.b64encode(userinfo.encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        answer: HTTPResponse = self._opener.open(request, timeout=CONNECT_TIMEOUT_S)
        return answer

    def _userinfo(self, netloc: str, host: str) -> str:
        """`user:password` for a host: as in the URL, else as in the URL of the index on that host."""
        for candidate in (netloc, *(urlsplit(index).netloc for index in self.indexes)):
            userinfo, at, rest = candidate.rpartition("@")
            if at and rest == host:
                return unquote(userinfo)
        return ""


def _configured_indexes(uv: Path) -> tuple[str, ...]:
    """What uv would use, from its own files and variables: it prints its indexes when it compiles nothing at all."""
    command = [str(uv), "pip", "compile", "-", "--emit-index-url", "--no-header", "--quiet", "--offline"]
    try:
        told = subprocess.run(command, input="", capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        _LOG.error("uv does not say which package index is configured: %s", error)
        return ()
    extra = re.findall(r"^--extra-index-url (\S+)", told, re.MULTILINE)
    default = re.findall(r"^--index-url (\S+)", told, re.MULTILINE)
    return tuple(url for url in (*extra, *default) if url.startswith(("http://", "https://")))


def _tls() -> ssl.SSLContext:
    """The system's roots and, for a Python that finds none, the ones that come with it as a package."""
    context = ssl.create_default_context()
    if not context.get_ca_certs():
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _from_json(body: bytes, page: str) -> list[File]:
    return [{**file, "url": urljoin(page, file["url"])} for file in json.loads(body)["files"]]


def _from_html(body: bytes, page: str) -> list[File]:
    links = _Links()
    links.feed(body.decode("utf-8", "replace"))
    files = []
    for attributes in links.found:
        url, fragment = urldefrag(urljoin(page, attributes["href"]))
        file: File = {"filename": unquote(urlsplit(url).path.rpartition("/")[2]), "url": url}
        file["hashes"] = dict([fragment.split("=", 1)]) if "=" in fragment else {}
        if "data-requires-python" in attributes:
            file["requires-python"] = attributes["data-requires-python"]
        if metadata := attributes.get("data-core-metadata") or attributes.get("data-dist-info-metadata"):
            file["core-metadata"] = dict([metadata.split("=", 1)]) if "=" in metadata else True
        if "data-yanked" in attributes:
            file["yanked"] = attributes["data-yanked"] or True
        files.append(file)
    return files


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in attributes:
            self.found.append(attributes)
