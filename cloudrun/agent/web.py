"""What uploads and downloads share: connections to a presigned address, patience, and S3's refusals in words."""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
from typing import Any
from urllib.parse import urlsplit

from cloudrun.agent.errors import AgentError

TIMEOUT_S = 60.0  # how long the other side may be silent
TRIES = 9  # in a row without a byte of progress
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
# what is worth another try: a connection that broke, or an answer that is not in HTTP's form
BROKEN = (OSError, http.client.HTTPException)
AGAIN = frozenset({408, 429, 500, 502, 503, 504})
AGAIN_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError"})  # S3 says the first with status 400
_ERROR_MAX_BYTES = 64 * 1024
_EXPIRED = ("ExpiredToken", "RequestExpired", "Request has expired", "Policy expired", "token has expired")


class Again(Exception):
    """This try failed and the next may not."""


class Site:
    """One host, over at most one connection at a time; not for several threads."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AgentError("transfer", f"{parts.scheme!r} is not an address of HTTP")
        self._https = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._connection: http.client.HTTPConnection | None = None

    @property
    def connection(self) -> http.client.HTTPConnection:
        if self._connection is None:
            if self._https:
                self._connection = http.client.HTTPSConnection(
                    self._host, self._port, timeout=TIMEOUT_S, context=ssl.create_default_context()
                )
            else:
                self._connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        return self._connection

    def close(self) -> None:
        """Forget the connection: what was half sent or half read on it is of no use to anybody."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def target(url: str) -> str:
    """The path and query of an address, as a request's first line has them."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def pause_s(failed: int, first_s: float) -> float:
    """How long to wait after so many failures in a row."""
    return min(first_s * 2.0 ** (failed - 1), LONGEST_PAUSE_S)


def refusal(answer: http.client.HTTPResponse) -> tuple[str, str]:
    """S3's own code and words in an answer that is none of success; empty where there are none."""
    text = ""
    with contextlib.suppress(*BROKEN):
        text = answer.read(_ERROR_MAX_BYTES).decode("utf-8", "replace")
    found = [re.search(f"<{name}>([^<]*)</{name}>", text) for name in ("Code", "Message")]
    code, words = (match.group(1).strip() if match else "" for match in found)
    return code, words


def refused(what: str, answer: http.client.HTTPResponse) -> Exception:
    """The exception for an answer that is not a success: `Again`, or an AgentError that says why."""
    code, words = refusal(answer)
    said = ": ".join(part for part in (code, words) if part) or answer.reason
    if answer.status in AGAIN or code in AGAIN_CODES:
        return Again(f"{answer.status} {said}")
    if any(mark in f"{code} {words}" for mark in _EXPIRED):
        return AgentError("transfer", f"{what}: the leave for it has expired ({said})")
    return AgentError("transfer", f"{what}: refused with {answer.status} ({said})")


def why(error: Any) -> str:
    return str(error) or type(error).__name__
