"""How a booted machine reaches the region: its relays, on this computer's own loopback."""

from __future__ import annotations

import http.server
import os
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloudrun.core.errors import SandboxError
from cloudrun.sandbox import relay, rootfs


class Region(http.server.BaseHTTPRequestHandler):
    """Says what it was asked."""

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told = "\n".join([f"{self.command} {self.path}", *(f"{k.lower()}: {v}" for k, v in self.headers.items())])
        self.send_response(404 if self.path.endswith("nothing") else 200)
        self.send_header("Content-Length", str(len(told.encode()) + len(body)))
        self.end_headers()
        self.wfile.write(told.encode() + body)

    do_PUT = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def region() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Region)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server.server_port
    server.shutdown()
    server.server_close()


@pytest.fixture
def metadata(region: int) -> str:
    listener = socket.create_server(("127.0.0.1", 0))
    arguments = (listener, "127.0.0.1", region, "/_metadata/secret")
    threading.Thread(target=relay.serve_metadata, args=arguments, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("version", ["latest", "2009-04-04", "2021-03-23"])
def test_every_version_of_the_metadata_is_the_machines_own(metadata: str, region: int, version: str) -> None:
    request = urllib.request.Request(f"{metadata}/{version}/meta-data/", headers={"X-aws-ec2-metadata-token": "mine"})
    told = urllib.request.urlopen(request, timeout=120).read().decode().splitlines()
    assert told[0] == "GET /_metadata/secret/latest/meta-data/"
    assert "x-aws-ec2-metadata-token: mine" in told
    assert f"host: 127.0.0.1:{region}" in told, "the region answers to no other name"


def test_a_token_is_asked_for_and_what_is_not_there_is_not_there(metadata: str) -> None:
    token = urllib.request.Request(f"{metadata}/latest/api/token", method="PUT", data=b"")
    assert urllib.request.urlopen(token, timeout=120).read().startswith(b"PUT /_metadata/secret/latest/api/token\n")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{metadata}/latest/nothing", timeout=120)


def test_the_region_is_reached_as_it_is_outside(region: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=relay.relay, args=(listener, "127.0.0.1", region), daemon=True).start()
    body = os.urandom(1 << 20)
    request = urllib.request.Request(f"http://127.0.0.1:{listener.getsockname()[1]}/a", data=body, method="PUT")
    assert urllib.request.urlopen(request, timeout=120).read().endswith(body)


def test_what_is_missing_for_booted_machines_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError) as refused:
        rootfs.check_requirements()
    if not sys.platform.startswith("linux"):
        assert "Linux" in str(refused.value)
    elif os.geteuid() != 0:
        assert "root" in str(refused.value)
    else:
        assert "mmdebstrap, systemd-container" in str(refused.value)
        assert "apt-get install iproute2 mmdebstrap systemd-container" in str(refused.value.next_step)
