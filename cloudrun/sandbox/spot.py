"""The provider's side of the spot market: takes an instance back on request, after the notice that EC2 gives.

After "Spot Instance interruption notices" and "EC2 instance rebalance recommendations" (Amazon EC2 User Guide).
"""

from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from moto.ec2.exceptions import EC2ClientError

from cloudrun.sandbox.ec2 import RegionEC2
from cloudrun.sandbox.metadata import Metadata
from cloudrun.sandbox.wsgi import Environ, StartResponse, answer

_NEXT_STEPS = {
    "UnsupportedOperation": "Launch one with `cloudrun submit SCRIPT --spot`.",
    "IncorrectInstanceState": "`cloudrun sandbox status` lists the instances and their states.",
}
LONGEST_S = 7 * 86_400.0  # far beyond any notice; a timer takes no more than some decades


class Spot:
    def __init__(self, ec2: RegionEC2, metadata: Metadata, lock: threading.Lock) -> None:
        """`lock` is the one that EC2 requests are served under."""
        self._ec2 = ec2
        self._metadata = metadata
        self._lock = lock
        self._announced: set[str] = set()

    def answer(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        """POST /interrupt {"instance_id", "in_s", "rebalance"}: what the metadata say now, or "error", its "code" and
        "next_step"."""
        try:
            wish = json.load(environ["wsgi.input"])
            instance_id, in_s, rebalance = str(wish["instance_id"]), float(wish["in_s"]), bool(wish["rebalance"])
        except (ValueError, KeyError, TypeError):
            return answer(start_response, 400, b"{}", "application/json")
        try:
            said = self.interrupt(instance_id, min(max(in_s, 0.0), LONGEST_S), rebalance=rebalance)
        except EC2ClientError as error:
            step = _NEXT_STEPS.get(error.code, "`cloudrun sandbox status` lists the instances.")
            said = {"error": str(error.message), "code": str(error.code), "next_step": step}
        return answer(start_response, 200, json.dumps(said).encode(), "application/json")

    def interrupt(self, instance_id: str, in_s: float, *, rebalance: bool) -> dict[str, str]:
        """Raises EC2ClientError where it is not a running spot instance, or has had its notice."""
        now = datetime.now(UTC)
        with self._lock:
            self._ec2.check_spot(instance_id)
            if rebalance:
                return {"instance_id": instance_id, **self._metadata.announce_rebalance(instance_id, now)}
            if instance_id in self._announced:
                raise EC2ClientError("IncorrectInstanceState", f"The instance '{instance_id}' has had its notice.")
            self._announced.add(instance_id)
            said: dict[str, Any] = self._metadata.announce_interruption(instance_id, now + timedelta(seconds=in_s))
        timer = threading.Timer(in_s, self._ec2.take_back, [instance_id])
        timer.daemon = True  # the region's end is every machine's end
        timer.start()
        return {"instance_id": instance_id, **said}
