"""Who may call the region: programs of this computer that hold its secret. Never a web page, never another user.

A page in the user's browser can send requests to localhost; it cannot sign them, cannot leave out its Origin or
Sec-Fetch headers, and behind a rebound name cannot present the endpoint's own Host. Any one of these is enough to be
refused. Machines' metadata and packages are served under paths that are secrets themselves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any

from cloudrun.sandbox import sigv4
from cloudrun.sandbox.postpolicy import check_post
from cloudrun.sandbox.sigv4 import Claim, Credentials, Message, Refused
from cloudrun.sandbox.wsgi import Application, Environ, StartResponse, aws_error, header_fields, request_target

BODY_MAX_BYTES = 5 * 1024**3  # what S3 takes in one PUT
_SPOOL_BYTES = 8 * 1024**2  # beyond this a body waits on disk, not in memory
_BROWSER_HEADERS = ("origin", "referer", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "sec-fetch-user")
# What EC2, S3, SSM and STS themselves call a refusal, by its kind. Anything else is ACCESS_DENIED.
_ACCESS_DENIED = {"ec2": "AuthFailure", "s3": "AccessDenied", "ssm": "AccessDeniedException", "sts": "AccessDenied"}
_CODES: Mapping[str, Mapping[str, str]] = {
    "key": {"s3": "InvalidAccessKeyId", "ssm": "UnrecognizedClientException", "sts": "InvalidClientTokenId"},
    "signature": {"s3": "SignatureDoesNotMatch", "ssm": "InvalidSignatureException", "sts": "SignatureDoesNotMatch"},
    "expired": {"ec2": "RequestExpired", "s3": "RequestTimeTooSkewed", "sts": "SignatureDoesNotMatch"},
    "payload": {"s3": "XAmzContentSHA256Mismatch", "ssm": "InvalidSignatureException"},
    "scope": {"ec2": "SignatureDoesNotMatch", "s3": "AuthorizationHeaderMalformed", "sts": "SignatureDoesNotMatch"},
}


class Gate:
    """WSGI middleware in front of everything the daemon serves."""

    def __init__(
        self,
        signed: Mapping[str, Application],
        unsigned: Mapping[str, Application],
        credentials: Credentials,
        host: str,
    ) -> None:
        """`signed` is by the service in the signature's scope; `unsigned` by the first part of the path."""
        self._signed = signed
        self._unsigned = unsigned
        self._credentials = credentials
        self._host = host
        self._guard = threading.Lock()
        self._active = 0
        self._last_used = time.monotonic()

    def idle_for_s(self) -> float:
        """Seconds since the last request that was let in was answered; 0 while one is being answered."""
        with self._guard:
            return 0.0 if self._active else time.monotonic() - self._last_used

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[None]:
        with self._guard:
            self._active += 1
        try:
            yield
        finally:
            with self._guard:
                self._active -= 1
                self._last_used = time.monotonic()

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        headers = header_fields(environ)
        path, query = request_target(environ)
        if reason := self._foreign(environ, headers):
            return aws_error("sts", 403, "AccessDenied", reason, start_response)
        prefix = path.split("/")[1]  # every path begins with one
        if prefix in self._unsigned:
            with self._in_use():
                return self._unsigned[prefix](environ, start_response)
        service = "sts"  # whose form an error takes where the request does not say
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as body:
            try:
                claim = self._verified(Message(environ["REQUEST_METHOD"], path, query, headers, ""), environ, body)
                service = claim.service
                if service not in self._signed:
                    raise Refused("service", f"The sandbox has no service {service!r}.")
            except Refused as refused:
                service = _service_of(headers, query)
                status = 401 if service == "ec2" else 403
                code = _CODES.get(refused.kind, {}).get(service) or _ACCESS_DENIED[service]
                return aws_error(service, status, code, str(refused), start_response)
            environ["wsgi.input"] = body
            environ["cloudrun.service"] = service
            with self._in_use():
                return list(self._signed[service](environ, _without_cors(start_response)))

    def _foreign(self, environ: Environ, headers: Mapping[str, str]) -> str:
        """Why this cannot be a program of this computer's user; "" where it can."""
        if not environ.get("REMOTE_ADDR", "").startswith("127."):
            return "The sandbox answers its own computer only."
        if headers.get("host", "").lower() != self._host:
            return f"The Host header must be {self._host}."
        if any(name in headers for name in _BROWSER_HEADERS) or environ["REQUEST_METHOD"] == "OPTIONS":
            return "The sandbox does not answer web pages."
        return ""

    def _verified(self, message: Message, environ: Environ, body: IO[bytes]) -> Claim:
        """Read the request's body and check its signature. Raises Refused."""
        now = datetime.now(UTC)
        if message.headers.get("content-type", "").startswith("multipart/form-data"):
            _read(environ, body, opening=self._credentials.access_key.encode())
            return check_post(message, body, self._credentials, now)
        claim = sigv4.claim_of(message)
        sigv4.check_scope(claim, self._credentials, now)  # before a stranger may fill the disk with a body
        message = dataclasses.replace(message, body_sha256=_read(environ, body))
        sigv4.check(message, claim, self._credentials, now)
        return claim


def _read(environ: Environ, body: IO[bytes], opening: bytes = b"") -> str:
    """Copy the request's body to a file, rewound, and say its SHA-256. Raises Refused where it is too long, or where
    its first mebibyte does not hold `opening`: in a form whatever is signed comes before the file, which may be long.
    """
    digest = hashlib.sha256()
    source = environ["wsgi.input"]
    left = BODY_MAX_BYTES if environ.get("wsgi.input_terminated") else int(environ.get("CONTENT_LENGTH") or 0)
    if left > BODY_MAX_BYTES:
        raise Refused("payload", "The request's body is too long.")
    while left > 0 and (piece := source.read(min(left, 1 << 20))):
        if opening not in piece and body.tell() == 0:
            raise Refused("key", "The form does not begin with this sandbox's access key.")
        digest.update(piece)
        body.write(piece)
        left -= len(piece)
    environ["CONTENT_LENGTH"] = str(body.tell())
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    body.seek(0)
    return digest.hexdigest()


def _service_of(headers: Mapping[str, str], query: str) -> str:
    """Which service's client has to read a refusal, as far as an unverified request tells."""
    said = headers.get("authorization", "") + query.replace("%2F", "/")
    return next((name for name in _ACCESS_DENIED if f"/{name}/aws4_request" in said), "sts")


def _without_cors(start_response: StartResponse) -> StartResponse:
    def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
        kept = [(name, value) for name, value in headers if not name.lower().startswith("access-control-")]
        return start_response(status, kept, *rest)

    return start
