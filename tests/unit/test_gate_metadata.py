"""The instance metadata service, asked as a program on a unit asks it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cloudrun.sandbox.hypervisor import PowerOn
from cloudrun.sandbox.metadata import TOKENS_MAX, Metadata

ORDER = PowerOn(
    instance_id="i-1",
    address="127.64.0.1",
    ssh_port=22022,
    hostname="ip-10-0-0-1",
    authorized_keys=("ssh-ed25519 AAAA me",),
    user_data="#cloud-config\n",
    instance_type="m7i.large",
    image_id="ami-1",
    region="us-east-1",
    zone="us-east-1a",
    private_address="10.0.0.1",
    key_name="mine",
    tokens_required=True,
)


def ask(
    metadata: Metadata, url: str, path: str, method: str = "GET", headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    environ: dict[str, Any] = {f"HTTP_{name.upper().replace('-', '_')}": v for name, v in (headers or {}).items()}
    environ |= {"REQUEST_METHOD": method, "REQUEST_URI": url.removeprefix("http://endpoint") + path}
    told: list[str] = []
    body = b"".join(metadata(environ, lambda status, _headers: told.append(status)))
    return int(told[0].split()[0]), body.decode()


def token(metadata: Metadata, url: str) -> dict[str, str]:
    wish = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    status, text = ask(metadata, url, "/latest/api/token", "PUT", wish)
    assert status == 200
    return {"X-aws-ec2-metadata-token": text}


def test_a_unit_learns_about_itself_with_a_token() -> None:
    metadata = Metadata("http://endpoint")
    url = metadata.url(ORDER)
    own = token(metadata, url)
    for path, value in (
        ("instance-id", "i-1"),
        ("instance-type", "m7i.large"),
        ("placement/region", "us-east-1"),
        ("placement/", "availability-zone\nregion"),
        ("public-keys/", "0=mine"),
        ("public-keys/0/openssh-key", "ssh-ed25519 AAAA me"),
    ):
        assert ask(metadata, url, f"/latest/meta-data/{path}", headers=own) == (200, value)
    assert ask(metadata, url, "/latest/user-data", headers=own) == (200, "#cloud-config\n")
    names = ask(metadata, url, "/latest/meta-data/", headers=own)[1].splitlines()
    assert "public-keys/" in names
    assert "public-keys" not in names
    status, document = ask(metadata, url, "/latest/dynamic/instance-identity/document", headers=own)
    assert (status, json.loads(document)["instanceId"]) == (200, "i-1")
    assert "placement/" in ask(metadata, url, "/latest/meta-data/", headers=own)[1].splitlines()


def test_no_interruption_is_announced() -> None:
    metadata = Metadata("http://endpoint")
    url = metadata.url(ORDER)
    assert ask(metadata, url, "/latest/meta-data/spot/instance-action", headers=token(metadata, url))[0] == 404


def test_without_a_token_or_with_a_wrong_one_nothing_is_told() -> None:
    metadata = Metadata("http://endpoint")
    url = metadata.url(ORDER)
    assert ask(metadata, url, "/latest/meta-data/instance-id")[0] == 401
    wrong = {"X-aws-ec2-metadata-token": "guessed"}
    assert ask(metadata, url, "/latest/meta-data/instance-id", headers=wrong)[0] == 401


def test_an_announced_interruption_is_told_to_its_own_instance_until_that_is_gone() -> None:
    metadata = Metadata("http://endpoint")
    url = metadata.url(ORDER)
    other = metadata.url(replace(ORDER, instance_id="i-2"))
    metadata.announce_interruption("i-1", datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC))
    path = "/latest/meta-data/spot/instance-action"
    told = '{"action": "terminate", "time": "2026-01-02T03:04:05Z"}'
    assert ask(metadata, url, path, headers=token(metadata, url)) == (200, told)
    assert ask(metadata, other, path, headers=token(metadata, other))[0] == 404
    again = metadata.url(ORDER)  # it was rebooted
    assert ask(metadata, again, path, headers=token(metadata, again)) == (200, told)
    metadata.forget("i-1")
    anew = metadata.url(ORDER)
    assert ask(metadata, anew, path, headers=token(metadata, anew))[0] == 404


def test_a_unit_that_asks_for_tokens_for_ever_loses_the_oldest() -> None:
    metadata = Metadata("http://endpoint")
    url = metadata.url(ORDER)
    oldest, second = token(metadata, url), token(metadata, url)
    for _ in range(TOKENS_MAX - 2):
        token(metadata, url)
    assert ask(metadata, url, "/latest/meta-data/instance-id", headers=oldest)[0] == 200
    newest = token(metadata, url)
    assert ask(metadata, url, "/latest/meta-data/instance-id", headers=oldest)[0] == 401
    for held in (second, newest):
        assert ask(metadata, url, "/latest/meta-data/instance-id", headers=held)[0] == 200


def test_a_token_needs_a_lifetime_and_no_proxy() -> None:
    metadata = Metadata("http://endpoint")
    url = metadata.url(ORDER)
    assert ask(metadata, url, "/latest/api/token", "PUT")[0] == 400
    forwarded = {"X-aws-ec2-metadata-token-ttl-seconds": "60", "X-Forwarded-For": "10.0.0.9"}
    assert ask(metadata, url, "/latest/api/token", "PUT", forwarded)[0] == 403


def test_another_units_address_is_not_guessed_and_a_forgotten_one_is_gone() -> None:
    metadata = Metadata("http://endpoint")
    url = metadata.url(ORDER)
    assert ask(metadata, "http://endpoint/_metadata/guessed", "/latest/user-data")[0] == 404
    metadata.forget("i-1")
    assert ask(metadata, url, "/latest/user-data")[0] == 404
