"""A stand-in for the warden: a process that owns `Parents`, and runs the same job by a fork and by a fresh Python."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudrun.core import rundir
from cloudrun.core.rundir import RunDir, read_object
from tests.waiting import PATIENCE_S, until

REPOSITORY = Path(__file__).parents[1]
Files = dict[str, str | bytes | Path]  # name in the project -> content, or where a link leads
MODULES = ["numpy", "scipy", "sklearn", "sklearn.ensemble", "joblib", "no_such_module", "os"]
QUICK = [
    "numpy",
    "joblib",
    "no_such_module",
    "os",
]  # forks of it start and end in a third of the time
WARDEN = """
import fcntl, json, os, signal, sys
sys.path.insert(0, sys.argv[1])
os.umask(0o077)
from pathlib import Path
from cloudrun.agent import parents, processes, supervisor
from cloudrun.core.rundir import RunDir, write_json
del sys.path[0]
processes.adopt_orphans()
family = parents.Parents()

def start(root, spec, forked):
    run = RunDir(Path(root))
    os.makedirs(run.work, mode=0o700, exist_ok=True)
    lock = open(run.lock, "ab")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    write_json(run.spec, spec)
    write_json(run.status, {"state": "starting"})
    reader, writer = os.pipe()
    pid = family.start(run, spec, lock.fileno(), writer) if forked else None
    if pid is None and not forked:
        pid = os.fork()
        if pid == 0:
            supervisor.supervise_and_exit(run, spec, lock, writer, spawn=supervisor.spawn_fresh)
    os.close(writer)
    lock.close()
    if pid is not None:
        while os.read(reader, 1) not in (b"!", b""):
            pass
    os.close(reader)
    return pid

def children():
    return [processes.children(os.getpid()), [parent.process.pid for parent in family._parents.values()]]

for line in sys.stdin:
    command, arguments = json.loads(line)
    if command == "start":
        answer = start(*arguments)
    elif command == "children":
        answer = children()
    elif command == "fits":
        answer = family.fits(*arguments) is not None
    elif command == "setenv":
        answer = os.environ.update(*arguments)
    else:
        answer = getattr(family, command)(*arguments)
    alive = {parent.process.pid for parent in family._parents.values()}
    for pid in processes.children(os.getpid()):
        if pid not in alive:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """What a job left: bytes with its own run directory's name replaced, its exit code or minus its signal."""

    stdout: str
    stderr: str
    code: int
    forked: bool
    run: RunDir


class Warden:
    """Owns parents until it is closed or killed. `folder` is the home that programs are relative to."""

    def __init__(
        self,
        folder: Path,
        python: str = sys.executable,
        package: Path = REPOSITORY,
        modules: Sequence[str] = MODULES,
    ) -> None:
        self.python = python
        self.modules = list(modules)
        self.folder = folder
        self.count = 0
        self.process = subprocess.Popen(
            [python, "-I", "-S", "-X", "utf8", "-c", WARDEN, str(package)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8", "SSH_CLIENT": "somebody"},
            text=True,
        )

    def ask(self, command: str, *arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([command, arguments]) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, "the warden has ended"
        return json.loads(line)

    def spec(self, arguments: list[str], **changes: Any) -> dict[str, Any]:
        spec = rundir.spec("r1", 1, [self.python, *arguments], "", {}, 1 << 20, 100, 1.0, preload=self.modules)
        return {**spec, **changes}

    def warm(self, spec: dict[str, Any]) -> None:
        """Have a parent started and wait until it forks."""
        self.ask("warm", spec)
        until(lambda: bool(self.ask("fits", spec)))

    def begin(self, spec: dict[str, Any], files: Files, *, forked: bool) -> RunDir:
        self.count += 1
        # names of one length, so that neither shifts what the other prints
        run = RunDir(self.folder / f"run{self.count:05d}")
        run.work.mkdir(parents=True)
        for name, content in files.items():
            path = run.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        pid = self.ask("start", str(run.root), spec, forked)
        assert (pid is not None) or not (run.root / "stdout.log").exists()
        return run

    def end(self, run: RunDir) -> Ended:
        def over() -> bool:
            return (read_object(run.status) or {}).get("state") == "exited"

        until(over)
        status = read_object(run.status)
        assert status is not None
        assert "error" not in status or not status["error"], status
        code = status["exit_code"] if "exit_code" in status else -status["signal"]

        def text(path: Path) -> str:
            printed = path.read_bytes().decode("utf-8", "surrogateescape").replace(str(run.root), "<run>")
            return re.sub(r"\b0x[0-9a-f]+", "0x", printed)  # addresses are random

        return Ended(text(run.stdout), text(run.stderr), code, status["forked"], run)

    def run(self, spec: dict[str, Any], files: Files, *, forked: bool = True) -> Ended:
        return self.end(self.begin(spec, files, forked=forked))

    def close(self) -> None:
        assert self.process.stdin is not None
        if self.process.poll() is None:
            self.ask("close")
        self.process.stdin.close()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        for path in self.folder.glob("run*"):
            status = read_object(RunDir(path).status) or {}
            if status.get("state") == "running":  # a test has failed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(status["pid"], signal.SIGKILL)
                self.end(RunDir(path))
            shutil.rmtree(path)
