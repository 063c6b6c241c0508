"""Runs that wait on a unit for their turn: what is on the disk is the queue, so that any warden goes on with it.

A run waits from the moment at which it has a `queued.json` until it has a `status.json`. Its project is copied from one
that all of them share just before it begins, so that a thousand of them take no more room than the few that run.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import IO, Any, Iterator

from cloudrun.agent import datasets, durable, ending, jobs, reuse
from cloudrun.agent.errors import AgentError
from cloudrun.agent.manifest import fingerprint
from cloudrun.agent.wards import grace_of
from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir, read_object, safe_relative, write_json


class Waiting:
    """One run, as it was queued."""

    def __init__(self, run: RunDir, queued: dict[str, Any]) -> None:
        number, tree = queued.get("number"), queued.get("tree")
        self.run = run
        self.name = run.root.name
        self.number = number if isinstance(number, int) else 0
        self.tree = tree if isinstance(tree, str) and safe_relative(tree) else None
        self.spec = read_object(run.spec) or {}
        self.grace_s = grace_of(self.spec)

    def prepare(self) -> None:
        """Put into its work/ what its job is to find there; where that cannot be, the run has ended. In a child."""
        lock = jobs.try_lock(self.run)
        if lock is None:
            return  # an earlier warden's child is still at it
        with lock:
            if os.path.lexists(self.run.status):
                return
            try:
                if self.tree is not None:
                    copy_tree(RunDir(Path.cwd() / rundir.tree_dir(self.tree)), self.run)
                datasets.link(self.run, self.spec.get("data") or {})
            except (AgentError, OSError) as error:
                end = {"state": "exited", "ended_at": time.time(), "error": f"could not be prepared: {error}"}
                durable.try_write(self.run.status, end)

    @contextlib.contextmanager
    def begin(self) -> Iterator[IO[bytes] | None]:
        """Its lock, with a status that says that it starts; None where it is not to start: it has ended, or somebody
        else is at it."""
        lock = None
        with contextlib.suppress(OSError):  # its folder has gone
            lock = jobs.try_lock(self.run)
        if lock is None:
            yield None
            return
        with lock:
            wished = ending.read(self.run)
            if os.path.lexists(self.run.status):
                yield None
            elif wished is not None:
                write_json(self.run.status, {"state": "exited", "reason": wished[1], "ended_at": time.time()})
                yield None
            else:
                write_json(self.run.status, {"state": "starting"}, durably=False)
                yield lock


class Queue:
    """All that wait, as one warden knows them."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}
        self._preparing: set[str] = set()
        self._over: set[str] = set()  # names of runs that do not wait any more: they never will again

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def preparing(self) -> int:
        return len(self._preparing)

    def look(self) -> None:
        """Find out who waits."""
        names = set(jobs.names())
        for name in self._waiting.keys() - names:
            del self._waiting[name]
        self._over &= names
        for name in names - self._over:
            run = RunDir(Path.cwd() / rundir.RUNS / name)
            if os.path.lexists(run.status):
                self._over.add(name)
                self._waiting.pop(name, None)
            elif name not in self._waiting and (queued := read_object(run.queued)) is not None:
                self._waiting[name] = Waiting(run, queued)

    def first(self) -> Waiting | None:
        """Whose turn is next, among those that are not being prepared."""
        ready = (each for each in self._waiting.values() if each.name not in self._preparing)
        return min(ready, key=lambda each: (each.number, each.name), default=None)

    def prepares(self, turn: Waiting) -> None:
        self._preparing.add(turn.name)

    def prepared(self, turn: Waiting) -> None:
        self._preparing.discard(turn.name)

    def forget(self, turn: Waiting) -> None:
        """The next look finds it again, where it still waits."""
        self._waiting.pop(turn.name, None)


def copy_tree(tree: RunDir, run: RunDir) -> None:
    """Make the run's work/ what was shipped to `tree`, and record it as shipped; what is in work/ goes.

    Raises AgentError where the tree is not what it was, OSError.
    """
    known = reuse.recorded(tree)
    if not known:
        raise AgentError("transfer", "its project is not on the unit any more")
    durable.remove_tree(str(run.work))
    entries: list[reuse.Entry] = []
    stats: dict[int, list[int]] = {}
    made = set()
    for index, (path, (sha256, trusted)) in enumerate(known.items()):
        source, target = os.path.join(tree.work, path), os.path.join(run.work, path)
        info = os.lstat(source)
        entries.append((path, info.st_size, sha256, info.st_mode))
        parent = os.path.dirname(target)
        if parent not in made:
            os.makedirs(parent, mode=reuse.FOLDER_MODE, exist_ok=True)
            made.add(parent)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            if not safe_relative(path) or not reuse.copy(source, descriptor, entries[-1], trusted, lambda: None):
                raise AgentError("transfer", f"{path} of its project has changed on the unit")
            os.fchmod(descriptor, reuse.file_mode(info.st_mode))
            stats[index] = fingerprint(os.fstat(descriptor))
        finally:
            os.close(descriptor)
    reuse.write_shipped(run, entries, stats)
