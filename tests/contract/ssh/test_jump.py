"""A connection through a jump host: it works as any other, ends as any other, and believes nobody more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from cloudrun.core.errors import ConnectionLost, HostKeyMismatch, JumpRefused, UsageError
from cloudrun.core.records import SshTarget
from cloudrun.ssh.jump import check_way
from cloudrun.ssh.keys import make_key
from cloudrun.ssh.session import Session
from tests.jump_host import JumpHost, jump_host
from tests.waiting import until

from .conftest import Host


@pytest.fixture
def jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JumpHost]:
    folder = tmp_path / "jump"
    folder.mkdir()
    with jump_host(folder) as running:
        monkeypatch.setenv("PATH", f"{running.tools}{os.pathsep}{os.environ['PATH']}")
        yield running


@pytest.fixture
def target(
    start_host: Callable[..., AbstractContextManager[Host]], tmp_path: Path, jump: JumpHost
) -> Iterator[SshTarget]:
    folder = tmp_path / "behind it"
    folder.mkdir()
    with start_host("asyncssh", folder) as host:
        yield replace(host.target, jump=jump.name)


def test_commands_and_bytes_go_through_it(target: SshTarget, jump: JumpHost) -> None:
    check_way(jump.name)
    data = os.urandom(3_000_000)
    with Session.open(target, timeout_s=60) as session:
        assert session.run("wc -c", stdin=data, timeout_s=60).stdout.split() == [str(len(data))]
        tunnel = session._tunnel
    assert jump.connections()[-1] == f"{target.host}:{target.port}"
    assert tunnel is not None
    assert tunnel._process.poll() is not None, "its ssh ends with the session"


def test_the_machine_behind_it_is_still_held_to_its_own_key(target: SshTarget) -> None:
    with pytest.raises(HostKeyMismatch):
        Session.open(replace(target, host_key=make_key("another").public), timeout_s=60)


def test_a_machine_that_does_not_answer_yet_is_waited_for_and_the_jump_hosts_words_are_kept(
    target: SshTarget, free_port: int
) -> None:
    with pytest.raises(ConnectionLost, match=r"no login on .*the jump host .*(refused|failed)") as caught:
        Session.open(replace(target, port=free_port), timeout_s=8)
    assert not isinstance(caught.value, JumpRefused)


def test_one_that_nobody_has_accepted_is_refused_at_once(target: SshTarget, jump: JumpHost) -> None:
    jump.forget()
    with pytest.raises(JumpRefused, match="Host key verification failed") as caught:
        Session.open(target, timeout_s=300)
    assert "ssh -p" in caught.value.next_step
    with pytest.raises(UsageError, match="Host key verification failed"):
        check_way(jump.name)


def test_a_jump_host_that_goes_away_is_noticed(target: SshTarget, tmp_path: Path, jump: JumpHost) -> None:
    with Session.open(target, timeout_s=60) as session:
        tunnel = session._tunnel
        assert tunnel is not None
        tunnel._process.kill()
        until(lambda: not session.is_alive)
        with pytest.raises(ConnectionLost):
            session.run("true", timeout_s=60)
