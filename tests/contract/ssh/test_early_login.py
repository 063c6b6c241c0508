"""A login that begins before it is needed: taken once, by whoever means the same machine; closed where nobody does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cloudrun.ssh.keys import make_key
from cloudrun.ssh.stream import SILENCE_S
from cloudrun.units import connection
from cloudrun.units.connection import EarlyLogin
from tests.waiting import until


@pytest.fixture(autouse=True)
def a_computer_that_is_busy_gets_as_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "EARLY_S", 60.0)


def test_it_is_taken_with_an_agent_that_answers(host: Any) -> None:
    with EarlyLogin(host.target) as early:
        found = early.take(host.target)
        assert found is not None
        session, agent = found
        assert agent.runs() is not None
        assert early.take(host.target) is None
    with session:
        assert session.is_alive  # it belongs to whoever took it


def test_one_that_nobody_takes_is_closed(host: Any) -> None:
    with EarlyLogin(host.target) as early:
        early._thread.join()
        found = early._found
    assert found is not None
    assert not found[0].is_alive


def test_one_to_another_machine_is_not_taken(host: Any) -> None:
    with EarlyLogin(host.target) as early:
        assert early.take(replace(host.target, port=host.target.port + 1)) is None


def test_a_machine_with_another_key_is_left_to_the_login_that_says_so(host: Any) -> None:
    wrong = replace(host.target, host_key=make_key("another").public)
    with EarlyLogin(wrong) as early:
        assert early.take(wrong) is None


def test_a_machine_that_does_not_answer_fails_soon_and_silently(
    host: Any, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "EARLY_S", 1.0)
    nobody = replace(host.target, port=free_port)
    with EarlyLogin(nobody) as early:
        assert early.take(nobody) is None


def test_one_whose_machine_falls_silent_is_not_waited_for(start_host: Any, tmp_path: Path) -> None:
    python = tmp_path / "tools" / "python3"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nexec sleep 600\n")
    python.chmod(0o755)
    with start_host("asyncssh", tmp_path, first_on_path=str(python.parent)) as host:

        def give_up() -> None:
            with EarlyLogin(host.target):
                until((tmp_path / "asked").exists)

        client = Thread(target=give_up, daemon=True)
        client.start()
        until((tmp_path / "asked").exists)
        client.join(SILENCE_S * 2 / 3)
        assert not client.is_alive()
