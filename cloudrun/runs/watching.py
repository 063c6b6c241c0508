"""Looking at runs that go on: what they do, and what they print, from any byte on. Nothing here changes a machine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeVar

from cloudrun import wiring
from cloudrun.core import rundir
from cloudrun.core.clock import SystemClock
from cloudrun.core.errors import CloudrunError, ConnectionLost, Interrupted, NotFound, UsageError
from cloudrun.core.events import Note, Observer, nobody
from cloudrun.core.records import Artifact, AttemptRecord, Instance, JobStatus, Place, RunRecord, UnitRecord
from cloudrun.core.states import EndReason, RunState, is_terminal
from cloudrun.ledger import Ledger
from cloudrun.ledger.parts import CHUNK_BYTES
from cloudrun.plan.endings import at_its_deadline, verdict
from cloudrun.plan.interruptions import was_interrupted
from cloudrun.plan.quantities import duration_text
from cloudrun.runs import bucket
from cloudrun.runs.homecoming import earlier_log
from cloudrun.runs.pulling import never_started
from cloudrun.units.clients import is_alive
from cloudrun.units.connection import connected
from cloudrun.wiring import Cloud

LOOK_S = 5.0  # for one unit to say what its runs do
GLANCE_S = 10.0  # for all of them where what the ledger has is waited for, too
LOGIN_S = 30.0
LOOKERS = 8

Sink = Callable[[str, bytes], None]  # ("stdout" or "stderr", bytes)


@dataclass(frozen=True)
class Seen:
    """A run that is not over. `word` is what it does, `next_step` what its user may want to type."""

    run: RunRecord
    word: str  # queued, shipping, running, done, failed, cancelled, lost, interrupted, in its bucket, gone, unknown
    unit: UnitRecord | None = None
    status: JobStatus | None = None
    attended: bool = False  # a process on some computer looks after it
    next_step: str = ""
    problem: str = ""  # why its unit did not say

    @property
    def deadline(self) -> datetime | None:
        """When its unit powers itself off; None where it has none, or none any more."""
        return None if self.unit is None or self.word in ("gone", "in its bucket") else self.unit.deadline


def look(ledger: Ledger, profile: str | None = None) -> list[Seen]:
    """Every run that is not over and no grid's, oldest first, as its unit tells it now: one describe for each place and
    one connection for each unit, however many runs are on it."""
    return _look(ledger, ledger.unfinished_alone(), profile)


def glance(ledger: Ledger, run: RunRecord, profile: str | None = None) -> Seen:
    """As `look`, at one run that is not over. Where nobody answers within `GLANCE_S` seconds it is unknown what it
    does: who asks for what is known here is not kept waiting for what is not."""
    return within(
        GLANCE_S,
        lambda: _look(ledger, [run], profile)[0],
        lambda: Seen(run, "unknown", problem=f"its machine did not say what it does within {duration_text(GLANCE_S)}"),
    )


Answer = TypeVar("Answer")
Thing = TypeVar("Thing")


def within(seconds: float, ask: Callable[[], Answer], otherwise: Callable[[], Answer]) -> Answer:
    """What `ask` returns, or `otherwise` where that takes longer than so many seconds: it is let go on by itself then,
    and must not be about to change anything. Raises what `ask` does."""
    future: Future[Answer] = Future()
    threading.Thread(target=_answer, args=(future, ask), name="cloudrun-glance", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():
            raise
        return otherwise()


def each_of(things: Sequence[Thing], ask: Callable[[Thing], Answer], threads: int) -> list[Answer]:
    """What `ask` returns for each, so many at a time. Raises what one of them does.

    Unlike an executor's, these threads keep no process from ending: who has stopped waiting `within` some seconds may
    have ended before one that does not answer is given up.
    """
    answers = [Future[Answer]() for _ in things]
    left = deque(zip(answers, things, strict=True))

    def work() -> None:
        with suppress(IndexError):
            while True:
                future, thing = left.popleft()
                _answer(future, partial(ask, thing))

    for _ in range(min(threads, len(things))):
        threading.Thread(target=work, name="cloudrun-look", daemon=True).start()
    return [future.result() for future in answers]


def _answer(future: Future[Answer], ask: Callable[[], Answer]) -> None:
    try:
        future.set_result(ask())
    except BaseException as error:  # noqa: BLE001 - it is raised where the answer is waited for
        future.set_exception(error)


def _look(ledger: Ledger, runs: Sequence[RunRecord], profile: str | None) -> list[Seen]:
    seen: dict[str, Seen] = {}
    on_units: dict[str, list[tuple[RunRecord, AttemptRecord]]] = {}
    for run in runs:
        attempts = ledger.attempts(run.run_id)
        if attempts and run.state is not RunState.QUEUED:
            on_units.setdefault(attempts[-1].instance_id, []).append((run, attempts[-1]))
        else:
            verb = "attach" if attempts else "cancel"
            seen[run.run_id] = Seen(run, "queued", next_step=f"cloudrun {verb} {run.run_id}")
    if on_units:
        units = [ledger.unit(instance_id) for instance_id in on_units]
        found = described(units, profile)
        looks = each_of(
            units, lambda unit: _look_at(ledger, unit, found[unit.place], on_units[unit.instance_id]), LOOKERS
        )
        seen.update((each.run.run_id, each) for looked in looks for each in looked)
    return [seen[run.run_id] for run in runs]


Found = tuple[Cloud | None, Mapping[str, Instance]] | CloudrunError  # a place as it is now, or why nobody knows


def described(units: Sequence[UnitRecord], profile: str | None) -> dict[Place, Found]:
    """One describe for each place that they are in."""
    found: dict[Place, Found] = {}
    for place in dict.fromkeys(unit.place for unit in units):
        try:
            cloud = wiring.reconnect(place, profile)
            ids = [unit.instance_id for unit in units if unit.place == place]
            found[place] = (cloud, cloud.instances.describe(ids) if cloud else {})
        except CloudrunError as error:
            found[place] = error
    return found


def _look_at(
    ledger: Ledger, unit: UnitRecord, found: Found, on_it: Sequence[tuple[RunRecord, AttemptRecord]]
) -> list[Seen]:
    attended = is_alive(ledger.client(unit.client_id), SystemClock().now())
    told: dict[str, JobStatus | None] = {}
    try:
        if isinstance(found, CloudrunError):
            raise found
        cloud = runs_at(unit, found[0], found[1].get(unit.instance_id))
        with connected(cloud, ledger, unit, nobody, timeout_s=LOOK_S) as connection:
            for run, attempt in on_it:
                told[run.run_id] = connection.agent.status(rundir.run_dir(run.run_id, attempt.number))
    except CloudrunError as error:
        return [_unseen(run, attempt, unit, error, attended) for run, attempt in on_it]
    return [_seen(run, unit, told[run.run_id], attended) for run, _ in on_it]


def _unseen(run: RunRecord, attempt: AttemptRecord, unit: UnitRecord, error: CloudrunError, attended: bool) -> Seen:
    if isinstance(error, Interrupted):
        word, step = "gone", f"cloudrun attach {run.run_id}"
    elif isinstance(error, Gone) and attempt.store:
        word, step = "in its bucket", f"cloudrun pull {run.run_id}"
    elif isinstance(error, Gone):
        word, step = "gone", "cloudrun reap"
    else:
        word, step = "unknown", error.next_step
    return Seen(run, word, unit, None, attended, "" if attended else step, str(error))


def _seen(run: RunRecord, unit: UnitRecord, status: JobStatus | None, attended: bool) -> Seen:
    verb = "pull"
    if status is None:
        word, verb = "shipping", "cancel"
    elif status.state != "exited":
        word, verb = "waiting" if status.state == "queued" else "running", "attach"
    elif status.reason == "interrupted":
        word, verb = "interrupted", "attach"
    else:
        state = verdict(status).state
        word = "done" if state is RunState.SUCCEEDED else str(state)
    return Seen(run, word, unit, status, attended, "" if attended else f"cloudrun {verb} {run.run_id}")


class Gone(ConnectionLost):
    """The unit does not run any more, as EC2 tells it."""


def running(unit: UnitRecord, profile: str | None) -> Cloud:
    """The place of a unit that runs, as EC2 tells it. Raises Gone, and Interrupted where the provider took it back."""
    cloud = wiring.reconnect(unit.place, profile)
    return runs_at(unit, cloud, cloud.instances.describe([unit.instance_id]).get(unit.instance_id) if cloud else None)


def runs_at(unit: UnitRecord, cloud: Cloud | None, found: Instance | None) -> Cloud:
    """As `running`, where EC2 has been asked."""
    if cloud is None:
        raise Gone(f"{unit.instance_id} went away with its sandbox", next_step="cloudrun reap")
    if found is not None and was_interrupted(found):
        raise Interrupted(f"{unit.instance_id} was taken back by the provider", next_step="cloudrun ps")
    if found is None or found.state != "running":
        raise Gone(f"{unit.instance_id} {how_it_went(unit, found)}", next_step="cloudrun reap")
    return cloud


def how_it_went(unit: UnitRecord, found: Instance | None) -> str:
    """ "is terminated: its deadline was ...": what can be said of a unit that does not run."""
    gone = f"is {found.state if found else 'gone'}"
    if at_its_deadline(unit.deadline, found, SystemClock().now()):
        gone += f": its deadline was {unit.deadline:%Y-%m-%d %H:%M} UTC"
    return gone


# -- what it prints --------------------------------------------------------------------------------------------------


def read_logs(
    ledger: Ledger,
    reference: str,
    sink: Sink,
    *,
    offsets: Mapping[str, int] | None = None,
    attempt: int | None = None,
    follow: bool = False,
    profile: str | None = None,
    observe: Observer = nobody,
) -> RunRecord:
    """Hand on what an attempt of a run has printed from `offsets` (bytes) on, and with `follow` what it prints until it
    ends; over as many connections as that takes, no byte twice and none left out. Returns the run as it is then.

    `attempt` is its number, from 1; None is the last. Where there are others, it is said how to come to theirs. Raises
    NotFound, UsageError (no such attempt), ConnectionLost where its unit is gone and its log is not home.
    """
    run = ledger.run(reference)
    positions = {"stdout": 0, "stderr": 0, **(offsets or {})}

    def count(stream: str, data: bytes) -> None:
        positions[stream] += len(data)
        sink(stream, data)

    attempts = ledger.attempts(run.run_id)
    if attempt is None:
        earlier_logs_note(run, attempts, observe)
    elif not 1 <= attempt <= len(attempts):
        raise UsageError(
            f"{run.run_id} has no attempt {attempt}: it has had {len(attempts)}",
            next_step=f"cloudrun logs {run.run_id} shows the last",
        )
    number = attempt or len(attempts)
    over = number < len(attempts) or run.state is RunState.QUEUED
    if attempts and (over or attempts[-1].end_reason is EndReason.INTERRUPTED):
        _from_store(ledger, run, attempts[number - 1].outputs, count, positions, number)
        return run
    if not is_terminal(run.state) and attempts:
        try:
            follow_attempt(ledger, run, attempts[-1], count, positions, wait=follow, profile=profile, observe=observe)
            return ledger.run(run.run_id)
        except ConnectionLost:
            run = ledger.run(run.run_id)  # its client may have brought it home and ended the unit
            if not is_terminal(run.state):
                if not _from_bucket(ledger, attempts[-1], count, positions, profile):
                    raise
                return run
    _from_store(ledger, run, run.artifacts, count, positions)
    return run


def earlier_logs_note(run: RunRecord, attempts: Sequence[AttemptRecord], observe: Observer) -> None:
    """Say where what the attempts before the last have printed can be read."""
    kept = {each.path for each in (*run.artifacts, *(output for attempt in attempts for output in attempt.outputs))}
    for attempt in attempts[:-1]:
        if not kept.isdisjoint({earlier_log(attempt.number, "stdout.log"), earlier_log(attempt.number, "stderr.log")}):
            words = f"cloudrun logs {run.run_id} --attempt {attempt.number}"
            observe(Note(f"this is attempt {len(attempts)}; what attempt {attempt.number} has printed: {words}"))


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
    before: Callable[[], None] = lambda: None,
) -> JobStatus:
    """The log from its unit. `sink` moves `positions`, so that another connection goes on where one was lost. `before`
    is called once, when the unit has answered. Raises NotFound for a run that never started."""
    unit, place = ledger.unit(attempt.instance_id), rundir.run_dir(run.run_id, attempt.number)
    with connected(running(unit, profile), ledger, unit, observe, timeout_s=LOGIN_S) as connection:
        if connection.agent.status(place) is None:
            raise never_started(run)
        before()
        while True:
            try:
                return connection.agent.follow(place, sink, offsets=dict(positions), wait=wait)
            except Interrupted:
                raise
            except ConnectionLost:
                observe(Note("the connection is lost; the job goes on, connecting again", "warning"))
                connection.reopen()


def _from_bucket(
    ledger: Ledger,
    attempt: AttemptRecord,
    sink: Sink,
    positions: Mapping[str, int],
    profile: str | None,
) -> bool:
    """What its unit has put into the bucket before it went; false where it has not come to that."""
    cloud = wiring.reconnect(ledger.unit(attempt.instance_id).place, profile) if attempt.store else None
    stored = bucket.Stored(cloud.storage(), attempt.store) if cloud else None
    if stored is None or not stored.complete:
        return False
    for stream in ("stdout", "stderr"):
        for chunk in stored.log(stream, positions[stream]):
            sink(stream, chunk)
    return True


def _from_store(
    ledger: Ledger,
    run: RunRecord,
    artifacts: Iterable[Artifact],
    sink: Sink,
    positions: Mapping[str, int],
    interrupted: int | None = None,
) -> None:
    """The logs among `artifacts`: those of the run's end, or of the attempt with the number `interrupted`."""
    logs = {artifact.path: artifact for artifact in artifacts if artifact.kind == "log"}
    names = {stream: f"{stream}.log" for stream in ("stdout", "stderr")}
    whose, why = run.run_id, f"it is {run.state}"
    if interrupted is not None:
        names = {stream: earlier_log(interrupted, name) for stream, name in names.items()}
        whose, why = f"attempt {interrupted} of {run.run_id}", "its machine was taken back before it came home"
    if not any(name in logs for name in names.values()):
        raise NotFound(f"{whose} has no log here ({why})", next_step=f"cloudrun show {run.run_id}")
    for stream, name in names.items():
        artifact = logs.get(name)
        if artifact is None:
            continue
        with ledger.artifacts.open(artifact.sha256) as file:
            file.seek(positions[stream])
            while chunk := file.read(CHUNK_BYTES):
                sink(stream, chunk)
