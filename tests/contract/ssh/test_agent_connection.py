"""The agent on a real SSH host: brought there once, whatever Python that has, and reached over lines that break."""

from __future__ import annotations

import io
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloudrun.core import rundir
from cloudrun.core.errors import Cancelled, CloudrunError, ConnectionLost
from cloudrun.core.records import FileEntry
from cloudrun.ssh.agent import Agent
from cloudrun.ssh.archive import archive
from cloudrun.ssh.session import Session
from tests.pythons import find_python
from tests.waiting import WAIT

from .jobs import Printed, entry_of, spec


def test_a_status_survives_the_agent_that_wrote_it(agent: Agent, run_dir: str, host: Any) -> None:
    agent.start(run_dir, spec("pass"))
    ended = agent.follow(run_dir, Printed())
    with Session.open(host.target, timeout_s=60) as another:
        assert Agent(another).status(run_dir) == ended


def test_a_job_outlives_the_connection_and_no_byte_of_it_is_lost(host: Any, line: Any, run_dir: str) -> None:
    code = f"import time\nfor number in range(300): print(number); time.sleep(0.002)\n{WAIT}print('end')\n"
    printed = Printed()

    def cut_after_a_while(stream: str, data: bytes) -> None:
        printed(stream, data)
        if len(printed.stdout) > 100:
            line.cut()

    with Session.open(line.target, timeout_s=60) as session:
        agent = Agent(session)
        agent.start(run_dir, spec(code))
        with pytest.raises(ConnectionLost):
            agent.follow(run_dir, cut_after_a_while)
    (host.home / run_dir / "work" / "go-on").touch()
    with Session.open(line.target, timeout_s=60) as session:
        ended = Agent(session).follow(run_dir, printed, offsets={"stdout": len(printed.stdout)})
    assert ended.exit_code == 0
    assert printed.stdout.decode() == "".join(f"{number}\n" for number in range(300)) + "end\n"


def test_a_silent_line_is_taken_for_dead(line: Any, run_dir: str) -> None:
    with Session.open(line.target, timeout_s=60) as session:
        agent = Agent(session)
        agent.start(run_dir, spec("import time; time.sleep(60)"))
        hasty = Agent(session, silence_s=1)
        hasty.install()
        line.silent.set()
        with pytest.raises(ConnectionLost, match="silent"):
            hasty.follow(run_dir, Printed())
        line.silent.clear()
        agent.cancel(run_dir, grace_s=5)  # the session itself still works: a new channel takes the old one's place


def test_a_silent_line_is_taken_for_dead_by_every_method(line: Any, run_dir: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(20_000_000))
    entry = entry_of(tmp_path / "big")
    log = FileEntry("stdout.log", 1, "0" * 64)
    asked: list[Callable[[Agent], object]] = [
        lambda agent: agent.has_environment("abc"),
        lambda agent: agent.ship(run_dir, tmp_path, [entry]),
        lambda agent: agent.start(run_dir, spec("pass")),
        lambda agent: agent.status(run_dir),
        lambda agent: agent.runs(),
        lambda agent: agent.cancel(run_dir, 1),
        lambda agent: agent.outputs(run_dir),
        lambda agent: agent.fetch_logs(run_dir, [log], lambda _: io.BytesIO()),
        lambda agent: agent.home(run_dir),
        lambda agent: agent.has_data("k"),
        lambda agent: agent.orders(),
        lambda agent: agent.perform(run_dir, tmp_path, [entry], spec("pass"), Printed(), on_started=lambda _: None),
    ]
    with Session.open(line.target, timeout_s=60) as session:
        for ask in asked:
            agent = Agent(session, silence_s=0.3)
            agent.install()
            line.silent.set()
            with pytest.raises(ConnectionLost):
                ask(agent)
            line.silent.clear()


def test_following_can_be_cancelled_and_the_job_goes_on(agent: Agent, run_dir: str) -> None:
    agent.start(run_dir, spec("import time; time.sleep(60)"))
    cancelled = threading.Event()
    timer = threading.Timer(0.2, cancelled.set)
    timer.start()
    with pytest.raises(Cancelled):
        agent.follow(run_dir, Printed(), cancelled=cancelled)
    timer.join()
    status = agent.status(run_dir)
    assert status is not None
    assert status.state == "running"
    agent.cancel(run_dir, grace_s=5)


def test_the_agent_is_brought_once(host: Any, tmp_path: Path, start_host: Any) -> None:
    with start_host("asyncssh", tmp_path) as fresh:
        path = fresh.home / archive().path
        for _ in range(2):
            with Session.open(fresh.target, timeout_s=60) as session:
                Agent(session).install()
                if path.stat().st_mtime_ns != 4 * 10**18:
                    os.utime(path, ns=(4 * 10**18, 4 * 10**18))
        assert path.stat().st_mtime_ns == 4 * 10**18
        assert path.read_bytes() == archive().data
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_unit_without_python_says_so(tmp_path: Path, start_host: Any) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("#!/bin/sh\necho python3: command not found >&2\nexit 127\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    with (
        start_host("asyncssh", tmp_path, first_on_path=str(tmp_path / "bin")) as host,
        Session.open(host.target, timeout_s=60) as session,
        pytest.raises(CloudrunError, match="python3") as caught,
    ):
        Agent(session).install()
    assert "3.9" in caught.value.next_step


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_the_agent_runs_on_other_pythons(tmp_path: Path, start_host: Any, run_dir: str, version: str) -> None:
    python = find_python(version) or pytest.skip(f"no Python {version} here")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(python)
    with (
        start_host("asyncssh", tmp_path, first_on_path=str(tmp_path / "bin")) as host,
        Session.open(host.target, timeout_s=60) as session,
    ):
        agent = Agent(session)
        agent.ship(run_dir, Path(__file__).parent, [entry_of(Path(__file__))])
        agent.start(
            run_dir, spec("import os, sys; print(sys.version); os.mkfifo('pipe'); open('made', 'w').write('x')")
        )
        assert agent.follow(run_dir, Printed()).exit_code == 0
        made = agent.outputs(run_dir)
        assert [entry.path for entry in made.entries] == ["made"]
        assert made.left_out == (("pipe", "a named pipe"),)
        with agent._channels.take() as channel:
            assert channel.hello["python"].startswith(version)


def test_an_environment_is_there_once_it_is_marked(agent: Agent, host: Any) -> None:
    assert not agent.has_environment("abc")
    marker = host.home / rundir.env_ready("abc")
    marker.parent.mkdir(parents=True)
    marker.touch()
    assert agent.has_environment("abc")


def test_a_whole_run_is_one_process_and_a_handful_of_round_trips(session: Session, run_dir: str) -> None:
    """What a run costs on a connection with a long way to go: counted, not timed."""
    agent = Agent(session)
    frames: Counter[str] = Counter()
    with agent._channels.take() as channel:
        ask = channel.ask

        def count(verb: str, **arguments: Any) -> None:
            frames[verb] += 1
            ask(verb, **arguments)

        channel.ask = count  # type: ignore[method-assign]
    agent.ship(run_dir, Path(), [])
    agent.start(run_dir, spec("print('hi')"))
    agent.follow(run_dir, Printed())
    made = agent.outputs(run_dir)
    agent.fetch_logs(run_dir, made.logs, lambda entry: io.BytesIO())
    assert frames == Counter({"ship": 1, "start": 1, "follow": 1, "outputs": 1, "fetch": 1})
    assert agent._channels.idle == 1
    agent.close()
