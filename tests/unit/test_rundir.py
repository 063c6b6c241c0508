"""The files of the protocol, written by several threads at once."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudrun.core import rundir


def test_two_threads_that_write_the_same_document_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both_wrote = threading.Barrier(2, timeout=60)
    fsync = os.fsync

    def meet(descriptor: int) -> None:
        both_wrote.wait()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", meet)
    path = tmp_path / "kept.json"
    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(rundir.write_json, path, {"value": 1}) for _ in range(2)]:
            done.result()
    assert rundir.read_json(path) == {"value": 1}
    assert list(tmp_path.iterdir()) == [path]
