"""Signature Version 4, checked against AWS's own example and against botocore as a second implementation."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from datetime import UTC, datetime, timedelta
from io import BytesIO
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.sandbox.postpolicy import check_post
from cloudrun.sandbox.sigv4 import Credentials, Message, Refused, check, claim_of, sign, sign_text

CREDENTIALS = Credentials("SANDBOXTESTKEY000000", "not-a-real-secret/+", "us-east-1")
HOST = "127.0.0.1:4566"


def signed_by_botocore(service: str, method: str, path: str, query: str, body: bytes) -> Message:
    signer = (S3SigV4Auth if service == "s3" else SigV4Auth)(
        BotocoreCredentials(CREDENTIALS.access_key, CREDENTIALS.secret_key), service, CREDENTIALS.region
    )
    url = f"http://{HOST}{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, data=body)
    signer.add_auth(request)
    headers = {name.lower(): str(value) for name, value in request.headers.items()} | {"host": HOST}
    return Message(method, path, query, headers, hashlib.sha256(body).hexdigest())


def accept(message: Message, now: datetime | None = None) -> None:
    check(message, claim_of(message), CREDENTIALS, now or datetime.now(UTC))


def refusal(message: Message, now: datetime | None = None) -> str:
    with pytest.raises(Refused) as refused:
        accept(message, now)
    return refused.value.kind


def test_the_example_that_aws_publishes_is_accepted() -> None:
    # "get-vanilla" of the AWS Signature Version 4 test suite
    message = Message(
        "GET",
        "/",
        "",
        {
            "host": "example.amazonaws.com",
            "x-amz-date": "20150830T123600Z",
            "authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
            "SignedHeaders=host;x-amz-date, "
            "Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
        },
        hashlib.sha256(b"").hexdigest(),
    )
    example = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "us-east-1")
    check(message, claim_of(message), example, datetime(2015, 8, 30, 12, 40, tzinfo=UTC))


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
segments = texts.filter(lambda text: text not in (".", ".."))


@given(key=st.lists(segments.filter(bool), max_size=3), values=st.dictionaries(texts.filter(bool), texts, max_size=3))
def test_whatever_botocore_signs_for_s3_is_accepted(key: list[str], values: dict[str, str]) -> None:
    path = "/bucket/" + "/".join(quote(part, safe="~") for part in key)
    query = "&".join(f"{quote(name, safe='~')}={quote(value, safe='~')}" for name, value in values.items())
    accept(signed_by_botocore("s3", "PUT", path, query, b"body"))


@given(service=st.sampled_from(["ec2", "ssm", "sts"]), body=st.binary(max_size=50))
def test_whatever_botocore_signs_for_another_service_is_accepted(service: str, body: bytes) -> None:
    accept(signed_by_botocore(service, "POST", "/", "", body))


def test_a_presigned_url_is_accepted_until_it_expires() -> None:
    signer = S3SigV4QueryAuth(
        BotocoreCredentials(CREDENTIALS.access_key, CREDENTIALS.secret_key), "s3", CREDENTIALS.region, expires=60
    )
    request = AWSRequest("GET", f"http://{HOST}/bucket/a%20b/%C3%BC%2B~")
    signer.add_auth(request)
    parts = urlsplit(request.url)
    message = Message("GET", parts.path, parts.query, {"host": HOST}, hashlib.sha256(b"").hexdigest())
    accept(message)
    assert refusal(message, datetime.now(UTC) + timedelta(seconds=61)) == "expired"
    assert refusal(dataclasses.replace(message, path="/bucket/other")) == "signature"


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"path": "/other"}, "signature"),
        ({"query": "Action=TerminateInstances"}, "signature"),
        ({"method": "GET"}, "signature"),
        ({"body_sha256": hashlib.sha256(b"other").hexdigest()}, "signature"),
    ],
)
def test_a_request_changed_after_signing_is_refused(change: dict[str, str], kind: str) -> None:
    message = signed_by_botocore("ec2", "POST", "/", "", b"Action=DescribeInstances")
    assert refusal(dataclasses.replace(message, **change)) == kind


@pytest.mark.parametrize(
    ("header", "value", "kind"),
    [
        ("x-amz-security-token", "added", "malformed"),
        ("authorization", "Bearer x", "malformed"),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=a/b/c/d, SignedHeaders=host, Signature=" + "0" * 64,
            "malformed",
        ),
        ("x-amz-date", "yesterday", "malformed"),
        ("x-amz-date", "20200101T000000Z", "scope"),
    ],
)
def test_a_tampered_header_is_refused(header: str, value: str, kind: str) -> None:
    message = signed_by_botocore("ec2", "POST", "/", "", b"")
    assert refusal(dataclasses.replace(message, headers={**message.headers, header: value})) == kind


def test_an_unsigned_request_is_refused() -> None:
    assert refusal(Message("POST", "/", "", {"host": HOST}, "")) == "missing"


def test_another_secret_key_or_region_is_refused() -> None:
    for other, kind in (
        (Credentials(CREDENTIALS.access_key, "guessed", "us-east-1"), "signature"),
        (Credentials("SOMEBODYELSE00000000", CREDENTIALS.secret_key, "us-east-1"), "key"),
        (Credentials(CREDENTIALS.access_key, CREDENTIALS.secret_key, "eu-west-1"), "scope"),
    ):
        headers = sign("GET", "/", "", HOST, "ec2", b"", other, datetime.now(UTC))
        assert refusal(Message("GET", "/", "", headers, hashlib.sha256(b"").hexdigest())) == kind


def test_an_old_signature_is_refused() -> None:
    message = signed_by_botocore("ec2", "POST", "/", "", b"")
    assert refusal(message, datetime.now(UTC) + timedelta(minutes=16)) in ("expired", "scope")


@given(path=st.sampled_from(["/", "/status"]), body=st.binary(max_size=20), service=st.sampled_from(["sandbox", "s3"]))
def test_what_we_sign_ourselves_is_accepted(path: str, body: bytes, service: str) -> None:
    now = datetime.now(UTC)
    headers = sign("POST", path, "a=b", HOST, service, body, CREDENTIALS, now)
    accept(Message("POST", path, "a=b", headers, hashlib.sha256(body).hexdigest()), now)


# -- browser forms ---------------------------------------------------------------------------------------------------


def form(fields: dict[str, str], content: bytes = b"content") -> tuple[Message, BytesIO]:
    parts = [f'--x\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n'.encode() for k, v in fields.items()]
    parts.append(
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    headers = {"host": HOST, "content-type": "multipart/form-data; boundary=x"}
    return Message("POST", "/bucket", "", headers, ""), BytesIO(b"".join(parts))


def policy_fields(conditions: list[object], lifetime: timedelta = timedelta(minutes=5)) -> dict[str, str]:
    now = datetime.now(UTC)
    fields = {
        "key": "models/a",
        "x-amz-algorithm": "AWS4-HMAC-SHA256",
        "x-amz-credential": f"{CREDENTIALS.access_key}/{now:%Y%m%d}/us-east-1/s3/aws4_request",
        "x-amz-date": f"{now:%Y%m%dT%H%M%SZ}",
    }
    own = [{name: value} for name, value in fields.items() if name != "key"]
    policy = {"expiration": (now + lifetime).isoformat(), "conditions": [{"bucket": "bucket"}, *own, *conditions]}
    fields["policy"] = base64.b64encode(json.dumps(policy).encode()).decode()
    empty = claim_of(Message("GET", "/", "", sign("GET", "/", "", HOST, "s3", b"", CREDENTIALS, now), ""))
    fields["x-amz-signature"] = sign_text(fields["policy"], empty, CREDENTIALS)
    return fields


def test_a_form_that_keeps_to_its_signed_policy_is_accepted() -> None:
    fields = policy_fields([["starts-with", "$key", "models/"], ["content-length-range", 1, 100]])
    assert check_post(*form(fields), CREDENTIALS, datetime.now(UTC)).service == "s3"


@pytest.mark.parametrize(
    ("conditions", "changes"),
    [
        ([["starts-with", "$key", "data/"]], {}),
        ([["eq", "$key", "models/b"]], {}),
        ([["starts-with", "$key", ""], ["content-length-range", 1, 3]], {}),
        ([], {}),  # the key is in no condition
        ([["starts-with", "$key", ""]], {"x-amz-signature": "0" * 64}),
        ([["starts-with", "$key", ""]], {"policy": "bm90IGpzb24="}),
    ],
)
def test_a_form_beyond_its_policy_is_refused(conditions: list[object], changes: dict[str, str]) -> None:
    fields = policy_fields(conditions) | changes
    with pytest.raises(Refused):
        check_post(*form(fields), CREDENTIALS, datetime.now(UTC))


def test_an_expired_form_is_refused() -> None:
    fields = policy_fields([["starts-with", "$key", ""]], timedelta(seconds=10))
    with pytest.raises(Refused):
        check_post(*form(fields), CREDENTIALS, datetime.now(UTC) + timedelta(seconds=30))
