"""S3's browser-form uploads ("presigned POST"): the form carries a policy, and the signature is over that policy."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
from datetime import UTC, datetime
from typing import IO, Any

from cloudrun.sandbox.sigv4 import Claim, Credentials, Message, Refused, check_scope, sign_text

# Fields that a policy need not name (Amazon S3 API reference, "POST policy").
_FREE = ("policy", "x-amz-signature", "file", "bucket")


def check_post(message: Message, body: IO[bytes], credentials: Credentials, now: datetime) -> Claim:
    """Raises Refused unless the form's policy is signed, unexpired, and allows every field of the form."""
    from werkzeug.formparser import parse_form_data

    environ = {
        "REQUEST_METHOD": message.method,
        "CONTENT_TYPE": message.headers["content-type"],
        "CONTENT_LENGTH": str(body.seek(0, 2)),
        "wsgi.input": body,
    }
    body.seek(0)
    _, form, files = parse_form_data(environ)
    body.seek(0)
    size_bytes = 0
    for upload in files.values():
        with contextlib.closing(upload):
            size_bytes += upload.stream.seek(0, 2)
    fields = {name.lower(): value for name, value in form.items()}
    policy_text = fields.get("policy", "")
    parts = fields.get("x-amz-credential", "").split("/")
    try:
        signed_at = datetime.strptime(fields.get("x-amz-date", ""), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        policy = json.loads(base64.b64decode(policy_text, validate=True))
        lifetime = datetime.fromisoformat(policy["expiration"]) - signed_at
        conditions = list(policy["conditions"])
        key, date, region, service, _ = parts
    except (ValueError, KeyError, TypeError):
        raise Refused("malformed", "The form has no policy signed with AWS Signature Version 4.") from None
    claim = Claim(key, date, region, service, signed_at, (), fields.get("x-amz-signature", ""), lifetime)
    if service != "s3":
        raise Refused("scope", "A signed policy is S3's alone.")
    check_scope(claim, credentials, now)
    if not hmac.compare_digest(sign_text(policy_text, claim, credentials), claim.signature):
        raise Refused("signature", "The signature we calculated for the policy does not match.")
    fields["bucket"] = message.path.strip("/").split("/")[0]
    _check_conditions(conditions, fields, size_bytes)
    return claim


def _check_conditions(conditions: list[Any], fields: dict[str, str], size_bytes: int) -> None:
    named = set(_FREE)
    for condition in conditions:
        match condition:
            case dict():
                tests = [(name.lower(), fields.get(name.lower()) == value) for name, value in condition.items()]
            case ["content-length-range", low, high]:
                tests = [("content-length-range", int(low) <= size_bytes <= int(high))]
            case ["eq", str(field), value]:
                tests = [(field.lstrip("$").lower(), fields.get(field.lstrip("$").lower()) == value)]
            case ["starts-with", str(field), str(value)]:
                tests = [(field.lstrip("$").lower(), fields.get(field.lstrip("$").lower(), "").startswith(value))]
            case _:
                tests = [(str(condition), False)]
        for name, holds in tests:
            named.add(name)
            if not holds:
                raise Refused("policy", f"Invalid according to Policy: {name}")
    extra = [name for name in fields if name not in named and not name.startswith("x-ignore-")]
    if extra:
        raise Refused("policy", f"Invalid according to Policy: Extra input fields: {', '.join(extra)}")
