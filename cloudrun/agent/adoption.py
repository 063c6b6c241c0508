"""A supervisor for a job whose own was killed: it is not the job's parent, and learns of its end from whoever is."""

from __future__ import annotations

import os
import signal
import time
from typing import IO, Any, NoReturn

from cloudrun.agent import durable, ending, jobenv, passport, processes, supervisor
from cloudrun.agent.limits import Meter
from cloudrun.agent.processes import Process
from cloudrun.core.rundir import RunDir, read_object

NOBODY_SAW = "it ended, and nobody saw how"
REBOOTED = "the machine was rebooted under it"
NEVER_RAN = "its supervisors were killed before it ran"
BURIAL_S = 2.0  # how long the job's parent may take to tell
STARTS = 3  # how often to try to start a job whose supervisors are killed before it runs
_TOLD = {"exit_code": int, "signal": int, "reason": str, "ended_at": float}  # of an end; the last by supervisors
_KEPT = ("pid", "pid_started", "boot_id", "started_at", "forked")


def adopt_and_exit(run: RunDir, spec: dict[str, Any], lock: IO[bytes], known: dict[str, Any]) -> NoReturn:
    """The life of such a supervisor. `known` is the unfinished status that the last one left; `lock` stays open."""
    if known.get("state") == "starting":
        _start_and_exit(run, spec, lock, known)
    supervisor.live_and_exit(run, lock, lambda: _adopt(run, spec, known))


def _start_and_exit(run: RunDir, spec: dict[str, Any], lock: IO[bytes], known: dict[str, Any]) -> NoReturn:
    """It was to be started, and nobody knows of a job: whatever there is of it goes, and it is started again."""
    _end_strays(run)
    starts = int(known.get("starts", 1)) + 1
    if starts > STARTS:
        end = {"state": "exited", "ended_at": time.time(), "error": NEVER_RAN}
        supervisor.live_and_exit(run, lock, lambda: end)
    durable.try_write(run.status, {"state": "starting", "starts": starts})
    supervisor.supervise_and_exit(run, spec, lock, os.open(os.devnull, os.O_WRONLY))


def _adopt(run: RunDir, spec: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    state = {name: known[name] for name in _KEPT if name in known}
    pid, started = known.get("pid"), known.get("pid_started", "")
    made_with = passport.begin(jobenv.program(spec)) if spec.get("argv") else None
    wished = ending.read(run)
    reason = wished[1] if wished else ""
    if known.get("boot_id", "") not in ("", processes.boot_id()):
        state["error"] = REBOOTED
    elif not isinstance(pid, int) or not isinstance(started, str) or not started:
        _end_strays(run)  # the job has spoilt its status: nobody knows which process it is
        state["error"] = NOBODY_SAW
    else:
        durable.reserve(run.ended)  # on a full disk its parent can still tell
        job = _Foster(spec, pid, started)
        try:
            if not job.ended():
                reason = supervisor.watch(run, spec, job)
            how = job.how_it_ended(run)
        except BaseException:
            if not job.ended():
                processes.signal_group(pid, signal.SIGKILL)  # nobody would watch it any more
            raise
        job.end_leftovers(run)
        state.update(how, usage=job.meter.usage())
    state = {"ended_at": time.time(), "reason": reason, **state, "state": "exited"}
    supervisor.finish(run, spec, 0, passport.finish(made_with))
    return state


class _Foster:
    """A job that is another process's child."""

    def __init__(self, spec: dict[str, Any], pid: int, started: str) -> None:
        self.pid = pid
        self.meter = Meter(spec, self._members)
        self._started = started
        self._seen: dict[int, str] = {}
        descriptor = processes.open_pidfd(pid)
        # looked at after the descriptor is there: it is this process's, or nobody's
        self.wakes = [descriptor] if descriptor is not None and not self.ended() else []

    def ended(self) -> bool:
        process = self._look()
        return process is None or process.ended()

    def age_s(self) -> float:
        return processes.age_s(self._started)

    def how_it_ended(self, run: RunDir) -> dict[str, Any]:
        """What its parent (which writes before it reaps), the job itself or at last the kernel says of its end."""
        give_up = time.monotonic() + BURIAL_S
        seen: Process | None = None
        while True:
            process = self._look()  # first: where it is gone, what there is then is all there will be
            seen = process or seen
            over = process is None or time.monotonic() >= give_up
            ended = read_object(run.ended) or {}
            told = ended.get("pid") == self.pid and not ended.keys().isdisjoint({"exit_code", "signal"})
            if told and ("usage" in ended or over):
                self.meter.add_recorded(ended.get("usage") or {})
                return {name: ended[name] for name in _TOLD if isinstance(ended.get(name), _TOLD[name])}
            if over and seen is not None and seen.ended():  # its parent is no warden
                return supervisor.how_it_ended(seen.wait_status)
            if over:
                return {"error": NOBODY_SAW} if process is None else supervisor.how_it_ended(None)
            time.sleep(0.005)

    def end_leftovers(self, run: RunDir) -> None:
        give_up = time.monotonic() + supervisor.LEFTOVERS_S
        while time.monotonic() < give_up:
            left = {process.pid for process in self._members() if process.state != "Z"}
            left.update(processes.below(str(run.root)))
            if not left:
                return
            for pid in left:
                processes.signal_one(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _look(self) -> Process | None:
        process = processes.look(self.pid)
        return process if process is not None and process.started == self._started else None

    def _members(self) -> list[Process]:
        """It and its descendants, its session, and whoever was seen among them before."""
        everybody = processes.everybody()
        started = {process.pid: process.started for process in everybody}
        roots = {pid for pid in self._seen if started.get(pid) == self._seen[pid]}
        if started.get(self.pid, self._started) == self._started:  # else its number, and its session's, is another's
            roots.update(process.pid for process in everybody if self.pid in (process.pid, process.session))
        members = processes.tree(roots)
        self._seen = {process.pid: process.started for process in members}
        return members


def _end_strays(run: RunDir) -> None:
    """Kill every process that works in the run's folder."""
    give_up = time.monotonic() + supervisor.LEFTOVERS_S
    while time.monotonic() < give_up:
        strays = processes.below(str(run.root))
        if not strays:
            return
        for pid in strays:
            processes.signal_one(pid, signal.SIGKILL)
        time.sleep(0.005)
