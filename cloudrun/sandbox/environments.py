"""Environments that the region keeps, so that the next machine boots with them as from an image that was baked.

When a machine ends, the record of each environment on it says what that was built from. The region builds the same once
more, for itself: from wheels, without running anything of theirs, so that nothing a job did to its own copy is in it.
Machines see it read-only. One is built at a time, at low priority.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import queue
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from cloudrun.core.rundir import BASE
from cloudrun.plan.fingerprint import environment_fingerprint

KEPT = 8  # environments, of some 250 MB each where they hold scikit-learn
KEPT_MEANWHILE = 16  # as many until the region starts again: machines may use them, so none is removed before that
ROOM_BYTES = 5 * 1024**3  # left free on the disk
BUILD_TIMEOUT_S = 600.0
RECORD_MAX_BYTES = 1_000_000
ENTRIES_MAX = 1000  # of a machine's folder that are looked at
PACKAGES_TESTS = r"[/\\]tests[/\\]"  # more than half of what a compiler does for scikit-learn; nobody imports them
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._-]+\])?==[A-Za-z0-9.!+_-]+")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}")

_LOG = logging.getLogger(__name__)


class Environments:
    """Safe in any thread. `pythons` are the interpreters by minor version, as in {"3.11": /usr/bin/python3.11}."""

    def __init__(self, folder: Path, uv: Path | None, pythons: Mapping[str, Path], index_url: str | None) -> None:
        self._folder = folder
        self._uv = uv
        self._pythons = pythons
        self._index_url = index_url
        self._waiting: queue.Queue[tuple[str, Record]] = queue.Queue()
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._tidy()
        threading.Thread(target=self._build_all, name="environments", daemon=True).start()

    def ready(self) -> dict[str, Path]:
        """Folders by fingerprint."""
        return {folder.name: folder for folder in self._folder.iterdir() if _FINGERPRINT.fullmatch(folder.name)}

    def learn(self, root: Path, home: str) -> list[str]:
        """Note what the environments in a home of the machine's disk at `root` were built from; the fingerprints of
        those that are new here. The machine may have put anything there."""
        records = _records(root, f"{home}/{BASE}/envs")
        new = [fingerprint for fingerprint in records if not (self._folder / fingerprint).exists()]
        for fingerprint in new:
            self._waiting.put((fingerprint, records[fingerprint]))
        return new

    def stop(self) -> None:
        with self._guard:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _tidy(self) -> None:
        """Remove half-built environments, and those that were not built lately. Only before any machine runs."""
        for folder in self._folder.iterdir():
            if not _FINGERPRINT.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)
        for folder in sorted(self.ready().values(), key=lambda each: each.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(folder, ignore_errors=True)

    def _build_all(self) -> None:
        while True:
            fingerprint, record = self._waiting.get()
            building = self._folder / f"building-{fingerprint}"
            try:
                if not (self._folder / fingerprint).exists() and self._has_room() and self._build(building, record):
                    building.rename(self._folder / fingerprint)
                    _LOG.info("environment %s is kept", fingerprint)
            except (OSError, subprocess.SubprocessError) as error:
                _LOG.info("environment %s is not kept: %s", fingerprint, error)
            finally:
                shutil.rmtree(building, ignore_errors=True)

    def _has_room(self) -> bool:
        return len(self.ready()) < KEPT_MEANWHILE and shutil.disk_usage(self._folder).free > ROOM_BYTES

    def _build(self, folder: Path, record: Record) -> bool:
        python = self._pythons.get(record.python)
        if python is None or self._uv is None or self._index_url is None:
            return False
        shutil.rmtree(folder, ignore_errors=True)
        self._run(
            [str(self._uv), "venv", "--quiet", "--no-project", "--relocatable", "--python", str(python), str(folder)]
        )
        self._run(
            [
                *(str(self._uv), "pip", "install", "--quiet", "--no-config", "--no-cache", "--no-deps"),
                *("--only-binary", ":all:"),
                *("--python", str(folder / "bin" / "python"), *record.requirements),
            ]
        )
        # -S: without `site`, nothing that a package put into a .pth file is executed here.
        self._run([str(python), "-I", "-S", "-m", "compileall", "-q", "-x", PACKAGES_TESTS, str(folder / "lib")])
        (folder / ".ready").write_text(record.text)
        return True

    def _environment(self) -> dict[str, str]:
        """The index goes here and not into a command line, which everybody on this computer can read: its address is a
        secret. No proxy is to hear it either."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("UV_") and not name.lower().endswith("_proxy")
        }
        return {**kept, "UV_DEFAULT_INDEX": self._index_url or ""}

    def _run(self, command: list[str]) -> None:
        with self._guard:
            if self._stopped:
                raise OSError("the region is being stopped")
            self._process = subprocess.Popen(
                ["nice", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environment(),
            )
        try:
            if code := self._process.wait(BUILD_TIMEOUT_S):
                raise OSError(f"{command[0]} {command[1]} ended with {code}")
        finally:
            self._process.kill()
            self._process.wait()


class Record:
    """What the playbook notes in `.ready`. Raises ValueError for anything but exact pins."""

    def __init__(self, text: str) -> None:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise TypeError("not an object")
        self.text = text
        self.python = str(record["python"])
        self.architecture = str(record["architecture"])
        self.requirements = tuple(map(str, record["requirements"]))
        if not all(_PIN.fullmatch(requirement) for requirement in self.requirements):
            raise ValueError("not only exact pins")

    @property
    def fingerprint(self) -> str:
        return environment_fingerprint(self.python, self.architecture, self.requirements)


def _open_below(root: Path, folder: str) -> int:
    """A descriptor of a folder of a machine's disk, which may be full of links: none is followed. Raises OSError."""
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in folder.split("/"):
        try:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
        finally:
            os.close(handle)
        handle = inner
    return handle


def _records(root: Path, folder: str) -> dict[str, Record]:
    """Records by the fingerprint that they really have, whatever the machine calls them."""
    found = {}
    try:
        envs = _open_below(root, folder)
    except OSError:
        return {}
    try:
        with os.scandir(envs) as entries:
            names = [entry.name for entry in itertools.islice(entries, ENTRIES_MAX)]
        for name in sorted(filter(_FINGERPRINT.fullmatch, names))[:KEPT]:
            try:
                record = Record(_read_regular(envs, name))
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                continue
            if record.fingerprint == name:
                found[name] = record
    finally:
        os.close(envs)
    return found


def _read_regular(envs: int, name: str) -> str:
    """The record of an environment: not a FIFO that never ends, nor anything large, nor what a link leads to."""
    folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=envs)
    try:
        descriptor = os.open(".ready", os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"the record of {name} is not a file")
        return stream.read(RECORD_MAX_BYTES).decode()
