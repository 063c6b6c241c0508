"""The instance metadata service, version 2: what a machine may ask about itself, under a path only it knows.

After "Use the Instance Metadata Service to access instance metadata" (Amazon EC2 User Guide). On EC2 it answers at
169.254.169.254; here each unit has an address of its own, which its environment names.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cloudrun.sandbox.hypervisor import PowerOn
from cloudrun.sandbox.wsgi import Environ, StartResponse, answer, header_fields, request_target

PREFIX = "_metadata"
TOKEN_LONGEST_S = 21600  # six hours, as on EC2
TOKENS_MAX = 1024  # of one unit at a time; beyond it the oldest is forgotten, and its holder asks for another


@dataclass
class _Guest:
    order: PowerOn
    tokens: dict[str, float] = field(default_factory=dict)  # token -> when it ends, on the monotonic clock


class Metadata:
    """A WSGI application for everything below `/_metadata/`."""

    def __init__(self, endpoint_url: str) -> None:
        self._endpoint_url = endpoint_url
        self._guard = threading.Lock()
        self._guests: dict[str, _Guest] = {}  # by secret
        self._notices: dict[str, dict[str, str]] = {}  # by instance: paths below latest/meta-data, while it lives

    def url(self, order: PowerOn) -> str:
        """The address for a unit, made anew at each power-on: the old one is forgotten."""
        secret = secrets.token_urlsafe(24)
        with self._guard:
            self._withdraw(order.instance_id)
            self._guests[secret] = _Guest(order)
        return f"{self._endpoint_url}/{PREFIX}/{secret}"

    def forget(self, instance_id: str) -> None:
        with self._guard:
            self._withdraw(instance_id)
            self._notices.pop(instance_id, None)

    def announce_interruption(self, instance_id: str, at: datetime) -> dict[str, str]:
        """EC2 takes the instance back at that time: `spot/instance-action`, and its predecessor for old programs."""
        action = {"action": "terminate", "time": _instant(at)}
        self._announce(
            instance_id, {"spot/instance-action": json.dumps(action), "spot/termination-time": action["time"]}
        )
        return action

    def announce_rebalance(self, instance_id: str, at: datetime) -> dict[str, str]:
        """EC2 thinks since that time that it may soon take the instance back."""
        notice = {"noticeTime": _instant(at)}
        self._announce(instance_id, {"events/recommendations/rebalance": json.dumps(notice)})
        return notice

    def _announce(self, instance_id: str, values: Mapping[str, str]) -> None:
        with self._guard:
            self._notices.setdefault(instance_id, {}).update(values)

    def _withdraw(self, instance_id: str) -> None:
        for secret in [key for key, guest in self._guests.items() if guest.order.instance_id == instance_id]:
            del self._guests[secret]

    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        path, _ = request_target(environ)
        _, _, secret, *rest = [*path.split("/"), "", ""]
        headers = header_fields(environ)
        with self._guard:
            guest = self._guests.get(secret)
            if guest is None:
                return answer(start_response, 404, b"Not Found")
            notices = self._notices.get(guest.order.instance_id, {})
            status, text = _reply(guest, notices, environ["REQUEST_METHOD"], "/".join(rest).rstrip("/"), headers)
        return answer(start_response, status, text.encode("utf-8", "surrogateescape"))


def _reply(
    guest: _Guest, notices: Mapping[str, str], method: str, path: str, headers: Mapping[str, str]
) -> tuple[int, str]:
    now = time.monotonic()
    if method == "PUT" and path == "latest/api/token":
        if "x-forwarded-for" in headers:
            return 403, "Forbidden"
        seconds = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
        if not seconds.isdigit() or not 1 <= int(seconds) <= TOKEN_LONGEST_S:
            return 400, "Bad Request"
        token = secrets.token_urlsafe(32)
        guest.tokens = {known: ends for known, ends in guest.tokens.items() if ends > now}
        while len(guest.tokens) >= TOKENS_MAX:
            del guest.tokens[next(iter(guest.tokens))]
        guest.tokens[token] = now + int(seconds)
        return 200, token
    if method not in ("GET", "HEAD"):
        return 405, "Method Not Allowed"
    presented = headers.get("x-aws-ec2-metadata-token")
    if presented is None and guest.order.tokens_required:
        return 401, "Unauthorized"
    if presented is not None and guest.tokens.get(presented, 0.0) <= now:
        return 401, "Unauthorized"
    if path == "latest/user-data":
        return (200, guest.order.user_data) if guest.order.user_data else (404, "Not Found")
    if f"{path}/".startswith("latest/dynamic/"):
        return _look_up(_identity(guest.order), path.removeprefix("latest/dynamic").lstrip("/"))
    if not f"{path}/".startswith("latest/meta-data/"):
        return 404, "Not Found"
    return _look_up({**_values(guest.order), **notices}, path.removeprefix("latest/meta-data").lstrip("/"))


def _look_up(values: Mapping[str, str], path: str) -> tuple[int, str]:
    """A value, or the names one level below a path, one a line, where those that go deeper end in a slash."""
    if path in values:
        return 200, values[path]
    below = [
        name.removeprefix(f"{path}/" if path else "") for name in values if not path or name.startswith(f"{path}/")
    ]
    parts = (name.partition("/") for name in below)
    names = {first + slash for first, slash, _ in parts}
    names -= {name.removesuffix("/") for name in names if name.endswith("/")}  # one that is both is listed once
    return (200, "\n".join(sorted(names))) if names else (404, "Not Found")


def _values(order: PowerOn) -> dict[str, str]:
    """By path below latest/meta-data. `spot/` and `events/` are there once something was announced, as on EC2."""
    values = {
        "ami-id": order.image_id,
        "hostname": order.hostname,
        "instance-id": order.instance_id,
        "instance-type": order.instance_type,
        "local-hostname": order.hostname,
        "local-ipv4": order.private_address,
        "placement/availability-zone": order.zone,
        "placement/region": order.region,
        "public-ipv4": order.address,
    }
    if order.authorized_keys:
        values["public-keys"] = f"0={order.key_name}"
        values["public-keys/0"] = "openssh-key"
        values["public-keys/0/openssh-key"] = order.authorized_keys[0]
    return values


def _identity(order: PowerOn) -> dict[str, str]:
    """By path below latest/dynamic: what "Instance identity documents" (Amazon EC2 User Guide) describes, unsigned."""
    document = {
        "availabilityZone": order.zone,
        "imageId": order.image_id,
        "instanceId": order.instance_id,
        "instanceType": order.instance_type,
        "privateIp": order.private_address,
        "region": order.region,
        "version": "2017-09-30",
    }
    return {"instance-identity/document": json.dumps(document, indent=2)}


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
