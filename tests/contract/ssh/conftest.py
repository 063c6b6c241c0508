"""Real SSH servers on loopback: asyncssh's always, OpenSSH's where it is installed; and a line that can break."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cloudrun.core import rundir
from cloudrun.core.records import SshTarget
from cloudrun.ssh.agent import Agent
from cloudrun.ssh.keys import make_key
from cloudrun.ssh.session import Session
from tests import ports
from tests.agents import bring_agent
from tests.leftovers import end_all_in, end_tree

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


@dataclass(frozen=True)
class Host:
    """An SSH host whose login user's home is `home`."""

    kind: str
    target: SshTarget
    home: Path


def write_key(path: Path, private: str) -> Path:
    path.write_text(private)
    path.chmod(0o600)
    return path


@contextlib.contextmanager
def ssh_host(kind: str, folder: Path, *, port: int | None = None, first_on_path: str = "") -> Iterator[Host]:
    """Start a server of `kind` with its files in `folder`, and end it."""
    port = port or ports.free_port()
    home = folder / "home"
    home.mkdir()
    host, login = make_key("host"), make_key("login")
    write_key(folder / "host_key", host.private)
    write_key(folder / "login_key", login.private)
    (folder / "authorized_keys").write_text(login.public + "\n")
    if kind == "openssh":
        command = _sshd(folder, port, home)
    else:
        server = str(Path(__file__).with_name("asyncssh_server.py"))
        keys = [str(folder / "host_key"), str(folder / "authorized_keys")]
        command = [sys.executable, server, str(port), *keys, str(home), first_on_path]
    with (folder / "server.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            yield Host(kind, SshTarget("127.0.0.1", port, getpass.getuser(), folder / "login_key", host.public), home)
        finally:
            end_tree(server.pid)
            server.wait(60)
            end_all_in(home)


def _sshd(folder: Path, port: int, home: Path) -> list[str]:
    if SSHD is None:
        pytest.skip("no sshd here")
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        pytest.skip("sshd as root needs /run/sshd")
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin yes\nSetEnv HOME={home}\nSubsystem sftp internal-sftp\n"
    )
    return [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")]


@pytest.fixture(scope="module", params=["asyncssh", "openssh"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with ssh_host(request.param, tmp_path_factory.mktemp(request.param)) as running:
        bring_agent(running.home)
        yield running


@pytest.fixture
def start_host() -> Callable[..., AbstractContextManager[Host]]:
    return ssh_host


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


@pytest.fixture
def run_dir(tmp_path: Path) -> str:
    return rundir.run_dir(f"run-{tmp_path.parent.name}-{tmp_path.name}", 1)


@pytest.fixture(scope="module")
def session(host: Host) -> Iterator[Session]:
    with Session.open(host.target, timeout_s=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def agent(session: Session) -> Iterator[Agent]:
    """One for many tests: none of them may leave it out of step."""
    agent = Agent(session)
    yield agent
    agent.close()


class Line:
    """A TCP relay to a host: it can be cut, which both sides notice, or fall silent, which nobody tells them."""

    def __init__(self, target: SshTarget) -> None:
        self._to = (target.host, target.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.silent = threading.Event()
        self.target = replace(target, port=self._listener.getsockname()[1])
        self._start(self._accept)

    def cut(self) -> None:
        """End every connection that is open now; new ones are still accepted."""
        while self._sockets:
            connection = self._sockets.pop()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.silent.clear()
        self.cut()
        for thread in self._threads:
            thread.join(60)

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._to)
                except ConnectionRefusedError:  # the host is not up yet: pass it on
                    near.close()
                    continue
                self._sockets += [near, far]
                self._start(self._relay, near, far)
                self._start(self._relay, far, near)

    def _relay(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while self.silent.is_set():
                    time.sleep(0.01)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        source.close()


@pytest.fixture
def line(host: Host) -> Iterator[Line]:
    line = Line(host.target)
    yield line
    line.close()
