"""What can be done with a run directory, by whoever serves a client: start its job, look at it, end it, list them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import IO, Any

from cloudrun.agent import adoption, ending, locks, summon, supervisor
from cloudrun.agent.errors import AgentError
from cloudrun.core import rundir
from cloudrun.core.rundir import LIST_MAX_BYTES, RunDir, read_object, write_json

STATES = ("starting", "running", "exited")
WAITING = {"state": "queued"}  # what is told of a run that has no status yet, and waits for its turn
ADOPTION_S = 2.0  # how long the warden may take to adopt a job before somebody else does


def start(run: RunDir, spec: dict[str, Any]) -> None:
    """Start the job and return when it runs, or could not. Asked again for the same run, it changes nothing."""
    os.makedirs(run.work, mode=0o700, exist_ok=True)
    while (lock := try_lock(run)) is None:
        if run.status.exists():
            return  # somebody supervises it already
        time.sleep(0.005)  # somebody is about to
    with lock:
        if run.status.exists():
            return  # it has ended, or is about to be adopted
        write_json(run.spec, spec, durably=False)
        write_json(run.status, {"state": "starting"}, durably=False)
        if not summon.start(run, lock):
            _start_here(run, spec, lock)


def queue(run: RunDir, spec: dict[str, Any], number: int, tree: str | None) -> None:
    """Let the warden start the job in its turn, the lowest number first. Asked again, it changes nothing.

    `tree`: the key of the project that it gets then, below trees/; None where its own work/ has it already.
    """
    os.makedirs(run.root, mode=0o700, exist_ok=True)
    if not os.path.lexists(run.status) and not os.path.lexists(run.queued):
        write_json(run.spec, spec)
        write_json(run.queued, {"number": number, "tree": tree})


def status(run: RunDir) -> dict[str, Any] | None:
    """`status.json`; where its supervisor is gone without an end, the job gets another one first."""
    known = recorded(run)
    if _supervised(run, known):
        return recorded(run) if known else None
    give_up = time.monotonic() + ADOPTION_S
    if summon.look():
        while time.monotonic() < give_up:
            if _supervised(run, recorded(run)):
                return recorded(run)
            time.sleep(0.01)
    lock = try_lock(run)
    if lock is not None:
        with lock:
            known = recorded(run)
            if known is not None and known["state"] != "exited":
                _adopt_here(run, known, lock)
    return recorded(run)


def recorded(run: RunDir) -> dict[str, Any] | None:
    """`status.json` as it is, without asking whether its supervisor lives.

    One that the job has spoilt counts as "running": its supervisor writes another, or is gone, which `status` finds.
    A run that waits has none yet, and is "queued".
    """
    known = read_object(run.status)
    if known is not None and known.get("state") in STATES:
        return known
    if os.path.lexists(run.status):
        return {"state": "running"}
    return dict(WAITING) if os.path.lexists(run.queued) else None


def cancel(run: RunDir, grace_s: float, reason: str = "cancelled") -> None:
    """Wish for the job's end, as `ending.wish` does. A job not started yet never will be."""
    if reason not in rundir.REASONS:
        raise AgentError("usage", f"{reason!r} is no reason to end a job")
    os.makedirs(run.work, mode=0o700, exist_ok=True)
    ending.wish(run, grace_s, reason)
    lock = try_lock(run)
    if lock is not None:
        with lock:
            if not run.status.exists():
                write_json(run.status, {"state": "exited", "reason": reason, "ended_at": time.time()})


def outputs(run: RunDir) -> dict[str, Any]:
    """`outputs.json`; made now where the supervisor could not, without what only it knows."""
    return read_object(run.outputs, LIST_MAX_BYTES) or supervisor.outputs_manifest(
        run, read_object(run.spec) or {}, since_ns=0
    )


def home(run: RunDir) -> None:
    """Note that a client has it all, so that the directory may go. Raises AgentError for a job that has not ended."""
    known = recorded(run)
    if known is None:
        return  # it has gone already
    if known["state"] != "exited":
        raise AgentError("usage", f"{run.root.name} has not ended: it cannot be home")
    write_json(run.home, {"at": time.time()}, durably=False)  # else it is kept a while longer


def renew_upload(run: RunDir, upload: dict[str, Any]) -> None:
    """Another leave to upload, for a run whose machine lives longer than the first one does."""
    spec = read_object(run.spec)
    if spec is None:
        raise AgentError("usage", f"{run.root.name} was never started here")
    write_json(run.spec, dict(spec, upload=upload))


def listed() -> list[dict[str, Any]]:
    """Every run directory of this unit: `run_dir`, `status`, `home`, `stored`; sorted by name."""
    found = []
    for name in names():
        run = RunDir(Path.cwd() / rundir.RUNS / name)
        found.append(
            {
                "run_dir": f"{rundir.RUNS}/{name}",
                "status": status(run),
                "home": run.home.exists(),
                "stored": run.stored.exists(),
            }
        )
    return found


def orders(given: dict[str, Any] | None) -> dict[str, Any]:
    """Take new orders for this unit, where there are any; returns those that hold, and what became of the unit."""
    if given is not None:
        if given.get("slots") is None:  # whoever says nothing of them leaves the queue as it is
            former = (read_object(Path(rundir.ORDERS)) or {}).get("slots")
            given = given if former is None else dict(given, slots=former)
        write_json(Path(rundir.ORDERS), given)
    if not summon.look() and given is not None:
        raise AgentError("internal", "no warden can be started on this unit: nobody would carry out its orders")
    return {"orders": read_object(Path(rundir.ORDERS)), "news": read_object(Path(rundir.NEWS)) or {}}


def expect(environment: str, spec: dict[str, Any]) -> None:
    """Such jobs are about to come: while their project is on its way, the warden imports what they need."""
    if os.path.exists(rundir.env_ready(environment)):
        summon.tell({"do": "expect", "spec": spec})


def names() -> list[str]:
    """Of all runs. Raises OSError where nobody can tell: that is not the same as none."""
    try:
        listing = os.listdir(rundir.RUNS)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in listing if name[0] != "." and rundir.safe_relative(name))


def try_lock(run: RunDir) -> IO[bytes] | None:
    """The run's lock, or None where a supervisor has it. Closing the file frees it, also when the process dies."""
    stream = os.fdopen(locks.open_lock(str(run.lock)), "r+b", buffering=0)
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def _supervised(run: RunDir, known: dict[str, Any] | None) -> bool:
    """Whether nobody need care for the run: it has ended, or has a supervisor, or was never started."""
    if known is None or known["state"] in ("exited", "queued"):
        return True
    lock = try_lock(run)
    if lock is not None:
        lock.close()
    # it may have ended between the two looks
    return lock is None or (recorded(run) or known)["state"] == "exited"


def _start_here(run: RunDir, spec: dict[str, Any], lock: IO[bytes]) -> None:
    """Start a supervisor from this process, to outlive it."""
    reader, writer = os.pipe()
    with contextlib.suppress(ChildProcessError):
        _fork(lambda: supervisor.supervise_and_exit(run, spec, lock, writer), close=reader)
    os.close(writer)
    while os.read(reader, 1) == supervisor.TAKEN:
        pass  # then a byte when the job runs, or the end of the file when the supervisor is gone
    os.close(reader)


def _adopt_here(run: RunDir, known: dict[str, Any], lock: IO[bytes]) -> None:
    spec = read_object(run.spec) or {}
    _fork(lambda: adoption.adopt_and_exit(run, spec, lock, known))


def _fork(life: Any, close: int | None = None) -> None:
    first = os.fork()
    if first == 0:
        try:
            if close is not None:
                os.close(close)
            os.setsid()
            if os.fork() == 0:
                life()
        finally:
            os._exit(0)
    os.waitpid(first, 0)
