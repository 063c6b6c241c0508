"""One process per job, outside of any SSH session: starts it, watches it, ends what it leaves, writes what it made.

The supervisor holds a lock on `supervisor.lock` from before the job starts until its status says "exited". So a free
lock and an unfinished status mean that the supervisor is gone, whatever its pid is used for by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
import traceback
from pathlib import Path
from typing import IO, Any

from cloudrun.agent import manifest, passport, processes
from cloudrun.core.rundir import RunDir, read_object, write_json

STATES = ("starting", "running", "exited")
POLL_S = 0.2  # how late a cancellation may be noticed; a job's end is noticed at once
HEARTBEAT_S = 1.0
JOB_UMASK = 0o022  # what a login has; the agent's own files are for its user alone
UNKILLABLE_S = 30.0  # a process in uninterruptible sleep outlives SIGKILL; nobody shall wait for it for ever
LEFTOVERS_S = 10.0  # how long to fight for the end of what the job left behind


def start(run: RunDir, spec: dict[str, Any]) -> None:
    """Start the job and return when it runs, or could not. Asked again for the same run, it changes nothing."""
    os.makedirs(run.work, mode=0o700, exist_ok=True)
    while (lock := _try_lock(run)) is None:
        if run.status.exists():
            return  # somebody supervises it already
        time.sleep(0.005)  # somebody is about to
    with lock:
        if run.status.exists():
            return
        write_json(run.spec, spec)
        write_json(run.status, {"state": "starting"})
        reader, writer = os.pipe()
        first = os.fork()
        if first == 0:
            os.close(reader)
            os.setsid()
            if os.fork():
                os._exit(0)
            _supervise_and_exit(run, spec, lock, writer)
        os.close(writer)
        os.waitpid(first, 0)
        os.read(reader, 1)  # a byte when the job runs, or the end of the file when the supervisor is gone
        os.close(reader)


def status(run: RunDir) -> dict[str, Any] | None:
    """`status.json`; where its supervisor is gone without an end, the job is ended and the status says so."""
    known = recorded(run)
    if known is None or known["state"] == "exited":
        return known
    lock = _try_lock(run)
    if lock is None:
        return known
    with lock:
        known = recorded(run) or known  # it may have ended between the two looks
        if known["state"] != "exited":
            pid = known.get("pid")
            if pid and processes.is_same(pid, known.get("pid_started", ""), known.get("boot_id", "")):
                processes.signal_group(pid, signal.SIGKILL)
            known = dict(known, state="exited", ended_at=time.time(), error="the job's supervisor was killed")
            with contextlib.suppress(OSError):  # a full disk: whoever asks next finds out in the same way
                write_json(run.status, known)
        return known


def recorded(run: RunDir) -> dict[str, Any] | None:
    """`status.json` as it is, without asking whether its supervisor lives.

    One that the job has spoilt counts as "running": its supervisor writes another, or is gone, which `status` finds.
    """
    known = read_object(run.status)
    if known is not None and known.get("state") in STATES:
        return known
    return {"state": "running"} if os.path.lexists(run.status) else None


def cancel(run: RunDir, grace_s: float) -> None:
    """Wish for the job's end: SIGTERM to its group, `grace_s` seconds, SIGKILL. A job not started yet never will be."""
    os.makedirs(run.root, mode=0o700, exist_ok=True)
    write_json(run.cancel, {"grace_s": grace_s})
    lock = _try_lock(run)
    if lock is not None:
        with lock:
            if not run.status.exists():
                write_json(run.status, {"state": "exited", "reason": "cancelled", "ended_at": time.time()})


def outputs(run: RunDir) -> dict[str, Any]:
    """`outputs.json`; made now where the supervisor could not, without what only it knows."""
    return read_object(run.outputs) or _outputs(run, read_object(run.spec) or {}, since_ns=0)


def _try_lock(run: RunDir) -> IO[bytes] | None:
    """The run's lock, or None where a supervisor has it. Closing the file frees it, also when the process dies."""
    stream = open(run.lock, "ab")  # noqa: SIM115  # it stays open as long as the lock is held
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        return None
    return stream


def _supervise_and_exit(run: RunDir, spec: dict[str, Any], lock: IO[bytes], ready: int) -> None:
    """The life of the supervisor process; never returns. `lock` is kept open by being an argument of this frame."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        write_json(run.status, _supervise(run, spec, ready))
        code = 0
    except BaseException:  # noqa: BLE001  # the last frame of a process that nobody watches: the status must tell
        with contextlib.suppress(OSError):  # a full disk: the free lock and the unfinished status tell it all the same
            write_json(run.status, {"state": "exited", "ended_at": time.time(), "error": traceback.format_exc()})
    finally:
        lock.close()
        os._exit(code)


def _supervise(run: RunDir, spec: dict[str, Any], ready: int) -> dict[str, Any]:
    wake = _wake_on_child()
    adopts_orphans = processes.adopt_orphans()
    # by the clock that stamps files, which may lag the system's own by a tick
    started_ns = os.stat(run.status).st_mtime_ns
    state: dict[str, Any] = {"state": "running", "started_at": time.time(), "boot_id": processes.boot_id()}
    try:
        job = _spawn(run, spec)
    except OSError as error:
        return dict(state, state="exited", ended_at=time.time(), error=f"could not start: {error}")
    try:
        state.update(pid=job.pid, pid_started=processes.start_time(job.pid))
        write_json(run.status, state)
        os.write(ready, b"!")
        os.close(ready)
        probe = passport.begin(spec["argv"][0])
        reason = _wait(run, job, wake)
    except BaseException:
        processes.signal_group(job.pid, signal.SIGKILL)  # nobody would watch it any more
        raise
    state.update(state="exited", ended_at=time.time(), reason=reason, **_how_it_ended(job))
    made_with = passport.finish(probe)
    if not adopts_orphans:
        processes.signal_group(job.pid, signal.SIGKILL)
    processes.end_descendants(LEFTOVERS_S)
    shutil.rmtree(run.tmp, ignore_errors=True)
    with contextlib.suppress(OSError):  # a full disk: the manifest is made again when somebody asks for it
        write_json(run.outputs, dict(_outputs(run, spec, since_ns=started_ns), **made_with))
    return state


def _how_it_ended(job: subprocess.Popen[bytes]) -> dict[str, Any]:
    if job.returncode is None:
        return {"error": "the job could not be killed"}
    if job.returncode < 0:
        return {"signal": -job.returncode}
    return {"exit_code": job.returncode}


def _outputs(run: RunDir, spec: dict[str, Any], since_ns: int) -> dict[str, Any]:
    return manifest.outputs(run, spec.get("output_max_bytes", 0), spec.get("output_max_files", 0), since_ns)


def _spawn(run: RunDir, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    """The job, in a session and process group of its own, its output going straight to its logs."""
    os.makedirs(run.tmp, mode=0o700, exist_ok=True)
    argv = [str(_from_home(spec["argv"][0])), *spec["argv"][1:]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SSH_")}
    environment.update(PYTHONUNBUFFERED="1", TMPDIR=str(run.tmp))
    home = Path(argv[0]).parent.parent
    if (home / "pyvenv.cfg").exists():  # what `activate` does, so that the job's own subprocesses find the same Python
        environment["VIRTUAL_ENV"] = str(home)
        environment["PATH"] = os.pathsep.join([str(home / "bin"), environment.get("PATH", os.defpath)])
    environment.update(spec["env"])
    folder = os.path.join(run.work, spec["cwd"])
    os.makedirs(folder, exist_ok=True)  # a folder without files was not shipped
    with open(run.stdout, "ab") as stdout, open(run.stderr, "ab") as stderr:
        return subprocess.Popen(
            argv,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            umask=JOB_UMASK,
        )


def _from_home(program: str) -> Path | str:
    """A program given by a path is meant from the home, where the agent was started; a bare name is found on PATH."""
    return Path.cwd() / program if "/" in program else program


def _wait(run: RunDir, job: subprocess.Popen[bytes], wake: int) -> str:
    """Wait until the job's own process has ended, or cannot be ended.

    Returns why the agent ended it, "" where it ended by itself.
    """
    reason = ""
    kill_at = float("inf")
    next_heartbeat = 0.0
    while job.poll() is None:
        now = time.monotonic()
        if now >= next_heartbeat:
            with contextlib.suppress(OSError):  # a full disk is no reason to end a job that may need none
                run.heartbeat.touch()
            next_heartbeat = now + HEARTBEAT_S
        if not reason:
            request = read_object(run.cancel)
            if request is not None:
                reason = "cancelled"
                kill_at = now + request["grace_s"]
                processes.signal_group(job.pid, signal.SIGTERM)
                processes.signal_group(job.pid, signal.SIGCONT)  # a stopped job could not hear it
        if now >= kill_at:
            processes.signal_group(job.pid, signal.SIGKILL)
        if now >= kill_at + UNKILLABLE_S:
            break
        if select.select([wake], [], [], POLL_S)[0]:
            os.read(wake, 512)
    return reason


def _wake_on_child() -> int:
    """A descriptor that becomes readable when a child ends."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # the descriptor is written for handled signals only
    return reader
