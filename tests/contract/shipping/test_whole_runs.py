"""A run as a whole in one call, and the way home of what it made."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudrun.core import rundir
from cloudrun.core.errors import ConnectionLost, TransferError
from cloudrun.core.records import FileEntry
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.ssh.agent import Agent
from tests.pipes import PipeSession
from tests.waiting import PATIENCE_S, until

from .conftest import LARGE, entries_of, place, work, write


def perform(agent: Agent, root: Path, number: int, code: str, **more: Any) -> tuple[Any, list[Any], bytes]:
    started: list[Any] = []
    printed = bytearray()
    argv = [sys.executable, "-I", "-S", "-c", code]
    spec = rundir.spec("run", 1, argv, ".", {}, 100_000_000, 1000, 1.0)
    finished = agent.perform(
        place(number),
        root,
        entries_of(root),
        spec,
        lambda _stream, data: printed.extend(data),
        on_started=started.append,
        **more,
    )
    return finished, started, bytes(printed)


@pytest.mark.parametrize("extra", [b"small", os.urandom(LARGE)], ids=["small", "large"])
def test_a_whole_run_in_one_call(agent: Agent, root: Path, extra: bytes) -> None:
    write(root, {"a": b"project", "extra": extra})
    code = "print(open('a').read()); open('out', 'w').write('made'); open('big', 'w').write('x' * 2_000_000)"
    finished, started, printed = perform(agent, root, 1, code)
    assert (finished.status.state, finished.status.exit_code) == ("exited", 0)
    assert started[0].state in ("running", "exited")
    assert printed == b"project\n"
    assert finished.outputs is not None
    assert [entry.path for entry in finished.outputs.entries] == ["big", "out"]
    named = {
        entry.path: finished.small.get(entry.sha256) for entry in (*finished.outputs.entries, *finished.outputs.logs)
    }
    assert named == {"big": None, "out": b"made", "stdout.log": b"project\n", "stderr.log": b""}


def test_a_whole_run_asked_for_again_runs_once_and_goes_on_where_it_was(
    unit: PipeSession, agent: Agent, root: Path
) -> None:
    write(root, {"a": b"project"})
    code = "open('count', 'a').write('x'); open('a', 'w').write('changed'); print('0123456789')"
    perform(agent, root, 1, code)
    finished, _, printed = perform(agent, root, 1, code, offsets={"stdout": 4})
    assert printed == b"456789\n"
    assert (work(unit, 1) / "count").read_text() == "x"
    assert finished.outputs is not None
    assert [entry.path for entry in finished.outputs.entries] == ["a", "count"]


def test_a_whole_run_that_cannot_be_shipped_does_not_start(unit: PipeSession, agent: Agent, root: Path) -> None:
    entries = write(root, {"a": b"project"})
    spec = rundir.spec("run", 1, ["true"], ".", {}, 1, 1, 1.0)
    (root / "a").write_bytes(b"another")
    with pytest.raises(TransferError, match="a changed"):
        agent.perform(place(1), root, entries, spec, lambda *_: None, on_started=lambda _: None)
    assert agent.status(place(1)) is None


def test_what_there_is_of_a_log_comes_without_waiting(agent: Agent) -> None:
    code = "import time; print('so far', flush=True); time.sleep(60)"
    spec = rundir.spec("run", 1, [sys.executable, "-I", "-S", "-c", code], ".", {}, 1, 1, 1.0)
    agent.start(place(1), spec)
    printed = bytearray()
    give_up = time.monotonic() + PATIENCE_S
    while not printed and time.monotonic() < give_up:
        status = agent.follow(place(1), lambda _, data: printed.extend(data), wait=False, offsets={})
        assert status.state == "running"
    assert printed == b"so far\n"
    agent.cancel(place(1), 0.1)


def test_a_fetch_that_was_cut_goes_on_where_it_was(unit: PipeSession, agent: Agent, root: Path, tmp_path: Path) -> None:
    entries = write(root, {"large": os.urandom(LARGE), "small": b"x", "zero": b""})
    agent.ship(place(1), root, entries)
    store = ArtifactStore(tmp_path / "store")
    written: list[int] = []

    @contextlib.contextmanager
    def breaking(entry: FileEntry) -> Iterator[Any]:
        with store.writer(entry) as writer:
            written.append(getattr(writer, "offset", 0))

            class Limited:
                offset = writer.offset

                def write(self, data: bytes) -> None:
                    writer.write(data)
                    if len(written) == 1:
                        raise ConnectionLost("cut")

            yield Limited()

    with pytest.raises(ConnectionLost):
        agent.fetch(place(1), entries, breaking)
    assert not store.has(entries[0].sha256)
    agent.fetch(place(1), entries, breaking)
    assert written[0] == 0
    assert written[1] >= 1024 * 1024
    assert all(store.path(entry.sha256).read_bytes() == (root / entry.path).read_bytes() for entry in entries)
    assert not list(store.root.rglob("*.part"))


def test_many_small_outputs_come_home_as_a_batch_and_a_cut_loses_none_that_came(
    agent: Agent, root: Path, tmp_path: Path
) -> None:
    entries = write(root, {f"f{number}": b"%d" % number for number in range(300)})
    agent.ship(place(1), root, entries)
    store = ArtifactStore(tmp_path / "store")
    wrong = [*entries[:200], FileEntry("f0", 1, "0" * 64), *entries[200:]]
    with pytest.raises(TransferError, match="f0"), store.batch() as writer:
        agent.fetch(place(1), wrong, writer)
    assert all(store.path(entry.sha256).read_bytes() == (root / entry.path).read_bytes() for entry in entries)
    assert not list(store.root.rglob("*.part"))


def test_a_client_that_asks_nothing_says_that_it_is_there(
    unit: PipeSession, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloudrun.ssh.channels.PING_S", 0.02)
    agent.install()
    before = unit.sent
    until(lambda: unit.sent >= before + 20)
    assert agent.status(place(1)) is None, "the channel is still in step"
    agent.close()
