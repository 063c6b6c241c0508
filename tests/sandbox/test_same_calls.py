"""`--provider aws` against a plain moto server makes the calls that the sandbox gets, with the same parameters, until a
machine runs and the first SSH connection is made."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import botocore
import pytest

from cloudrun import process_unit
from cloudrun.aws import network
from cloudrun.core.errors import CloudrunError
from cloudrun.ledger import Ledger
from cloudrun.sandbox.services import _MOTO_ENVIRONMENT

Call = tuple[str, str]  # the operation, and its parameters as masked JSON


@pytest.fixture
def closed_port() -> Iterator[int]:
    """Where nobody listens, and nobody else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])


@pytest.fixture
def moto_url(closed_port: int) -> Iterator[str]:
    command = [sys.executable, "-m", "tests.moto_region", str(closed_port)]
    pipe = subprocess.PIPE
    environment = {**os.environ, **_MOTO_ENVIRONMENT}
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


@pytest.fixture
def own_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that tells this computer's address, as AWS's does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"127.0.0.1\n")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    monkeypatch.setattr(network, "_WHO_AM_I", f"http://127.0.0.1:{server.server_address[1]}/")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def recorded() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Every call that this process makes through botocore, by whichever session."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def record(params: dict[str, Any], model: Any, **_: Any) -> None:
        service = model.service_model.service_name
        if service in ("ec2", "ssm"):  # who one is, STS is asked only on AWS
            calls.append((f"{service}.{model.name}", dict(params)))

    def listen(session: Any) -> None:
        session.register("provide-client-params", record)

    botocore.register_initializer(listen)
    yield calls
    botocore.unregister_initializer(listen)


_MASKS = (
    (r"-----BEGIN OPENSSH PRIVATE KEY-----.*?-----END OPENSSH PRIVATE KEY-----", "PRIVATE KEY"),
    (r"ssh-ed25519 [A-Za-z0-9+/=]+", "PUBLIC KEY"),
    (r"# launch [0-9a-f]{16}", "LAUNCH"),
    (r"in_seconds \d+", "BOOT TIMEOUT"),  # and a minute; the two of this test have not the same
    (r"\b(l|i|sg|vpc|subnet)-[0-9a-z]{6,}", r"\1-ID"),
    (r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?", "TIME"),
)


def masked(params: dict[str, Any], ledger: Ledger) -> str:
    """Without what is another at each launch: ids, tokens, keys, times."""
    text = json.dumps(params, sort_keys=True, default=lambda value: value.decode())
    text = text.replace(ledger.ledger_id, "LEDGER")
    for pattern, name in _MASKS:
        text = re.sub(pattern, name, text, flags=re.DOTALL)
    return text


def before_ssh(calls: list[tuple[str, dict[str, Any]]], ledger: Ledger) -> list[Call]:
    """Until the machine is ended again; one that is looked at several times is looked at."""
    seen: list[Call] = []
    for name, params in calls:
        if name == "ec2.TerminateInstances":
            return seen
        call = (name, masked(params, ledger))
        if not seen or seen[-1] != call:
            seen.append(call)
    raise AssertionError("the machine was never ended")


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {
            "spot": True, "max_price": 0.05, "instance_type": "m7g.large", "volume_gib": 40, "volume_iops": 4000,
            "tags": {"team": "ml"}, "zone": "us-east-1b", "ssh_from": "127.0.0.0/8",
        },
    ],
    ids=["defaults", "wishes"],
)  # fmt: skip
def test_the_same_calls_reach_aws_and_the_sandbox(
    wishes: dict[str, Any],
    tmp_path: Path,
    moto_url: str,
    own_address: None,
    recorded: list[tuple[str, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("sandbox", "aws"):
        (tmp_path / name).mkdir()
    with process_unit(project=tmp_path / "sandbox", observe=lambda event: None, **wishes):
        pass
    in_sandbox = before_ssh(recorded, Ledger(tmp_path / "sandbox"))
    recorded.clear()

    for name, value in {
        "AWS_ENDPOINT_URL": moto_url, "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(CloudrunError, match=r"no login on 127\.0\.0\.1"),
        process_unit(project=tmp_path / "aws", provider="aws", boot_timeout="5s", observe=lambda event: None, **wishes),
    ):
        raise AssertionError("nothing boots there")
    on_aws = before_ssh(recorded, Ledger(tmp_path / "aws"))

    assert [name for name, _ in on_aws][-2:] == ["ec2.RunInstances", "ec2.DescribeInstances"]
    assert on_aws == in_sandbox
    assert Ledger(tmp_path / "aws").units() == []
