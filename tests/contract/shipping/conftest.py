"""A project, and a unit behind pipes that its files are shipped to."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cloudrun.core import rundir
from cloudrun.core.records import FileEntry
from cloudrun.ssh.agent import Agent
from cloudrun.ssh.session import Session
from tests.agents import bring_agent
from tests.pipes import PipeSession

LARGE = 3_000_000  # bytes: more than what is sent again from its first byte


@pytest.fixture
def unit(tmp_path: Path) -> Iterator[PipeSession]:
    bring_agent(tmp_path / "home")
    session = PipeSession(tmp_path / "home")
    yield session
    session.close()


@pytest.fixture
def agent(unit: PipeSession) -> Agent:
    return agent_of(unit)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def agent_of(unit: PipeSession) -> Agent:
    return Agent(cast("Session", unit))


def entries_of(root: Path) -> list[FileEntry]:
    found = []
    for path in sorted(root.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            found.append(FileEntry(str(path.relative_to(root)), len(data), hashlib.sha256(data).hexdigest(), mode))
    return found


def write(root: Path, files: dict[str, bytes]) -> list[FileEntry]:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return entries_of(root)


def remove(root: Path) -> None:
    """After this the client can send nothing any more: what arrives was on the unit."""
    for path in sorted(root.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def place(number: int) -> str:
    return rundir.run_dir(f"r{number}", 1)


def work(unit: PipeSession, number: int) -> Path:
    return unit.home / place(number) / "work"


def run(agent: Agent, run_dir: str, code: str, **more: Any) -> Any:
    argv = [sys.executable, "-I", "-S", "-c", code]
    agent.start(run_dir, rundir.spec("run", 1, argv, ".", {}, 100_000_000, 1000, 1.0, **more))
    ended = agent.follow(run_dir, lambda *_: None)
    assert ended.exit_code == 0, ended
    return agent.outputs(run_dir)
