"""The provider's side of a shortage: from now on there are so few machines of a type in a zone, or of any at all."""

from __future__ import annotations

import json
import threading
from typing import Any

from cloudrun.sandbox.wsgi import Environ, StartResponse, answer

ZONES = "abcdef"  # of the sandbox's region


def answer_wish(ec2: Any, lock: threading.Lock, environ: Environ, start_response: StartResponse) -> list[bytes]:
    """POST /shortage {"instance_type", "zone", "most"}: without a type `most` is the account's quota, without a zone it
    holds for each; `most` null ends it. Answers with what holds now."""
    try:
        wish = json.load(environ["wsgi.input"])
        name, zone, most = str(wish["instance_type"]), str(wish["zone"]), wish["most"]
        most = None if most is None else max(0, int(most))
    except (ValueError, KeyError, TypeError):
        return answer(start_response, 400, b"{}", "application/json")
    with lock:
        if not name:
            from cloudrun.sandbox.ec2 import INSTANCE_LIMIT

            ec2.instance_limit = INSTANCE_LIMIT if most is None else most
        for each in [zone] if zone else [f"{ec2.region_name}{letter}" for letter in ZONES]:
            if name and most is None:
                ec2.capacity.pop((name, each), None)
            elif name:
                ec2.capacity[name, each] = most
        said = {
            "instances": ec2.instance_limit,
            "capacity": [
                {"instance_type": kind, "zone": place, "most": count}
                for (kind, place), count in sorted(ec2.capacity.items())
            ],
        }
    return answer(start_response, 200, json.dumps(said).encode(), "application/json")
