"""The region's package mirror: a read-only, caching proxy of this computer's own package index."""

from __future__ import annotations

import secrets
from pathlib import Path

from cloudrun.sandbox.wsgi import Environ, StartResponse, answer

PREFIX = "_packages"


class Mirror:
    def __init__(self, cache: Path, endpoint_url: str) -> None:
        self._cache = cache
        self._secret = secrets.token_urlsafe(24)
        self.index_url = f"{endpoint_url}/{PREFIX}/{self._secret}/simple/"

    def __call__(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        return answer(start_response, 404, b"Not Found")
