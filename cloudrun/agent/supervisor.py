"""One process per job, outside of any SSH session: starts it, watches it, ends what it leaves, writes what it made.

The supervisor holds a lock on `supervisor.lock` from before the job starts until its status says "exited". So a free
lock and an unfinished status mean that the supervisor is gone, whatever its pid is used for by now; then another one
adopts the job (`cloudrun.agent.adoption`).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
import traceback
from typing import IO, Any, Callable, NoReturn, Protocol

from cloudrun.agent import durable, ending, jobenv, manifest, passport, processes, summon
from cloudrun.agent.ending import Ending
from cloudrun.agent.limits import Meter
from cloudrun.core.rundir import RunDir, write_json

POLL_S = 0.2  # how late a cancellation may be noticed; a job's end is noticed at once
HEARTBEAT_S = 1.0
WARDEN_S = 2.0  # how often to make sure that the unit has a warden
LEFTOVERS_S = 10.0  # how long to fight for the end of what the job left behind
TAKEN = b"s"  # what is written to `ready`: there is a supervisor,
RUNNING = b"!"  # and its job runs

State = dict[str, Any]
Spawn = Callable[[RunDir, dict[str, Any]], int]


class Job(Protocol):
    """A job that runs, by whatever way its supervisor came to it."""

    pid: int
    meter: Meter
    wakes: list[int]  # descriptors that become readable when there is something to see

    def ended(self) -> bool: ...
    def age_s(self) -> float: ...


def supervise_and_exit(
    run: RunDir, spec: dict[str, Any], lock: IO[bytes], ready: int, spawn: Spawn | None = None
) -> NoReturn:
    """The life of the supervisor process. `lock` stays open as long; `ready` hears TAKEN, RUNNING, or its own end.

    `spawn` starts the job, as the leader of a session of its own, and returns its pid; by default `spawn_fresh`. Its
    attribute `forked`, where it has one, says after that whether the job is a fork of a preimported parent.
    """
    live_and_exit(run, lock, lambda: _supervise(run, spec, ready, spawn or spawn_fresh))


def live_and_exit(run: RunDir, lock: IO[bytes], life: Callable[[], State | None]) -> NoReturn:
    """Be a process that nobody watches, which records what `life` returns as the job's end (None: there is none)."""
    code = 1
    try:
        with contextlib.suppress(OSError):  # the leader of a session already
            os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        end = life()
        if end is not None:
            durable.write_at_last(run.status, end)
        code = 0
    except BaseException:  # noqa: BLE001  # the last frame of a process that nobody watches: the status must tell
        end = {"state": "exited", "ended_at": time.time(), "error": traceback.format_exc()}
        with contextlib.suppress(Exception):  # the free lock and the unfinished status tell it all the same
            durable.write_at_last(run.status, end)
    finally:
        lock.close()
        os._exit(code)


def spawn_fresh(run: RunDir, spec: dict[str, Any]) -> int:
    """Start the job as a new program, in a session and process group of its own, its output going straight to its logs.

    Raises OSError where it cannot be started.
    """
    argv = [jobenv.program(spec), *spec["argv"][1:]]
    environment = jobenv.environment(run, spec, os.environ)
    folder = jobenv.folder(run, spec)
    with open(run.stdout, "ab") as stdout, open(run.stderr, "ab") as stderr:
        job = subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            umask=jobenv.UMASK,
        )
    job.returncode = 0  # it is not Popen that waits for it
    return job.pid


def watch(run: RunDir, spec: dict[str, Any], job: Job) -> str:
    """Wait until the job's own process has ended, or cannot be ended.

    Returns why the agent ended it, "" where it ended by itself.
    """
    end = Ending(run, job.pid)
    next_heartbeat = 0.0
    next_warden = time.monotonic() + WARDEN_S
    while not job.ended():
        now = time.monotonic()
        if now >= next_heartbeat:
            with contextlib.suppress(OSError):  # a full disk is no reason to end a job that may need none
                run.heartbeat.touch()
            next_heartbeat = now + HEARTBEAT_S
        if now >= next_warden:
            summon.ensure()
            next_warden = now + WARDEN_S
        if now >= job.meter.next_sample:
            job.meter.sample()
        breach = job.meter.breach(job.age_s())
        if breach:
            end.breach(spec["grace_s"], breach)
        end.hear()
        if end.given_up():
            break
        pause_s = POLL_S if end.reason else min(POLL_S, job.meter.due_in_s(job.age_s()))
        for descriptor in select.select(job.wakes, [], [], pause_s)[0]:
            with contextlib.suppress(OSError):  # a pidfd is not read
                os.read(descriptor, 512)
    return end.reason


def finish(run: RunDir, spec: dict[str, Any], since_ns: int, made_with: passport.Passport) -> None:
    """What follows a job's end, before its status says so: its temporary files go, the manifest is made."""
    durable.remove_tree(str(run.tmp))
    try:
        made = outputs_manifest(run, spec, since_ns)
        write_json(run.outputs, dict(made, **made_with))
        if os.path.lexists(run.queued):  # many runs have a copy of the same project, and may wait long to be fetched
            manifest.remove_unchanged(run, made)
    except Exception:  # noqa: BLE001  # a full disk, a spoilt document: how the job ended is to be told all the same
        with contextlib.suppress(OSError):  # it is made when somebody asks for it, and no job makes one
            os.unlink(run.outputs)


def outputs_manifest(run: RunDir, spec: dict[str, Any], since_ns: int) -> dict[str, Any]:
    return manifest.outputs(run, spec.get("output_max_bytes", 0), spec.get("output_max_files", 0), since_ns)


def how_it_ended(wait_status: int | None) -> State:
    if wait_status is None:
        return {"error": "the job could not be killed"}
    if os.WIFSIGNALED(wait_status):
        return {"signal": os.WTERMSIG(wait_status)}
    return {"exit_code": os.WEXITSTATUS(wait_status)}


class _Child:
    """A job that is this process's own child, like every orphan of it."""

    def __init__(self, spec: dict[str, Any], pid: int, wake: int) -> None:
        self.pid = pid
        self.meter = Meter(spec, self._members)
        self.wakes = [wake]
        self.wait_status: int | None = None
        self.asked: passport.Asked = None
        self._begun = time.monotonic()

    def ended(self) -> bool:
        with contextlib.suppress(ChildProcessError):
            while self._reap_one():
                pass
        return self.wait_status is not None

    def age_s(self) -> float:
        return time.monotonic() - self._begun

    def end_leftovers(self) -> None:
        """Kill and reap what the job has left, for LEFTOVERS_S at most (a process may be in uninterruptible sleep)."""
        give_up = time.monotonic() + LEFTOVERS_S
        try:
            while time.monotonic() < give_up:
                if self._reap_one():
                    continue
                left = [pid for pid in processes.children(os.getpid()) if pid != self._asked_pid()]
                if not left:
                    return
                for pid in left:
                    processes.signal_one(pid, signal.SIGKILL)
                time.sleep(0.002)
        except ChildProcessError:
            pass

    def _reap_one(self) -> bool:
        """Reap one child that has ended; False where there is none. Raises ChildProcessError without children."""
        if hasattr(os, "waitid"):
            found = processes.peek()
            if found is None:
                return False
            pid = found.si_pid
            if isinstance(self.asked, subprocess.Popen) and pid == self.asked.pid:
                self.asked.poll()
                return True
        else:
            pid = self.pid  # without waitid nobody can look at one that is not to be reaped yet
        wait_status = self.meter.reap(pid)
        if wait_status is None:
            return False
        if pid == self.pid:
            self.wait_status = wait_status
        return True

    def _members(self) -> list[processes.Process]:
        return processes.tree(pid for pid in processes.children(os.getpid()) if pid != self._asked_pid())

    def _asked_pid(self) -> int | None:
        return self.asked.pid if isinstance(self.asked, subprocess.Popen) else None


def _supervise(run: RunDir, spec: dict[str, Any], ready: int, spawn: Spawn) -> State | None:
    try:
        os.write(ready, TAKEN)
    except BrokenPipeError:
        return None  # whoever wanted it has given up on us, and may be starting it himself
    wake = processes.wake_on_child()
    adopts_orphans = processes.adopt_orphans()
    # by the clock that stamps files, which may lag the system's own by a tick
    started_ns = os.stat(run.status).st_mtime_ns
    state: State = {"state": "running", "started_at": time.time(), "boot_id": processes.boot_id()}
    wished = ending.read(run)
    if wished is not None:
        return {"state": "exited", "reason": wished[1], "ended_at": time.time()}
    try:
        pid = spawn(run, spec)
    except OSError as error:
        return dict(state, state="exited", ended_at=time.time(), error=f"could not start: {error}")
    try:
        state.update(pid=pid, pid_started=processes.start_time(pid), forked=getattr(spawn, "forked", False))
        job = _Child(spec, pid, wake)
        write_json(run.status, state, durably=False)
        with contextlib.suppress(OSError):  # nobody waits for it any more
            os.write(ready, RUNNING)
        os.close(ready)
        job.asked = passport.begin(jobenv.program(spec))
        reason = watch(run, spec, job)
    except BaseException:
        processes.signal_group(pid, signal.SIGKILL)  # nobody would watch it any more
        raise
    end = dict(how_it_ended(job.wait_status), reason=reason, ended_at=time.time())
    state.update(state="exited", **end)
    ending.note(run, dict(end, pid=pid, usage=job.meter.usage()))  # nobody else can tell it any more
    made_with = passport.finish(job.asked)
    job.asked = None
    if not adopts_orphans:
        processes.signal_group(pid, signal.SIGKILL)
    job.end_leftovers()
    state["usage"] = job.meter.usage()
    finish(run, spec, started_ns, made_with)
    return state
