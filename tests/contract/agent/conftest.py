"""A unit without a network: the real agent in a home of its own, spoken to over the pipes of a real `serve`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import processes
from cloudrun.core import rundir, wire
from cloudrun.core.rundir import RunDir, read_object
from cloudrun.ssh.archive import archive
from tests.agents import bring_agent
from tests.leftovers import end_all_in
from tests.pythons import find_python
from tests.waiting import PATIENCE_S, until

FOREVER = "import time; time.sleep(60)"
SAVE = (  # until it is asked to end
    "import signal, sys, time\n"
    "def save(*_):\n    open('partial', 'w').write('half'); sys.exit(0)\n"
    "signal.signal(signal.SIGTERM, save)\nprint('ready')\ntime.sleep(60)"
)


class Unit:
    """`tools` is first on its PATH; commands that power a machine off are harmless there, and leave a note."""

    def __init__(self, folder: Path, python: str = sys.executable) -> None:
        self.home = folder / "home"
        self.tools = folder / "tools"
        self.off = folder / "powered-off"
        self.environment = {"HOME": str(self.home), "PATH": f"{self.tools}:{os.environ['PATH']}"}
        self.python = python
        self._serve: subprocess.Popen[bytes] | None = None
        self.bring(archive().path)
        self.tools.mkdir()
        for name in ("systemctl", "shutdown"):
            self.tool(name, f'echo {name} "$@" >> {self.off}')
        self.tool("sudo", "exit 1")

    def tool(self, name: str, script: str) -> None:
        (self.tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.tools / name).chmod(0o755)

    def bring(self, path: str) -> None:
        """Put the agent there, and use it from now on."""
        self.archive = path
        bring_agent(self.home, path)

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """The reply; frames before it are left out."""
        self.send(wire.REQUEST, {"verb": verb, **arguments})
        return self.reply()

    def send(self, kind: bytes, payload: Any = b"") -> None:
        """One frame of a request; what is not bytes is JSON."""
        if self._serve is None:
            self._serve = subprocess.Popen(
                [self.python, "-I", "-S", "-X", "utf8", self.archive],
                cwd=self.home,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self._serve.stdin is not None
        self._serve.stdin.write(
            wire.pack(kind, payload) if isinstance(payload, bytes) else wire.pack_json(kind, payload)
        )
        self._serve.stdin.flush()

    def reply(self) -> dict[str, Any]:
        assert self._serve is not None
        assert self._serve.stdout is not None
        while True:
            frame = wire.read_frame(self._serve.stdout)
            assert frame is not None
            kind, payload = frame
            assert kind != wire.FAILURE, payload
            if kind == wire.REPLY:
                return dict(json.loads(payload))

    def hang_up(self) -> None:
        if self._serve is not None:
            self._serve.communicate(timeout=PATIENCE_S)
            self._serve = None

    def start(self, code: str, name: str = "run", attempt: int = 1, **limits: Any) -> Run:
        run = Run(self, rundir.run_dir(name, attempt))
        argv = [sys.executable, "-S", "-c", code]
        spec = rundir.spec(name, attempt, argv, ".", limits.pop("env", {}), 10**9, 1000, limits.pop("grace_s", 5.0))
        run.status = self.ask("start", run_dir=run.name, spec=dict(spec, **limits))["status"]
        return run

    def orders(self, orders: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        given = dict(orders or {"deadline": time.time() + 3600, "idle_s": None, "spot": False}, **more)
        return self.ask("orders", orders=given)

    def news(self) -> dict[str, Any]:
        return read_object(self.home / rundir.NEWS) or {}

    def warden(self) -> int:
        """The pid of the living warden, once there is one."""

        def living() -> int:
            noted = read_object(self.home / rundir.WARDEN_LOCK) or {}
            pid = int(noted.get("pid", 0))
            process = processes.look(pid) if pid else None
            return pid if process is not None and process.state != "Z" else 0

        return int(until(living))

    def powered_off(self) -> list[str]:
        return self.off.read_text().splitlines() if self.off.exists() else []

    def end(self) -> None:
        if self._serve is not None:
            self._serve.kill()
            self._serve.communicate()
        end_all_in(self.home)


class Run:
    def __init__(self, unit: Unit, name: str) -> None:
        self.unit = unit
        self.name = name
        self.dir = RunDir(unit.home / name)
        self.status: dict[str, Any] = {}

    @property
    def pid(self) -> int:
        return int(self.status["pid"])

    def supervisor(self) -> int:
        """The pid of the job's parent, which is its supervisor as long as that has not been killed."""
        process = processes.look(self.pid)
        assert process is not None
        return process.parent

    def now(self) -> dict[str, Any]:
        return dict(self.unit.ask("status", run_dir=self.name)["status"])

    def follow(self) -> dict[str, Any]:
        """The status once it has ended."""
        return dict(self.unit.ask("follow", run_dir=self.name, offsets={})["status"])

    def cancel(self, grace_s: float, reason: str = "cancelled") -> dict[str, Any]:
        return dict(self.unit.ask("cancel", run_dir=self.name, grace_s=grace_s, reason=reason)["status"])

    def go_on(self) -> None:
        (self.dir.work / "go-on").touch()

    def says(self, text: bytes) -> None:
        until(lambda: self.dir.stdout.exists() and text in self.dir.stdout.read_bytes())


def kill(pid: int) -> None:
    """Kill -9, and wait until it is gone or nobody but a parent that does not look keeps its name."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)

    def gone() -> bool:
        process = processes.look(pid)
        return process is None or process.state == "Z"

    until(gone)


def kill_together(*pids: int) -> None:
    """None of them sees that another is gone, and puts a new one in its place."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        kill(pid)


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[Unit]:
    if not Path("/proc/self/stat").exists():
        pytest.skip("units run Linux")
    unit = Unit(tmp_path)
    yield unit
    unit.end()


@pytest.fixture
def old_unit(tmp_path: Path) -> Iterator[Unit]:
    """One with the oldest Python that the agent knows."""
    unit = Unit(tmp_path, find_python("3.9") or pytest.skip("no Python 3.9 here"))
    yield unit
    unit.end()


def powers_off(unit: Unit) -> str:
    """Why the unit was powered off, once it was."""
    until(unit.powered_off)
    assert unit.powered_off() == ["systemctl poweroff"]
    assert unit.news()["power_off_at"] <= time.time()
    return str(unit.news()["why"])
