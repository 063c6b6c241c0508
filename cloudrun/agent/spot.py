"""What the provider says of this machine's future: its metadata service is asked every two seconds, by a child."""

from __future__ import annotations

import calendar
import contextlib
import http.client
import json
import os
import time
import urllib.parse
from typing import Any

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"  # as the AWS SDKs have it
DEFAULT_ENDPOINT = "http://169.254.169.254"
POLL_S = 2.0  # AWS recommends 5 s; of the two minutes that a notice leaves, none is to be lost
TIMEOUT_S = 1.0  # the service is on the machine's own link
TOKEN_TTL_S = 21600  # the most there is
_TOKEN = "/latest/api/token"  # noqa: S105  # a path
_INTERRUPTION = "/latest/meta-data/spot/instance-action"
_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


def watch(out: int) -> None:
    """Write a line of JSON to `out` for everything new, as long as the process lives that has started this one."""
    parent = os.getppid()
    metadata = Metadata(os.environ.get(ENDPOINT) or DEFAULT_ENDPOINT)
    known: dict[str, float] = {}
    while os.getppid() == parent:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            news = metadata.news()
            if news != known:
                os.write(out, json.dumps(news).encode("ascii") + b"\n")
                known = news
        time.sleep(POLL_S)


class Metadata:
    """The instance metadata service, version 2."""

    def __init__(self, endpoint: str) -> None:
        address = urllib.parse.urlsplit(endpoint)
        self._host, self._port = address.hostname or "", address.port
        self._prefix = address.path.rstrip("/")
        self._token = ""

    def news(self) -> dict[str, float]:
        """`interruption_at` and `rebalance_at` in seconds since 1970, each where there is one.

        Raises OSError, HTTPException or ValueError where the service does not answer, or not sensibly.
        """
        news = {}
        action = self._get(_INTERRUPTION)
        if action:
            news["interruption_at"] = seconds(action["time"])
        recommendation = self._get(_REBALANCE)
        if recommendation:
            news["rebalance_at"] = seconds(recommendation["noticeTime"])
        return news

    def _get(self, path: str) -> dict[str, Any] | None:
        for _ in range(2):
            if not self._token:
                ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_S)}
                status, text = self._ask("PUT", _TOKEN, ttl)
                if status != 200:
                    raise ValueError(f"the metadata service gives no token: {status}")
                self._token = text.decode("ascii")
            status, text = self._ask("GET", path, {"X-aws-ec2-metadata-token": self._token})
            if status != 401:
                break
            self._token = ""  # it is too old
        if status == 404:
            return None
        answer = json.loads(text) if status == 200 else None
        if not isinstance(answer, dict):
            raise ValueError(f"the metadata service answers {status} {text[:100]!r}")
        return answer

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        # not urllib, which would ask a proxy where the environment names one
        connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            connection.request(method, self._prefix + path, headers=headers)
            response = connection.getresponse()
            return response.status, response.read(65536)
        finally:
            connection.close()


def seconds(moment: str) -> float:
    """Seconds since 1970 of a time as AWS writes it, 2030-01-31T12:00:00Z. Raises ValueError."""
    return float(calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")))
