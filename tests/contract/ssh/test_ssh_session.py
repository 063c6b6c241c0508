"""The connection to a unit, against real SSH servers."""

from __future__ import annotations

import os
import socket
import stat
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest
from paramiko.common import MSG_CHANNEL_DATA, MSG_CHANNEL_EOF

from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    ConnectionLost,
    HostKeyMismatch,
    TransferError,
    UsageError,
)
from cloudrun.ssh.agent import Agent
from cloudrun.ssh.keys import make_key
from cloudrun.ssh.session import Session
from cloudrun.ssh.transport import Transport
from tests.waiting import until


def test_a_command_gives_its_exit_code_and_both_outputs(session: Session) -> None:
    result = session.run("echo out; echo err >&2; exit 3", timeout_s=60)
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")


def test_output_is_handed_over_as_it_comes(session: Session) -> None:
    seen: list[bytes] = []
    session.run("printf a; printf b >&2; printf c", timeout_s=60, on_stdout=seen.append, on_stderr=seen.append)
    assert sorted(b"".join(seen)) == sorted(b"abc")


def test_a_command_reads_its_input_while_it_writes(session: Session) -> None:
    text = "0123456789abcdef" * 512 * 1024  # 8 MB, twice the window
    assert session.run("cat", stdin=text.encode(), timeout_s=60).stdout == text


def test_a_command_that_ignores_its_input_is_fine(session: Session) -> None:
    assert session.run("true", stdin=b"x" * 10_000_000, timeout_s=60).exit_code == 0


def test_output_that_is_not_utf8_is_replaced_not_refused(session: Session) -> None:
    assert session.run(r"printf '\377ok'", timeout_s=60).stdout == "\N{REPLACEMENT CHARACTER}ok"


def test_a_command_killed_by_a_signal_has_exit_code_minus_one(session: Session) -> None:
    assert session.run("kill -KILL $$", timeout_s=60).exit_code == -1


def test_a_command_that_takes_too_long_is_an_error_and_the_session_lives_on(session: Session) -> None:
    with pytest.raises(CloudrunError, match="did not end"):
        session.run("exec sleep 5", timeout_s=0.3)
    assert session.run("echo still here", timeout_s=60).stdout == "still here\n"


def test_a_daemon_that_keeps_the_output_open_does_not_keep_us(session: Session) -> None:
    result = session.run("sleep 200 & echo started", timeout_s=60)
    assert (result.exit_code, result.stdout) == (0, "started\n")


def test_several_threads_share_a_session(session: Session) -> None:
    results: list[str] = []

    def work(number: int) -> None:
        results.append(session.run(f"echo {number}", timeout_s=60).stdout.strip())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["0", "1", "2", "3"]


def test_a_changed_host_key_is_refused(host: Any) -> None:
    other = replace(host.target, host_key=make_key("another machine").public)
    with pytest.raises(HostKeyMismatch) as caught:
        Session.open(other, timeout_s=60)
    assert caught.value.next_step


def test_a_key_that_is_not_let_in_is_tried_until_the_time_is_over(host: Any, tmp_path: Path) -> None:
    stranger = tmp_path / "key"
    stranger.write_text(make_key("stranger").private)
    stranger.chmod(0o600)
    with pytest.raises(ConnectionLost, match="no login"):
        Session.open(replace(host.target, key_path=stranger), timeout_s=0.5)


def test_a_private_key_that_cannot_be_read_is_the_callers_mistake(host: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        Session.open(replace(host.target, key_path=tmp_path / "absent"), timeout_s=1)
    (tmp_path / "rubbish").write_text("no key")
    with pytest.raises(UsageError):
        Session.open(replace(host.target, key_path=tmp_path / "rubbish"), timeout_s=1)


@pytest.mark.parametrize("line", ["", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-rsa AAAAB3NzaC1yc2E=", "ssh-ed25519 !"])
def test_a_host_key_that_cannot_be_read_is_the_callers_mistake(host: Any, line: str) -> None:
    with pytest.raises(UsageError):
        Session.open(replace(host.target, host_key=line), timeout_s=1)


def test_nobody_listening_is_an_error_with_a_next_step(host: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: refused
        with pytest.raises(ConnectionLost) as caught:
            Session.open(replace(host.target, port=unused.getsockname()[1]), timeout_s=0.3)
    assert caught.value.next_step


def test_a_listener_that_says_nothing_is_given_up(host: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute, pytest.raises(ConnectionLost):
        Session.open(replace(host.target, port=mute.getsockname()[1]), timeout_s=0.5)


def test_connecting_can_be_cancelled(host: Any) -> None:
    cancelled = threading.Event()
    timer = threading.Timer(0.2, cancelled.set)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        timer.start()
        with pytest.raises(Cancelled):
            Session.open(replace(host.target, port=unused.getsockname()[1]), timeout_s=60, cancelled=cancelled)
    timer.join()


def test_a_cut_connection_is_noticed(line: Any) -> None:
    with Session.open(line.target, timeout_s=60) as session:
        threading.Timer(0.2, line.cut).start()
        with pytest.raises(ConnectionLost):
            session.run("exec sleep 200", timeout_s=60)
        assert not session.is_alive
        with pytest.raises(ConnectionLost):
            session.run("true", timeout_s=5)


def test_a_word_that_comes_after_the_end_of_a_command_does_not_cost_the_connection(session: Session) -> None:
    """As where its input is closed by one thread just when another one hears of its end."""
    transport = session._client.get_transport()
    assert isinstance(transport, Transport)
    channel = transport.open_session()
    channel.exec_command("true")
    until(lambda: channel.remote_chanid in transport.ended)
    for kind in (MSG_CHANNEL_EOF, MSG_CHANNEL_DATA):
        late = paramiko.Message()
        late.add_byte(bytes([kind]))
        late.add_int(channel.remote_chanid)
        if kind == MSG_CHANNEL_DATA:
            late.add_string(b"too late")
        transport._send_user_message(late)
    for _ in range(2):  # the second has the first one's number again
        assert session.run("cat", stdin=b"still here", timeout_s=60).stdout == "still here"


def test_a_closed_session_is_not_alive(host: Any) -> None:
    session = Session.open(host.target, timeout_s=60)
    assert session.is_alive
    session.close()
    assert not session.is_alive


def test_files_and_folders_go_up_and_come_back(session: Session, host: Any, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "run.sh").write_bytes(b"#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    (project / "sub" / "data").write_bytes(os.urandom(300_000))
    remote = str(host.home / f"copy-{tmp_path.name}")

    session.put(project, remote)
    session.get(remote, tmp_path / "back")

    assert (tmp_path / "back" / "sub" / "data").read_bytes() == (project / "sub" / "data").read_bytes()
    assert stat.S_IMODE((tmp_path / "back" / "run.sh").stat().st_mode) == 0o755


def test_a_file_goes_into_a_folder_that_is_there(session: Session, host: Any, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    folder = host.home / f"folder-{tmp_path.name}"
    folder.mkdir()
    session.put(tmp_path / "note.txt", str(folder))
    assert (folder / "note.txt").read_text() == "hello"
    (tmp_path / "into").mkdir()
    session.get(str(folder / "note.txt"), tmp_path / "into")
    assert (tmp_path / "into" / "note.txt").read_text() == "hello"


def test_what_does_not_exist_is_said_by_name(session: Session, host: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent"):
        session.put(tmp_path / "absent", "x")
    with pytest.raises(TransferError, match="absent"):
        session.get(str(host.home / "absent"), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_links_on_the_unit_are_not_followed_into_a_folder(session: Session, host: Any, tmp_path: Path) -> None:
    folder = host.home / f"links-{tmp_path.name}"
    folder.mkdir()
    (folder / "passwd").symlink_to("/etc/passwd")
    session.get(str(folder), tmp_path / "back")
    assert list((tmp_path / "back").iterdir()) == []


def test_a_private_key_does_not_print_itself() -> None:
    pair = make_key("somebody@somewhere")
    assert "PRIVATE" not in repr(pair)
    assert pair.public.startswith("ssh-ed25519 ")
    assert pair.public.endswith(" somebody@somewhere")


def test_a_host_that_comes_up_late_is_waited_for(start_host: Any, free_port: int, tmp_path: Path) -> None:
    with start_host("asyncssh", tmp_path, port=free_port) as host:  # its process is only starting now
        Session.open(host.target, timeout_s=60).close()


def test_a_unit_makes_a_host_key_of_its_own(start_host: Any, tmp_path: Path) -> None:
    """`sudo` is a script here that writes into a folder of the test instead of /etc, and reloads nothing."""
    etc, tools = tmp_path / "etc", tmp_path / "bin"
    etc.mkdir()
    tools.mkdir()
    (tools / "sudo").write_text(
        f"#!/bin/sh\nshift\n[ $1 = install ] || exit 0\nexec install -m $3 $4 {etc}/${{5##*/}}\n"
    )
    (tools / "sudo").chmod(0o755)
    with (
        start_host("asyncssh", tmp_path, first_on_path=str(tools)) as host,
        Session.open(host.target, timeout_s=60) as session,
    ):
        public = Agent(session).new_host_key()
    assert (etc / "ssh_host_ed25519_key.pub").read_text().startswith(public)
    assert stat.S_IMODE((etc / "ssh_host_ed25519_key").stat().st_mode) == 0o600


def test_a_unit_whose_user_may_not_become_root_says_so(start_host: Any, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "sudo").write_text("#!/bin/sh\necho 'a password is required' >&2\nexit 1\n")
    (tools / "sudo").chmod(0o755)
    with (
        start_host("asyncssh", tmp_path, first_on_path=str(tools)) as host,
        Session.open(host.target, timeout_s=60) as session,
        pytest.raises(CloudrunError, match="password"),
    ):
        Agent(session).new_host_key()
