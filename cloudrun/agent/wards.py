"""The runs of a unit as its warden knows them: which are active, which have ended and are not safe, which may go."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import time
from pathlib import Path
from typing import IO, Any, Callable, Iterator

from cloudrun.agent import durable, ending, jobs, processes
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir, read_object

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0  # between two tries of an upload
GRACE_S = 30.0  # of a job whose spec the warden cannot read, or that makes no sense
LONGEST_GRACE_S = 7 * 86400.0
LIST_S = 2.0  # how often to look for runs that were started without the warden
GOING = ".going"  # what is being removed is called so


def grace_of(spec: dict[str, Any]) -> float:
    """What a job has to end, in seconds, whatever has become of its spec."""
    grace_s = spec.get("grace_s")
    return float(grace_s) if isinstance(grace_s, (int, float)) and 0 <= grace_s < LONGEST_GRACE_S else GRACE_S


class Ward:
    """One run."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.name = run.root.name
        self.finished = False
        self.safe = False  # home or in the store
        self.home = False
        self.supervisor: int | None = None  # its pid, where it is a child of this warden
        self.spec: dict[str, Any] = {}
        self.unwritten: dict[str, Any] | None = None  # how its job ended, while the disk is full
        self._ended_because: str = ""
        self._upload_at = 0.0
        self._upload_pause_s = FIRST_PAUSE_S

    @property
    def grace_s(self) -> float:
        return grace_of(self.spec)

    def status(self) -> dict[str, Any]:
        return jobs.recorded(self.run) or {}

    def end(self, reason: str, most_s: float) -> None:
        """Wish once for the job's end; it gets its own grace, or `most_s` where that is less."""
        if not self._ended_because:
            with contextlib.suppress(OSError):  # tried again at the next look
                ending.wish(self.run, min(self.grace_s, most_s), reason)
                self._ended_because = reason

    def checkpoint(self) -> None:
        """Send SIGUSR1 to those of the job's processes that have a handler for it, and would not die of it."""
        status = self.status()
        pid = status.get("pid")
        if isinstance(pid, int) and processes.is_same(pid, status.get("pid_started", ""), status.get("boot_id", "")):
            for process in processes.everybody():
                if process.group == pid and processes.catches(process.pid, signal.SIGUSR1):
                    processes.signal_one(process.pid, signal.SIGUSR1)

    def upload(self) -> None:
        """Put its outputs into the store; raises where that fails. In a child."""
        from cloudrun.agent import upload

        spec = read_object(self.run.spec) or self.spec  # its leave may have been renewed
        lock = jobs.try_lock(self.run)
        if lock is not None:  # else an earlier warden's child is still at it
            with lock:
                upload.upload(self.run, spec["upload"], self.status())

    def upload_ended(self) -> None:
        self._upload_at = time.monotonic() + self._upload_pause_s
        self._upload_pause_s = min(LONGEST_PAUSE_S, self._upload_pause_s * 2)

    def wants_upload(self) -> bool:
        return self.finished and not self.safe and bool(self.spec.get("upload")) and time.monotonic() >= self._upload_at

    def look_home(self) -> None:
        self.home = os.path.exists(self.run.home)
        self.safe = self.home or os.path.exists(self.run.stored)


class Wards:
    """All of them. `adopt(ward, status, lock)` is called for an unfinished one that nobody supervises."""

    def __init__(self, adopt: Callable[[Ward, dict[str, Any], IO[bytes]], None]) -> None:
        self._adopt = adopt
        self._all: dict[str, Ward] = {}
        self._new: list[Ward] = []
        self._listed_at = float("-inf")
        self._begun = False

    def add(self, run: RunDir) -> Ward:
        ward = self._all.get(run.root.name)
        if ward is None:
            ward = self._all[run.root.name] = Ward(run)
        if not ward.spec:
            ward.spec = read_object(run.spec) or {}
        return ward

    def look(self) -> None:
        """Find out about every run that has not finished, and about what of the finished ones is safe.

        Raises the first error, after all have been looked at.
        """
        errors: list[Exception] = []
        looks = [functools.partial(self._look_at, ward) for ward in self._all.values()]
        steps: list[Callable[[], None]] = [self._list, *looks]
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001  # one run that is spoilt shall not hide the others
                errors.append(error)
        if errors:
            raise errors[0]

    def _look_at(self, ward: Ward) -> None:
        if not ward.finished:
            self.check(ward)
        if ward.finished and not ward.home:
            ward.look_home()

    def _list(self) -> None:
        now = time.monotonic()
        if now >= self._listed_at + LIST_S:
            self._listed_at = now
            names = set(jobs.names())
            for name in names.difference(self._all):
                run = RunDir(Path.cwd() / rundir.RUNS / name)
                if os.path.lexists(run.status):
                    ward = self.add(run)
                    # what has ended before this warden began is no news
                    ward.finished = not self._begun and ward.status().get("state") == "exited"
                    self._look_at(ward)
            for name in set(self._all).difference(names):
                del self._all[name]
            self._begun = True

    def check(self, ward: Ward) -> None:
        """Whether the run has ended; where it has not and nobody supervises it, it is adopted."""
        if ward.unwritten is not None and durable.try_write(ward.run.ended, ward.unwritten):
            ward.unwritten = None
        if ward.finished:
            return
        try:
            if ward.status().get("state") != "exited":
                lock = jobs.try_lock(ward.run)
                if lock is None:
                    if ward.supervisor is not None:  # its job may have stopped it
                        processes.signal_one(ward.supervisor, signal.SIGCONT)
                    return
                with lock:
                    status = ward.status()  # it may have ended between the two looks
                    if status and status["state"] != "exited":
                        self._adopt(ward, status, lock)
                        return
        except OSError:  # the folder is gone; or no process or descriptor is left, and the job runs all the same
            if not os.path.lexists(ward.run.root):
                self._all.pop(ward.name, None)
            return
        ward.finished = ward.status().get("state") == "exited"
        if ward.finished:
            ward.look_home()
            self._new.append(ward)

    def bury(self, process: processes.Process, ended: dict[str, Any]) -> None:
        """Write down how a job ended that has become the warden's child, where it is one."""
        for ward in self.active():
            status = ward.status()
            if (status.get("pid"), status.get("pid_started")) == (process.pid, process.started):
                if not durable.try_write(ward.run.ended, ended):
                    ward.unwritten = ended
                return

    def active(self) -> list[Ward]:
        return [ward for ward in self._all.values() if not ward.finished]

    def newly_finished(self) -> list[Ward]:
        new, self._new = self._new, []
        return new

    def end(self, reason: str, most_s: float) -> None:
        for ward in self.active():
            ward.end(reason, most_s)

    def unsaved(self) -> int:
        return sum(ward.finished and not ward.safe for ward in self._all.values())

    def to_upload(self) -> Iterator[Ward]:
        return (ward for ward in list(self._all.values()) if ward.wants_upload())

    def removable(self) -> list[Ward]:
        """Those that are home, but the newest: what was shipped for it need not be shipped again."""
        home = [ward for ward in self._all.values() if ward.finished and ward.home]
        home.sort(key=_home_at)
        return home[:-1]


def remove(folders: list[Path]) -> None:
    """Remove whole folders, also those that a job has made unwritable."""
    for folder in folders:
        with contextlib.suppress(OSError):
            lock = jobs.try_lock(RunDir(folder))
            if lock is None:
                continue  # an earlier warden's child still uploads it
            with lock:
                # under another name first: half a run directory is none
                os.rename(folder, folder.with_name(f".{folder.name}{GOING}"))
    for going in Path(rundir.RUNS).glob(".*" + GOING):  # also what an earlier one has not come to the end of
        durable.remove_tree(str(going))


def _home_at(ward: Ward) -> float:
    try:
        return os.stat(ward.run.home).st_mtime
    except OSError:
        return 0.0
