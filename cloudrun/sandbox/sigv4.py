"""AWS Signature Version 4, both halves: signing a request, and checking that a request was signed with our secret.

Written after "Create a signed AWS API request" (AWS IAM User Guide). The secret never travels: a client proves that
it has it. Canonical requests follow the two dialects there are: S3 encodes a path once, every other service twice.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, quote, unquote

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOADS = ("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")  # S3 only
CLOCK_SKEW = timedelta(minutes=15)  # what AWS allows
PRESIGNED_LONGEST = timedelta(days=7)  # what AWS allows
_TIME = "%Y%m%dT%H%M%SZ"


@dataclass(frozen=True)
class Message:
    """An HTTP request as it was sent. `path` and `query` are still percent-encoded; header names are lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body_sha256: str


@dataclass(frozen=True)
class Credentials:
    access_key: str
    secret_key: str
    region: str


@dataclass(frozen=True)
class Claim:
    """What a request says about its own signature."""

    access_key: str
    date: str  # YYYYMMDD
    region: str
    service: str
    signed_at: datetime
    signed_headers: tuple[str, ...]
    signature: str
    lifetime: timedelta | None = None  # of a presigned URL

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


class Refused(Exception):
    """`kind` is one of missing, malformed, key, scope, expired, signature, payload."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def claim_of(message: Message) -> Claim:
    """Read the Authorization header, or the query of a presigned URL. Raises Refused where there is neither."""
    authorization = message.headers.get("authorization", "")
    if authorization:
        match = re.fullmatch(
            rf"{ALGORITHM}\s+Credential=([^,\s]+),\s*SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{{64}})",
            authorization,
        )
        if match is None:
            raise Refused("malformed", "The Authorization header is not AWS Signature Version 4.")
        credential, signed_headers, signature = match.groups()
        return _claim(credential, message.headers.get("x-amz-date", ""), signed_headers, signature, None)
    query = dict(parse_qsl(message.query, keep_blank_values=True))
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        raise Refused("missing", "The request is not signed with AWS Signature Version 4.")
    seconds = query.get("X-Amz-Expires", "")
    if not seconds.isascii() or not seconds.isdigit() or len(seconds) > 6:
        raise Refused("malformed", "X-Amz-Expires is not a number of seconds up to seven days.")
    lifetime = timedelta(seconds=int(seconds))
    if lifetime > PRESIGNED_LONGEST:
        raise Refused("malformed", "X-Amz-Expires must be less than a week.")
    return _claim(
        query.get("X-Amz-Credential", ""),
        query.get("X-Amz-Date", ""),
        query.get("X-Amz-SignedHeaders", ""),
        query.get("X-Amz-Signature", ""),
        lifetime,
    )


def check(message: Message, claim: Claim, credentials: Credentials, now: datetime) -> None:
    """Raises Refused unless the request was signed with these credentials, for this region, and about now."""
    check_scope(claim, credentials, now)
    if "host" not in claim.signed_headers:
        raise Refused("malformed", "The Host header must be signed.")
    unsigned = [name for name in message.headers if name.startswith("x-amz-") and name not in claim.signed_headers]
    if unsigned:
        raise Refused("malformed", f"Headers that must be signed are not: {', '.join(sorted(unsigned))}.")
    payload = _payload(message, claim)
    expected = sign_text(_string_to_sign(claim, _canonical_request(message, claim, payload)), claim, credentials)
    if not hmac.compare_digest(expected, claim.signature):
        raise Refused("signature", "The request signature we calculated does not match the signature you provided.")


def check_scope(claim: Claim, credentials: Credentials, now: datetime) -> None:
    """The part of a check that needs no signature: the key, the scope and the time."""
    if not hmac.compare_digest(claim.access_key.encode(), credentials.access_key.encode()):
        raise Refused("key", "The access key is not this sandbox's; `cloudrun sandbox status` shows the one that is.")
    if claim.region != credentials.region:
        raise Refused("scope", f"Credential should be scoped to a valid region: the sandbox is {credentials.region}.")
    if claim.date != claim.signed_at.strftime("%Y%m%d"):
        raise Refused("scope", "Date in Credential scope does not match the date of the request.")
    if claim.signed_at > now + CLOCK_SKEW or now > claim.signed_at + (claim.lifetime or CLOCK_SKEW):
        raise Refused("expired", "Signature expired, or not yet current.")


def sign(
    method: str, path: str, query: str, host: str, service: str, body: bytes, credentials: Credentials, now: datetime
) -> dict[str, str]:
    """Headers to send so that `check` agrees."""
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": now.astimezone(UTC).strftime(_TIME)}
    names = tuple(sorted(headers))
    moment = headers["x-amz-date"]
    claim = Claim(credentials.access_key, moment[:8], credentials.region, service, now, names, "")
    message = Message(method, path, query, headers, digest)
    signature = sign_text(_string_to_sign(claim, _canonical_request(message, claim, digest)), claim, credentials)
    credential = f"{credentials.access_key}/{claim.scope}"
    headers["authorization"] = (
        f"{ALGORITHM} Credential={credential}, SignedHeaders={';'.join(names)}, Signature={signature}"
    )
    return headers


def sign_text(text: str, claim: Claim, credentials: Credentials) -> str:
    """The signature of a text under the key derived for the claim's scope, in hexadecimal."""
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (claim.date, claim.region, claim.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, text.encode(), "sha256").hex()


def _claim(credential: str, moment: str, signed_headers: str, signature: str, lifetime: timedelta | None) -> Claim:
    parts = credential.split("/")
    if len(parts) != 5 or parts[4] != "aws4_request":
        raise Refused("malformed", "The credential must have the form KEY/DATE/REGION/SERVICE/aws4_request.")
    try:
        signed_at = datetime.strptime(moment, _TIME).replace(tzinfo=UTC)
    except ValueError:
        raise Refused("malformed", "X-Amz-Date is missing or not of the form YYYYMMDD'T'HHMMSS'Z'.") from None
    if not re.fullmatch(r"[0-9a-f]{64}", signature):
        raise Refused("malformed", "The signature is not 64 hexadecimal digits.")
    access_key, date, region, service, _ = parts
    return Claim(
        access_key, date, region, service.lower(), signed_at, tuple(signed_headers.split(";")), signature, lifetime
    )


def _payload(message: Message, claim: Claim) -> str:
    """The payload's digest as it goes into the canonical request, after checking it against the real body."""
    declared = message.headers.get("x-amz-content-sha256")
    if claim.service == "s3" and (declared in UNSIGNED_PAYLOADS or (declared is None and claim.lifetime is not None)):
        return declared or UNSIGNED_PAYLOADS[0]
    if declared is not None and declared.startswith("STREAMING-"):
        raise Refused("payload", "The sandbox does not emulate payloads signed in chunks.")
    if declared is not None and declared != message.body_sha256:
        raise Refused("payload", "The provided x-amz-content-sha256 header does not match what was computed.")
    return message.body_sha256


def _canonical_request(message: Message, claim: Claim, payload: str) -> str:
    if claim.service == "s3":
        path = "/".join(_encode(segment) for segment in message.path.split("/"))
    else:
        path = quote(message.path, safe="/-_.~", errors="surrogateescape")
    pairs = [part.partition("=") for part in message.query.split("&") if part]
    encoded = sorted((_encode(name), _encode(value)) for name, _, value in pairs)
    query = "&".join(f"{name}={value}" for name, value in encoded if name != "X-Amz-Signature")
    headers = "".join(f"{name}:{' '.join(message.headers.get(name, '').split())}\n" for name in claim.signed_headers)
    return "\n".join(
        [
            message.method,
            path or "/",
            query,
            headers,
            ";".join(claim.signed_headers),
            payload,
        ]
    )


def _encode(text: str) -> str:
    return quote(unquote(text, errors="surrogateescape"), safe="-_.~", errors="surrogateescape")


def _string_to_sign(claim: Claim, canonical_request: str) -> str:
    digest = hashlib.sha256(canonical_request.encode(errors="surrogateescape")).hexdigest()
    return "\n".join([ALGORITHM, claim.signed_at.astimezone(UTC).strftime(_TIME), claim.scope, digest])
