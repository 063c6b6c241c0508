"""Looking at runs that go on: what they do, and what they print, from any byte on. Nothing here changes a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from cloudrun import wiring
from cloudrun.clients import is_alive
from cloudrun.connection import Connection
from cloudrun.core import rundir
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError, ConnectionLost, Interrupted, NotFound
from cloudrun.core.events import Note, Observer, nobody
from cloudrun.core.records import AttemptRecord, JobStatus, RunRecord, UnitRecord
from cloudrun.core.states import RunState, is_terminal
from cloudrun.ledger import Ledger
from cloudrun.ledger.artifacts import CHUNK_BYTES
from cloudrun.pulling import connect

LOOK_S = 5.0  # for one unit to say what its runs do
LOGIN_S = 30.0
LOOKERS = 8

Sink = Callable[[str, bytes], None]  # ("stdout" or "stderr", bytes)


@dataclass(frozen=True)
class Seen:
    """A run that is not over. `word` is what it does, `next_step` what its user may want to type."""

    run: RunRecord
    word: str  # queued | shipping | running | done | interrupted | gone | unknown
    unit: UnitRecord | None = None
    status: JobStatus | None = None
    attended: bool = False  # a process on some computer looks after it
    next_step: str = ""


def look(ledger: Ledger, profile: str | None = None) -> list[Seen]:
    """Every run that is not over, oldest first, as its unit tells it now."""
    runs = ledger.unfinished_runs()
    if not runs:
        return []
    with ThreadPoolExecutor(LOOKERS, thread_name_prefix="cloudrun-look") as pool:
        return list(pool.map(lambda run: _look_at(ledger, run, profile), runs))


def _look_at(ledger: Ledger, run: RunRecord, profile: str | None) -> Seen:
    attempts = ledger.attempts(run.run_id)
    if not attempts or run.state is RunState.QUEUED:
        step = f"cloudrun attach {run.run_id}" if attempts else ""
        return Seen(run, "queued", next_step=step)
    unit = ledger.unit(attempts[-1].instance_id)
    attended = is_alive(ledger.client(unit.client_id), SystemClock().now())
    try:
        with _connected(ledger, unit, profile, nobody, timeout_s=LOOK_S) as connection:
            status = connection.agent.status(rundir.run_dir(run.run_id, attempts[-1].number))
    except CloudrunError as error:
        gone = isinstance(error, Gone | Interrupted)
        step = f"cloudrun pull {run.run_id}" if gone and attempts[-1].store else "cloudrun reap" if gone else ""
        return Seen(run, "gone" if gone else "unknown", unit, None, attended, "" if attended else step)
    if status is None:
        return Seen(run, "shipping", unit, None, attended)
    word = "running" if status.state != "exited" else "interrupted" if status.reason == "interrupted" else "done"
    verb = {"running": "attach", "done": "pull", "interrupted": "attach"}[word]
    return Seen(run, word, unit, status, attended, "" if attended else f"cloudrun {verb} {run.run_id}")


class Gone(ConnectionLost):
    """The unit does not run any more, as EC2 tells it."""


@contextmanager
def _connected(
    ledger: Ledger, unit: UnitRecord, profile: str | None, observe: Observer, *, timeout_s: float
) -> Iterator[Connection]:
    cloud = wiring.reconnect(unit.place, profile)
    if cloud is None:
        raise Gone(f"{unit.instance_id} went away with its sandbox", next_step="cloudrun reap")
    found = cloud.instances.describe([unit.instance_id]).get(unit.instance_id)
    if found is None or found.state != "running":
        raise Gone(f"{unit.instance_id} is {found.state if found else 'gone'}", next_step="cloudrun reap")
    connection = connect(cloud, ledger, unit, observe)
    try:
        connection.open(timeout_s)
        yield connection
    finally:
        connection.close()


# -- what it prints --------------------------------------------------------------------------------------------------


def read_logs(
    ledger: Ledger,
    reference: str,
    sink: Sink,
    *,
    offsets: Mapping[str, int] | None = None,
    follow: bool = False,
    profile: str | None = None,
    observe: Observer = nobody,
) -> RunRecord:
    """Hand on what a run has printed from `offsets` (bytes) on, and with `follow` what it prints until it ends; over as
    many connections as that takes, no byte twice and none left out. Returns the run as it is then.

    Raises NotFound, ConnectionLost where its unit is gone and its log is not home.
    """
    run = ledger.run(reference)
    positions = {"stdout": 0, "stderr": 0, **(offsets or {})}

    def count(stream: str, data: bytes) -> None:
        positions[stream] += len(data)
        sink(stream, data)

    attempts = ledger.attempts(run.run_id)
    if not is_terminal(run.state) and attempts and run.state is not RunState.QUEUED:
        try:
            follow_attempt(ledger, run, attempts[-1], count, positions, wait=follow, profile=profile, observe=observe)
            return ledger.run(run.run_id)
        except ConnectionLost:
            run = ledger.run(run.run_id)  # its client may have brought it home and ended the unit
            if not is_terminal(run.state):
                raise
    _from_store(ledger, run, count, positions)
    return run


def follow_attempt(
    ledger: Ledger,
    run: RunRecord,
    attempt: AttemptRecord,
    sink: Sink,
    positions: Mapping[str, int],
    *,
    wait: bool,
    profile: str | None,
    observe: Observer,
) -> JobStatus:
    """The log from its unit. `sink` moves `positions`, so that another connection goes on where one was lost."""
    unit, place = ledger.unit(attempt.instance_id), rundir.run_dir(run.run_id, attempt.number)
    with _connected(ledger, unit, profile, observe, timeout_s=LOGIN_S) as connection:
        while True:
            try:
                return connection.agent.follow(place, sink, offsets=dict(positions), wait=wait)
            except Interrupted:
                raise
            except ConnectionLost:
                observe(Note("the connection is lost; the job goes on, connecting again", "warning"))
                connection.reopen()


def _from_store(ledger: Ledger, run: RunRecord, sink: Sink, positions: Mapping[str, int]) -> None:
    logs = {artifact.path: artifact for artifact in run.artifacts if artifact.kind == "log"}
    if not any(name in logs for name in ("stdout.log", "stderr.log")):
        raise NotFound(f"{run.run_id} has no log here (it is {run.state})", next_step=f"cloudrun show {run.run_id}")
    for stream in ("stdout", "stderr"):
        artifact = logs.get(f"{stream}.log")
        if artifact is None:
            continue
        with ledger.artifacts.open(artifact.sha256) as file:
            file.seek(positions[stream])
            while chunk := file.read(CHUNK_BYTES):
                sink(stream, chunk)
