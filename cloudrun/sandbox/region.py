"""The region as it runs inside the daemon: the HTTP server and everything behind it, put together and taken down."""

from __future__ import annotations

import json
import os
import secrets
import string
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from werkzeug.serving import BaseWSGIServer, make_server

from cloudrun import __version__
from cloudrun.core.ids import new_id
from cloudrun.sandbox import shortage
from cloudrun.sandbox.gate import Gate
from cloudrun.sandbox.services import ACCOUNT_ID, SERVICES, Services
from cloudrun.sandbox.sigv4 import Credentials
from cloudrun.sandbox.state import Region, StateDir
from cloudrun.sandbox.wsgi import Application, Environ, StartResponse, answer, request_target

REGION_NAME = "us-east-1"  # the one region there is: what a request must be signed for
HOST = "127.0.0.1"


class RunningRegion:
    """`start` returns once requests are accepted; moto is then still being imported, and early requests wait for it."""

    def __init__(self, state: StateDir, image: Path | None = None) -> None:
        """With an image machines are booted from it; without one they are what works here."""
        self._state = state
        self._image = image
        self._server: BaseWSGIServer | None = None
        self._serving: threading.Thread | None = None
        self._hypervisor: Any = None
        self._metadata: Any = None
        self._ec2: Any = None
        self._spot: Any = None
        self._gate: Gate | None = None
        self._services = Services(REGION_NAME, self._install)

    def start(self) -> None:
        from cloudrun.sandbox import libraries, machine
        from cloudrun.sandbox.bridge import Bridge
        from cloudrun.sandbox.hypervisor import Hypervisor, find_uv
        from cloudrun.sandbox.metadata import PREFIX as METADATA
        from cloudrun.sandbox.metadata import Metadata
        from cloudrun.sandbox.mirror import PREFIX as PACKAGES
        from cloudrun.sandbox.mirror import Mirror

        self._remove_units()
        server = make_server(HOST, 0, self._answer, threaded=True, request_handler=_handler())
        self._server = server
        host = f"{HOST}:{server.port}"
        endpoint_url = f"http://{host}"
        metadata = self._metadata = Metadata(endpoint_url)
        mirror = Mirror(self._state.cache, endpoint_url, find_uv())
        self._hypervisor = Hypervisor(
            self._state.units,
            metadata_url=metadata.url,
            forget_metadata=metadata.forget,
            index_url=mirror.index_url,
            environments=self._state.cache / "environments",
            driver=(lambda: "nspawn") if self._image else machine.driver,
            image=self._image,
            network=Bridge() if self._image else None,
        )
        credentials = Credentials(_access_key(), secrets.token_urlsafe(30), REGION_NAME)
        signed: dict[str, Application] = {**dict.fromkeys(SERVICES, self._services), "sandbox": self._sandbox}
        self._gate = Gate(signed, {METADATA: metadata, PACKAGES: mirror}, credentials, host)
        self._serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._serving.start()
        threading.Thread(target=self._services.load, name="services", daemon=True).start()
        threading.Thread(target=libraries.leave_byte_code, name="byte code", daemon=True).start()
        driver = (
            self._hypervisor.driver()
        )  # tried out while moto is imported; nobody can launch anything before the next line
        self._state.write_region(
            Region(
                endpoint_url=endpoint_url,
                region=REGION_NAME,
                access_key=credentials.access_key,
                secret_key=credentials.secret_key,
                generation=new_id("region"),
                pid=os.getpid(),
                version=__version__,
                python=sys.executable,
                driver=driver,
                weaker=machine.weaker(driver),
            )
        )

    def stop(self) -> None:
        """Take no more requests, end every machine, remove every file but the log and the mirror's cache."""
        if not self.withdrawn:
            self._state.region.unlink(missing_ok=True)
        if self._server is not None and self._serving is not None:
            self._server.shutdown()  # waits for the thread, so there has to be one
            self._serving.join()
            self._server.server_close()
        if self._hypervisor is not None:
            self._hypervisor.end_all()
        self._sweep()

    @property
    def failed(self) -> bool:
        return self._services.error is not None

    @property
    def withdrawn(self) -> bool:
        """Whether `region.json` is not ours any more: somebody removed it, so no client can find this region again."""
        region = self._state.read_region()
        return region is None or region.pid != os.getpid()

    def idle_for_s(self) -> float:
        """Seconds since anybody used the region; 0 while an instance exists that is not terminated."""
        if self._gate is None or self._live_instances():
            return 0.0
        handed_out = time.time() - self._state.region.stat().st_mtime  # touched by `client.ensure`
        return max(0.0, min(handed_out, self._gate.idle_for_s()))

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if self._gate is None:
            return answer(start_response, 503, b"starting")
        return self._gate(environ, start_response)

    def _install(self) -> None:
        from moto.ssm.models import ssm_backends

        from cloudrun.sandbox import ec2, seeds
        from cloudrun.sandbox.spot import Spot

        backend = ec2.install(REGION_NAME, ACCOUNT_ID, self._hypervisor, self._services.locks["ec2"])
        seeds.plant(backend, ssm_backends[ACCOUNT_ID][REGION_NAME])
        self._spot = Spot(backend, self._metadata, self._services.locks["ec2"])
        self._ec2 = backend

    def _live_instances(self) -> bool:
        if self._ec2 is None:
            return False
        with self._services.locks["ec2"]:
            return any(instance.state != "terminated" for instance in self._ec2.all_instances())

    def _sandbox(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """The service `sandbox`, which AWS has not: GET /status, POST /interrupt, POST /shortage."""
        target = request_target(environ)[0]
        if target not in ("/interrupt", "/shortage"):
            return self._status(start_response)
        if not self._services.wait() or self._spot is None or self._ec2 is None:
            return answer(start_response, 503, b"{}", "application/json")
        if target == "/shortage":
            return shortage.answer_wish(self._ec2, self._services.locks["ec2"], environ, start_response)
        return self._spot.answer(environ, start_response)  # type: ignore[no-any-return]

    def _status(self, start_response: StartResponse) -> list[bytes]:
        """What `cloudrun sandbox status` lists."""
        from cloudrun.sandbox.hypervisor import LOGIN_USER

        instances = []
        if self._ec2 is not None:
            with self._services.locks["ec2"]:
                for instance in self._ec2.all_instances():
                    tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
                    port = tags.get("cloudrun:ssh-port")
                    instances.append(
                        {
                            "instance_id": instance.id,
                            "state": instance.state,
                            "instance_type": instance.instance_type,
                            "name": tags.get("Name", ""),
                            "ssh_host": instance.public_ip,
                            "ssh_port": int(port) if port and instance.public_ip else None,
                            "ssh_user": LOGIN_USER,
                        }
                    )
        return answer(start_response, 200, json.dumps({"instances": instances}).encode(), "application/json")

    def _remove_units(self) -> None:
        """What an earlier region left on disk. The machines of a daemon that was killed died with it. Whatever else is
        there is not ours: the directory was somebody's before it was a sandbox's."""
        from cloudrun.sandbox import machine

        self._sweep()
        for directory in self._state.units.glob("i-*"):
            if directory.is_dir() and not directory.is_symlink():
                machine.remove(directory)

    def _sweep(self) -> None:
        """Remove what booted machines may have left outside their directories."""
        if sys.platform.startswith("linux") and os.geteuid() == 0:
            from cloudrun.sandbox import nspawn

            nspawn.sweep_all(self._state.units)


def _access_key() -> str:
    """Looks like one of AWS's (20 letters and digits), and says whose it is."""
    return "SANDBOX" + "".join(secrets.choice(string.ascii_uppercase + string.digits) for _ in range(13))


def _handler() -> Any:
    from werkzeug.serving import WSGIRequestHandler

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120  # seconds a connection may be silent

        def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 (werkzeug's name)
            """Requests are many and say little; failures are logged where they happen."""

    return Handler
