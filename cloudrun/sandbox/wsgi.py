"""Small WSGI helpers: typed names, plain answers, and errors in the form each AWS service gives them."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from typing import Any
from xml.sax.saxutils import escape

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

_REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found"}
_REASONS |= {405: "Method Not Allowed", 413: "Content Too Large", 500: "Internal Server Error"}
_REASONS |= {502: "Bad Gateway", 503: "Service Unavailable"}


def answer(
    start_response: StartResponse,
    status: int,
    body: bytes,
    content_type: str = "text/plain; charset=utf-8",
    headers: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    line = f"{status} {_REASONS[status]}"
    start_response(line, [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers])
    return [body]


def aws_error(service: str, status: int, code: str, message: str, start_response: StartResponse) -> list[bytes]:
    """An error that the service's own client can read."""
    request_id = secrets.token_hex(8)
    detail = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
    if service == "ssm":
        body = json.dumps({"__type": code, "message": message})
        return answer(start_response, status, body.encode(), "application/x-amz-json-1.1")
    if service == "ec2":
        body = f"<Response><Errors><Error>{detail}</Error></Errors><RequestID>{request_id}</RequestID></Response>"
    elif service == "s3":
        body = f"<Error>{detail}<RequestId>{request_id}</RequestId></Error>"
    else:
        error = f"<Error><Type>Sender</Type>{detail}</Error>"
        body = f"<ErrorResponse>{error}<RequestId>{request_id}</RequestId></ErrorResponse>"
    return answer(start_response, status, b'<?xml version="1.0" encoding="UTF-8"?>\n' + body.encode(), "text/xml")


def request_target(environ: Environ) -> tuple[str, str]:
    """Path and query as they were sent, percent-encoding and all."""
    target = environ["REQUEST_URI"]  # werkzeug's server keeps it
    path, _, query = (target if target.startswith("/") else "/" + target).partition("?")
    return path, query


def header_fields(environ: Environ) -> dict[str, str]:
    """Header fields by lower-case name."""
    fields = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            fields[name.replace("_", "-").lower()] = environ[name]
    return fields
