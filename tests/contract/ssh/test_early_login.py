"""A login that begins before it is needed: taken once, by whoever means the same machine; closed where nobody does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloudrun.connection import EarlyLogin
from cloudrun.ssh.keys import make_key


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
        found = early.take(host.target)
        assert found is not None
        early._found = found
    assert not found[0].is_alive


def test_one_to_another_machine_is_not_taken(host: Any) -> None:
    with EarlyLogin(host.target) as early:
        assert early.take(replace(host.target, port=host.target.port + 1)) is None


def test_a_machine_with_another_key_is_left_to_the_login_that_says_so(host: Any) -> None:
    wrong = replace(host.target, host_key=make_key("another").public)
    with EarlyLogin(wrong) as early:
        assert early.take(wrong) is None


def test_a_machine_that_does_not_answer_fails_soon_and_silently(host: Any, free_port: int) -> None:
    nobody = replace(host.target, port=free_port)
    with EarlyLogin(nobody) as early:
        assert early.take(nobody) is None
