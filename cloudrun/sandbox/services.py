"""The four AWS services the region has, each moto's own application, made when the first request for it arrives.

Importing moto takes most of a second, so it happens in the background: a request that is earlier waits for it. Each
service answers one request at a time, because moto's models take no locks of their own.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import Any

from cloudrun.sandbox.loading import moto_of
from cloudrun.sandbox.wsgi import Application, Environ, StartResponse, aws_error

SERVICES = ("ec2", "s3", "ssm", "sts")
ACCOUNT_ID = "123456789012"  # moto's
LOAD_TIMEOUT_S = 60.0

_LOG = logging.getLogger(__name__)
# Read by moto when it is imported.
_MOTO_ENVIRONMENT = {
    "MOTO_DISABLE_GLOBAL_CORS": "true",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_ENABLE_KEYPAIR_VALIDATION": "true",
    "MOTO_EC2_LOAD_DEFAULT_AMIS": "false",
    "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true",
    # moto asks boto3 for names of regions, and boto3 would look for the user's credentials
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Services:
    """A WSGI application. The gate says in `cloudrun.service` whose request it is."""

    def __init__(self, region: str, install: Any) -> None:
        """`install()` runs once moto is there: it puts the region's own EC2 and its seeds in place."""
        self._region = region
        self._install = install
        self._ready = threading.Event()
        self.error: Exception | None = None
        self._applications: dict[str, Application] = {}
        self.locks = {service: threading.Lock() for service in SERVICES}

    def load(self) -> None:
        """Import moto; meant for a thread of its own."""
        try:
            os.environ.update(_MOTO_ENVIRONMENT)
            with moto_of(self._region):
                self._install()
                with self.locks["ec2"]:
                    self._application("ec2")
        except Exception as error:  # noqa: BLE001 (whatever it is, the daemon must end and its log say why)
            _LOG.exception("the region's services could not be loaded")
            self.error = error
        finally:
            self._ready.set()

    def wait(self) -> bool:
        """Whether moto is there, after at most LOAD_TIMEOUT_S."""
        return self._ready.wait(LOAD_TIMEOUT_S) and self.error is None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Any:
        service = environ["cloudrun.service"]
        if not self.wait():
            return aws_error(service, 503, "ServiceUnavailable", "The sandbox is not up.", start_response)
        with self.locks[service]:
            try:
                return list(self._application(service)(environ, start_response))
            except NotImplementedError as error:
                message = f"The sandbox does not emulate this: {error}"
                return aws_error(service, 400, "UnsupportedOperation", message, start_response)
            except Exception:  # noqa: BLE001 (a defect of moto's or ours fails this request, not the region)
                _LOG.exception("a request failed")
                return aws_error(service, 500, "InternalError", "An internal error; see daemon.log.", start_response)

    def _application(self, service: str) -> Application:
        if service not in self._applications:
            from moto.moto_server.werkzeug_app import create_backend_app

            application = create_backend_app(service)  # type: ignore[arg-type]
            application.debug = False
            application.config["PROPAGATE_EXCEPTIONS"] = True  # to the handler above
            self._applications[service] = application
        return self._applications[service]
