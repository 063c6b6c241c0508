"""The warden of a unit and whoever is neither owner nor job: the store, and the provider with its notices."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import processes
from tests.waiting import WAIT, until

from .conftest import FOREVER, SAVE, Unit, kill, powers_off

# -- the store -------------------------------------------------------------------------------------------------------


class Answering(BaseHTTPRequestHandler):
    """Takes whatever is posted, after some refusals; and is a metadata service."""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        refused = self.server.refusals > 0  # type: ignore[attr-defined]
        self.server.refusals -= refused  # type: ignore[attr-defined]
        self._answer(403 if refused else 204)

    def do_PUT(self) -> None:
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
        self._answer(200, b"the-token")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "the-token":
            self._answer(401)
        text = self.server.metadata.get(self.path)  # type: ignore[attr-defined]
        self._answer(404 if text is None else 200, json.dumps(text).encode() if text else b"")

    def _answer(self, code: int, text: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@pytest.fixture
def web() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    server.metadata = {}  # type: ignore[attr-defined]
    server.refusals = 0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_outputs_go_into_the_store_and_then_the_unit_goes(unit: Unit, web: Any) -> None:
    web.refusals = 1
    upload = {"url": f"http://127.0.0.1:{web.server_port}/", "fields": {}, "prefix": "p/", "max_bytes": 10**6}
    run = unit.start("open('made', 'w').write('x')", upload=upload)
    unit.orders(power_off_when_done=True)
    unit.hang_up()
    assert powers_off(unit) == "done"
    assert run.dir.stored.exists()


# -- the provider ----------------------------------------------------------------------------------------------------


def metadata_time(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


@pytest.fixture
def spot_unit(unit: Unit, web: Any) -> Unit:
    unit.environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = f"http://127.0.0.1:{web.server_port}/of/this"
    unit.environment["http_proxy"] = "http://127.0.0.1:9"  # nobody asks a proxy about this machine
    unit.orders(spot=True)
    return unit


def test_an_interruption_notice_ends_jobs_and_is_news(spot_unit: Unit, web: Any) -> None:
    run = spot_unit.start(SAVE)
    run.says(b"ready")
    moment = int(time.time()) + 120
    web.metadata["/of/this/latest/meta-data/spot/instance-action"] = {
        "action": "terminate",
        "time": metadata_time(moment),
    }
    ended = run.follow()
    assert (ended["reason"], ended["exit_code"]) == ("interrupted", 0)
    assert spot_unit.ask("orders", orders=None)["news"]["interruption_at"] == moment
    later = spot_unit.start(FOREVER, "later").follow()
    assert later["reason"] == "interrupted"


def test_a_recommendation_is_a_signal_for_whoever_listens_and_nobody_else(spot_unit: Unit, web: Any) -> None:
    deaf = spot_unit.start(f"print('ready'){WAIT}", "deaf")
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('checkpoint', flush=True))\n"
        "child = os.fork()\n"  # it has the handler too
        f"print('ready'){WAIT}\nif child: os.wait()"
    )
    hears = spot_unit.start(code, "hears")
    deaf.says(b"ready")
    until(lambda: hears.dir.stdout.exists() and hears.dir.stdout.read_bytes().count(b"ready") == 2)
    moment = int(time.time())
    path = "/of/this/latest/meta-data/events/recommendations/rebalance"
    web.metadata[path] = {"noticeTime": metadata_time(moment)}
    until(lambda: hears.dir.stdout.read_bytes().count(b"checkpoint") == 2)
    until(lambda: spot_unit.news()["rebalance_at"] == moment)  # until it has written that down, it would tell it again
    first = spot_unit.warden()
    kill(first)
    until(lambda: spot_unit.warden() != first and spot_unit.news().get("warden_pid") == spot_unit.warden())
    web.metadata["/of/this/latest/meta-data/spot/instance-action"] = {
        "action": "terminate",
        "time": metadata_time(moment + 120),
    }
    assert deaf.follow()["reason"] == "interrupted"
    hears.follow()
    assert hears.dir.stdout.read_bytes().count(b"checkpoint") == 2  # once, whatever becomes of the warden
    assert spot_unit.news()["rebalance_at"] == moment


def test_the_provider_is_not_asked_any_more_when_the_orders_say_so(spot_unit: Unit) -> None:
    warden = spot_unit.warden()
    until(lambda: processes.children(warden))
    spot_unit.orders(spot=False)
    until(lambda: not processes.children(warden))


def test_a_metadata_service_that_hangs_keeps_nobody_waiting(unit: Unit, tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        unit.environment["AWS_EC2_METADATA_SERVICE_ENDPOINT"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
        unit.orders(spot=True)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            assert unit.start("print('hello')").follow()["exit_code"] == 0
            until(lambda: unit.news().get("heartbeat_at"))
            assert unit.news()["interruption_at"] is None
