"""A job's output while it runs: from any byte on, in frames, until its status says "exited"."""

from __future__ import annotations

import os
import select
import stat
import time
from typing import Any, BinaryIO, Optional

from cloudrun.agent import jobs, notices
from cloudrun.core import wire
from cloudrun.core.rundir import RunDir

FASTEST_S = 0.001  # how often to look while the job talks
SLOWEST_S = 0.1  # and while it is silent, also where the system says when there is something to see
ALIVE_S = 5.0  # how long to be silent oneself
SUPERVISOR_S = 2.0  # how often to make sure that the supervisor lives


def wait(run: RunDir, stdin: Any, out: BinaryIO) -> dict[str, Any]:
    """Wait for the job's end without its output. Returns as `follow` does."""
    return _until_exited(run, {}, stdin, out)


def follow(run: RunDir, offsets: dict[str, int], stdin: Any, out: BinaryIO, *, wait: bool = True) -> dict[str, Any]:
    """Send both logs from `offsets` (bytes) on as they grow; without `wait`, as far as they go now.

    Returns the status, exited or not. Anything the client says meanwhile ends it early, and so does its going away.
    """
    positions = {wire.STDOUT: offsets.get("stdout", 0), wire.STDERR: offsets.get("stderr", 0)}
    return _until_exited(run, positions, stdin, out, wait)


def _until_exited(
    run: RunDir, positions: dict[bytes, int], stdin: Any, out: BinaryIO, wait: bool = True
) -> dict[str, Any]:
    names = [path.name for path in (run.stdout, run.stderr, run.status)]
    noticed = notices.watch(str(run.root), names) if wait else None
    try:
        return _looking(run, positions, stdin, out, wait, noticed)
    finally:
        if noticed is not None:
            noticed.close()


def _looking(
    run: RunDir, positions: dict[bytes, int], stdin: Any, out: BinaryIO, wait: bool, noticed: Optional[notices.Watch]
) -> dict[str, Any]:
    paths = {wire.STDOUT: run.stdout, wire.STDERR: run.stderr}
    last_news = last_sent = time.monotonic()
    last_check = float("-inf")
    while True:
        # the status first: what is in the logs once it says "exited" is all there will be
        now = time.monotonic()
        if now - last_check >= SUPERVISOR_S:
            status = jobs.status(run)
            last_check = now
        else:
            status = jobs.recorded(run)
        news = False
        for kind, position in positions.items():
            chunk = _read(str(paths[kind]), position)
            if chunk:
                news = True
                positions[kind] = position + len(chunk)
                out.write(wire.pack(kind, chunk))
        if news:
            out.flush()
            last_news = last_sent = now
            continue
        if status is None or status["state"] == "exited" or not wait:
            return {"status": status}
        if now - last_sent >= ALIVE_S:
            out.write(wire.pack(wire.ALIVE))
            out.flush()
            last_sent = now
        pause_s = SLOWEST_S if noticed is not None else min(SLOWEST_S, max(FASTEST_S, (now - last_news) / 20))
        # what was sent behind this request waits in stdin's buffer and ends nothing; what comes now, or an end, does
        if _speaks(stdin, noticed, pause_s):
            return {"status": status}


def _speaks(stdin: Any, noticed: Optional[notices.Watch], pause_s: float) -> bool:
    """Whether the client says something, or has gone, before there is something to see or the time is over."""
    until = time.monotonic() + pause_s
    while True:
        listened = [stdin] if noticed is None else [stdin, noticed]
        ready = select.select(listened, [], [], max(0.0, until - time.monotonic()))[0]
        if stdin in ready:
            return True
        if not ready or (noticed is not None and noticed.drain()):
            return False


def _read(path: str, offset: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # there is none yet, or its job has done something to it
        return b""
    try:
        info = os.fstat(descriptor)
        if info.st_size <= offset or not stat.S_ISREG(info.st_mode):
            return b""
        return os.pread(descriptor, wire.CHUNK, offset)
    except OSError:
        return b""
    finally:
        os.close(descriptor)
