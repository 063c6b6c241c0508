"""A run that has ended, its upload, and what a client makes of the bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cloudrun.agent import manifest
from cloudrun.core.rundir import RunDir, write_json
from cloudrun.runs.stored import contents, parse_stored
from tests.bucket_server import Bucket

PREFIX = "ledger/r-1.1/"
STATUS = {"state": "exited", "exit_code": 0}


def begin(folder: Path) -> RunDir:
    """A run whose job has printed a line."""
    run = RunDir(folder)
    run.work.mkdir(parents=True)
    run.stdout.write_bytes(b"hello\n")
    run.stderr.write_bytes(b"")
    return run


def finish(run: RunDir, **files: bytes) -> None:
    """The job has made these files and ended."""
    for name, content in files.items():
        (run.work / name).parent.mkdir(exist_ok=True)
        (run.work / name).write_bytes(content)
    write_json(run.outputs, manifest.outputs(run, 10**12, 10**6, since_ns=0))


def ticket(bucket: Bucket, max_bytes: int = 10**9) -> dict[str, Any]:
    fields = {"policy": "p", "x-amz-signature": "s"}
    return {"url": f"{bucket.url}/results", "fields": fields, "prefix": PREFIX, "max_bytes": max_bytes}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def come_home(bucket: Bucket) -> dict[str, bytes]:
    """What a client makes of the bucket: every output's content, its digest checked."""

    class Store:
        def read(self, _bucket: str, key: str, offset: int = 0) -> Iterator[bytes]:
            yield bucket.objects[key][offset:]

    stored = parse_stored(bucket.objects[PREFIX + "manifest.json"])
    home = {}
    for entry in (*stored.outputs.entries, *stored.outputs.logs):
        content = b"".join(contents(Store(), "results", PREFIX, stored, entry))
        assert digest(content) == entry.sha256
        home[entry.path] = content
    return home
