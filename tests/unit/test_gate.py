"""The gate in front of the region: who gets through, and what a refusal looks like to each kind of client."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest

from cloudrun.sandbox.gate import Gate
from cloudrun.sandbox.sigv4 import Credentials, sign
from cloudrun.sandbox.wsgi import Environ, StartResponse, answer

HOST = "127.0.0.1:4566"
CREDENTIALS = Credentials("SANDBOXTESTKEY000000", "secret", "us-east-1")


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    body = environ["wsgi.input"].read()
    return answer(start_response, 200, body, headers=[("Access-Control-Allow-Origin", "*"), ("X-Kept", "yes")])


def open_door(_environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    return answer(start_response, 200, b"unsigned")


GATE = Gate({"ec2": echo, "s3": echo, "ssm": echo, "sts": echo}, {"_door": open_door}, CREDENTIALS, HOST)


def call(
    path: str = "/", *, service: str = "ec2", body: bytes = b"", address: str = "127.0.0.1", **extra: str | None
) -> tuple[str, dict[str, str], bytes]:
    """`extra` are header fields by their WSGI names; None takes one away."""
    headers = sign("POST", path, "", HOST, service, body, CREDENTIALS, datetime.now(UTC))
    environ: dict[str, Any] = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    environ |= {
        "REQUEST_METHOD": "POST",
        "REQUEST_URI": path,
        "REMOTE_ADDR": address,
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": BytesIO(body),
    }
    environ = {name: value for name, value in (environ | extra).items() if value is not None}
    told: list[Any] = []
    content = b"".join(GATE(environ, lambda status, fields, *_: told.extend([status, dict(fields)])))
    return told[0], told[1], content


def test_a_signed_request_gets_through_with_its_body() -> None:
    status, _, content = call(body=b"Action=DescribeInstances")
    assert (status, content) == ("200 OK", b"Action=DescribeInstances")


def test_cors_headers_are_taken_off_answers() -> None:
    _, headers, _ = call()
    assert "Access-Control-Allow-Origin" not in headers
    assert headers["X-Kept"] == "yes"


@pytest.mark.parametrize(
    "extra",
    [
        {"HTTP_ORIGIN": "https://example.com"},
        {"HTTP_ORIGIN": "null"},
        {"HTTP_REFERER": "https://example.com/"},
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_HOST": "rebound.example.com:4566"},
        {"HTTP_HOST": "localhost:4566"},
        {"HTTP_HOST": None},
        {"REQUEST_METHOD": "OPTIONS"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/_door/x"])
def test_a_web_page_is_refused_whatever_it_sends(extra: dict[str, str | None], path: str) -> None:
    status, headers, _ = call(path, **extra)
    assert status == "403 Forbidden"
    assert not any(name.lower().startswith("access-control") for name in headers)


def test_another_computer_is_refused() -> None:
    assert call(address="192.0.2.7")[0] == "403 Forbidden"


def test_a_path_that_is_a_secret_itself_needs_no_signature() -> None:
    assert call("/_door/x", HTTP_AUTHORIZATION=None)[2] == b"unsigned"


def test_a_service_that_the_region_has_not_is_refused() -> None:
    status, _, content = call(service="dynamodb")
    assert status == "403 Forbidden"
    assert b"no service" in content


@pytest.mark.parametrize(
    ("service", "status", "said"),
    [
        ("ec2", "401 Unauthorized", b"<Response><Errors><Error><Code>AuthFailure</Code>"),
        ("s3", "403 Forbidden", b"<Error><Code>SignatureDoesNotMatch</Code>"),
        ("sts", "403 Forbidden", b"<Type>Sender</Type><Code>SignatureDoesNotMatch</Code>"),
    ],
)
def test_a_refusal_has_the_form_of_its_service(service: str, status: str, said: bytes) -> None:
    got, _, content = call(service=service, HTTP_X_AMZ_DATE=f"{datetime.now(UTC):%Y%m%d}T000000Z", body=b"x")
    assert got == status or b"expired" in content
    got, _, content = call("/", service=service, HTTP_HOST=HOST, REQUEST_METHOD="PUT")
    assert got == status
    assert said in content


def test_ssm_gets_its_refusal_as_json() -> None:
    status, _, content = call(service="ssm", REQUEST_METHOD="PUT")
    assert status == "403 Forbidden"
    assert json.loads(content)["__type"] == "InvalidSignatureException"


def test_an_unsigned_request_is_refused() -> None:
    assert call(HTTP_AUTHORIZATION=None)[0] == "403 Forbidden"


def test_a_form_is_not_read_to_its_end_before_the_key_is_known() -> None:
    class Endless(BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            self.taken += size or 0
            assert self.taken < 10_000_000, "a stranger's form was read"
            return b"x" * (size or 0)

    form = {"CONTENT_TYPE": "multipart/form-data; boundary=x", "CONTENT_LENGTH": str(5 * 1024**3)}
    status, _, content = call(HTTP_AUTHORIZATION=None, **form, **{"wsgi.input": Endless()})  # type: ignore[arg-type]
    assert status == "403 Forbidden"
    assert b"access key" in content


@pytest.mark.parametrize("path", ["//[", "//host", "http://127.0.0.1/", "*", "", "/?", "//%00"])
def test_a_target_that_is_no_path_is_refused_like_any_other(path: str) -> None:
    assert call(HTTP_AUTHORIZATION=None, REQUEST_URI=path)[0] == "403 Forbidden"


def test_a_body_is_not_read_before_the_key_is_known() -> None:
    class Unread(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("a stranger's body was read")

    stranger = sign("POST", "/", "", HOST, "ec2", b"", Credentials("STRANGER", "x", "us-east-1"), datetime.now(UTC))
    status, _, content = call(HTTP_AUTHORIZATION=stranger["authorization"], **{"wsgi.input": Unread()})  # type: ignore[arg-type]
    assert status == "401 Unauthorized"
    assert b"AuthFailure" in content
