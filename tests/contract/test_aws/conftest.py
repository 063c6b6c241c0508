"""A real moto server in its own process, and a proxy before it that loses answers as networks do."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from cloudrun.aws.session import Aws, connect
from cloudrun.core.records import LaunchRequest
from tests.ports import free_port

CANONICAL = "099720109477"
AMAZON = "898082745236"


MOTO = """
from cloudrun.sandbox.loading import moto_of
with moto_of("us-east-1"):
    import moto.ec2.models
    from moto.server import main
main()
"""


@dataclass(frozen=True)
class Refusal:
    """An answer of EC2's that the proxy gives itself: the request goes no further."""

    code: str
    status: int = 400


# What becomes of an answer to a request that was carried out. "lost": the connection is closed instead; "half": it is
# closed in the middle; "broken": something in between says 502; "strange": something in between says something else.
Fault = Literal["lost", "half", "broken", "strange"] | Refusal


@dataclass
class Endpoint:
    """Where a client may ask, what it has asked there, and what goes wrong with the next `RunInstances`."""

    url: str
    calls: list[dict[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)  # of SSM, which moto lets nobody set below /aws/
    answers: dict[str, bytes] = field(default_factory=dict)  # by client token, which moto forgets and EC2 does not
    denied: set[str] = field(default_factory=set)  # actions that the account may not
    refused: dict[str, Refusal] = field(default_factory=dict)  # other answers, by action
    documents: dict[str, dict[str, object]] = field(default_factory=dict)  # what services that moto lacks say, by call
    ahead_s: float = 0.0  # by how much its clock is ahead of this computer's

    def actions(self) -> list[str]:
        return [call.get("Action", "") for call in self.calls]


def _image(image_id: str, name: str, architecture: str = "x86_64", **other: str) -> dict[str, object]:
    return {
        "ami_id": image_id,
        "state": "available",
        "public": True,
        "owner_id": CANONICAL,
        "image_location": name,
        "sriov": "simple",
        "root_device_type": "ebs",
        "root_device_name": "/dev/sda1",
        "description": "",
        "image_type": "machine",
        "platform": None,
        "architecture": architecture,
        "name": name,
        "virtualization_type": "hvm",
        "hypervisor": "xen",
        "creation_date": "2025-06-10T00:00:00",
        **other,
    }


_NOBLE = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04"
IMAGES = [
    _image("ami-00000000000000001", f"{_NOBLE}-amd64-server-20250516", creation_date="2025-05-16T00:00:00"),
    _image("ami-00000000000000002", f"{_NOBLE}-amd64-server-20250610"),
    _image("ami-00000000000000003", f"{_NOBLE}-arm64-server-20250610", "arm64"),
    _image("ami-00000000000000004", f"{_NOBLE}-amd64-server-20990101", owner_id="123456789099"),
    _image("ami-00000000000000005", "Windows_Server-2022-English-Full-Base", platform="windows"),
    _image("ami-00000000000000006", "al2023-ami-2023.7-kernel-6.1-x86_64"),
    _image("ami-00000000000000007", "our-base-17", owner_id="111122223333"),
    _image(
        "ami-00000000000000008", "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20250602", owner_id=AMAZON
    ),
    _image("ami-00000000000000009", "golden-12", owner_id="136693071363"),
    _image("ami-0000000000000000a", "trainer", owner_id=AMAZON, description="made from Rocky Linux 9"),
]


@pytest.fixture(scope="session")
def moto_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("moto")
    images = folder / "images.json"
    images.write_text(json.dumps(IMAGES))
    port = free_port()
    checks = (
        "MOTO_ENABLE_AMI_VALIDATION",
        "MOTO_ENABLE_KEYPAIR_VALIDATION",
        "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION",
    )
    environment = {**os.environ, "MOTO_AMIS_PATH": str(images), **dict.fromkeys(checks, "true")}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-c", MOTO, "-H", "127.0.0.1", "-p", str(port)],
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
        )
    try:
        _wait_until_open(port, server, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_until_open(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2400):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    pytest.fail(f"moto did not start:\n{log.read_text()}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: ClassVar[str]
    endpoint: ClassVar[Endpoint]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        target = self.headers.get("X-Amz-Target", "")
        if target == "AmazonSSM.GetParameter":
            self._parameter(json.loads(body)["Name"])
            return
        if target:
            self._document(target.partition(".")[2])
            return
        call = dict(urllib.parse.parse_qsl(body.decode()))
        self.endpoint.calls.append(call)
        if call.get("Action") in self.endpoint.denied:
            reason = (
                f"You are not authorized to perform: ec2:{call['Action']}. Encoded authorization failure message: x"
            )
            self._error(403, "UnauthorizedOperation", reason)
            return
        if (refusal := self.endpoint.refused.get(call.get("Action", ""))) is not None:
            self._error(refusal.status, refusal.code, "the test says so")
            return
        launching = call.get("Action") == "RunInstances"
        fault = self.endpoint.faults.pop(0) if launching and self.endpoint.faults else None
        if isinstance(fault, Refusal):
            self._error(fault.status, fault.code, "the test says so")
            return
        token = call.get("ClientToken", "") if launching else ""
        status, answer = (200, self.endpoint.answers[token]) if token in self.endpoint.answers else self._forward(body)
        if token and status == 200:
            self.endpoint.answers[token] = answer
        if fault == "broken":
            self._answer(502, b"<html>Bad Gateway</html>")
        elif fault == "strange":
            self._answer(200, b"<html>Please log in</html>")
        elif fault == "half":
            self._answer(status, answer, sent=len(answer) // 2)
        elif fault != "lost":
            self._answer(status, answer)
        self.close_connection = fault is not None

    def _forward(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.upstream).netloc, timeout=60)
        with contextlib.closing(connection):
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            connection.request("POST", self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def _parameter(self, name: str) -> None:
        self.endpoint.calls.append({"Action": "GetParameter", "Name": name})
        value = self.endpoint.parameters.get(name)
        if value is None:
            self._answer(400, b'{"__type": "ParameterNotFound", "message": "there is none"}')
        else:
            self._answer(200, json.dumps({"Parameter": {"Name": name, "Value": value}}).encode())

    def _document(self, call: str) -> None:
        self.endpoint.calls.append({"Action": call})
        if call in self.endpoint.denied:
            self._answer(400, b'{"__type": "AccessDeniedException", "message": "not authorized to perform that"}')
        else:
            self._answer(200, json.dumps(self.endpoint.documents.get(call, {})).encode())

    def _error(self, status: int, code: str, message: str) -> None:
        error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self._answer(status, f"<Response><Errors>{error}</Errors></Response>".encode())

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string((timestamp or time.time()) + self.endpoint.ahead_s)

    def _answer(self, status: int, body: bytes, *, sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:sent])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        pass


@pytest.fixture(scope="session")
def shared_endpoint(moto_url: str) -> Iterator[Endpoint]:
    class Handler(_Handler):
        upstream = moto_url

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Handler.endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def endpoint(shared_endpoint: Endpoint) -> Endpoint:
    known = shared_endpoint
    for memory in (known.calls, known.faults, known.parameters, known.answers, known.denied, known.refused):
        memory.clear()
    known.documents.clear()
    known.ahead_s = 0.0
    return shared_endpoint


@pytest.fixture(scope="session")
def shared_aws(shared_endpoint: Endpoint) -> Aws:
    return connect(region="us-east-1", endpoint_url=shared_endpoint.url, access_key="AKIDEXAMPLE", secret_key="secret")


@pytest.fixture
def aws(shared_aws: Aws, endpoint: Endpoint) -> Aws:
    """The same clients for every test, since making them is slow; what the endpoint remembers is cleared."""
    return shared_aws


@pytest.fixture
def ledger_id() -> str:
    """Tests share one region: what belongs to a test carries its own ledger's id."""
    return f"ledger-{uuid.uuid4()}"


@pytest.fixture
def tags(ledger_id: str) -> dict[str, str]:
    return {"cloudrun:ledger": ledger_id, "cloudrun:launch": "launch-1", "Name": "cloudrun launch-1"}


@pytest.fixture
def request_for_two(aws: Aws, tags: dict[str, str]) -> LaunchRequest:
    ec2 = aws.client("ec2")
    group = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]
    name = f"key-{uuid.uuid4()}"
    ec2.create_key_pair(KeyName=name)
    return LaunchRequest(
        client_token=str(uuid.uuid4()),
        count=2,
        instance_type="m7i.large",
        image_id="ami-00000000000000002",
        root_device="/dev/sda1",
        volume_gib=20,
        key_name=name,
        security_group_id=group,
        user_data="#cloud-config\n",
        tags=tags,
    )
