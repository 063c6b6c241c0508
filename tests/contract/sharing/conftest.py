"""Two units that look alike: the same home on both, as machines of one image have it, each in a mount namespace of its
own, with the real agent, and on the source OpenSSH's server."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloudrun.core import rundir, wire
from cloudrun.ssh.archive import archive
from cloudrun.ssh.keys import KeyPair, make_key
from tests.agents import bring_agent
from tests.leftovers import end_all_in, end_tree
from tests.ports import free_port
from tests.pythons import find_python
from tests.waiting import PATIENCE_S

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
FINGERPRINT = "0123456789abcdef0123456789abcdef"
USERS_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl somebody"
_AS_WHO = [] if os.geteuid() == 0 else ["--map-current-user", "--keep-caps"]
_INSIDE = ["unshare", "--mount", "--propagation", "private", *_AS_WHO, "sh", "-c"]


def _no_namespaces() -> str:
    if SSHD is None:
        return "no sshd here"
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        return "sshd as root needs /run/sshd"
    tried = subprocess.run([*_INSIDE, "mount --bind /tmp /tmp"], capture_output=True, check=False)
    return "" if tried.returncode == 0 else "no mount namespaces here"


class Refused(Exception):
    """What the agent said instead of a reply."""


class Unit:
    """`folder` is its home as seen from outside; it is at `home` for itself."""

    def __init__(self, folder: Path, home: Path, python: str = sys.executable, path: str | None = None) -> None:
        self.folder = folder
        self.home = home
        self.python = python
        self.environment = {"HOME": str(home), "PATH": path or os.environ["PATH"]}
        folder.mkdir(exist_ok=True)
        home.mkdir(exist_ok=True)
        bring_agent(folder)
        self._agents: list[subprocess.Popen[bytes]] = []

    @property
    def env(self) -> Path:
        return self.folder / rundir.env_dir(FINGERPRINT)

    @property
    def keys(self) -> Path:
        return self.folder / ".ssh" / "authorized_keys"

    def command(self, words: Sequence[str]) -> list[str]:
        return [
            *_INSIDE,
            'mount --bind "$0" "$1" && cd "$1" && shift && exec "$@"',
            str(self.folder),
            str(self.home),
            *words,
        ]

    def run(self, *words: str) -> str:
        done = subprocess.run(
            self.command(words), env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def agent(self) -> Agent:
        process = subprocess.Popen(
            self.command([self.python, "-I", "-S", "-X", "utf8", archive().path]),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._agents.append(process)
        return Agent(process)

    def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """By an agent of its own."""
        agent = self.agent()
        agent.say(verb, **arguments)
        return agent.reply()

    def end(self) -> None:
        for process in self._agents:
            process.kill()
            process.communicate()
        end_all_in(self.folder)
        end_all_in(self.home)


class Agent:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def say(self, verb: str, **arguments: Any) -> None:
        self.send(wire.pack_json(wire.REQUEST, {"verb": verb, **arguments}))

    def send(self, frame: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(frame)
        self.process.stdin.flush()

    def until(self, wanted: bytes) -> dict[str, Any]:
        assert self.process.stdout is not None
        while True:
            frame = wire.read_frame(self.process.stdout)
            assert frame is not None, "the agent went away"
            kind, payload = frame
            if kind == wire.FAILURE:
                raise Refused(json.loads(payload)["message"])
            if kind == wanted:
                return dict(json.loads(payload or b"{}"))

    def hang_up(self) -> None:
        self.process.communicate(timeout=PATIENCE_S)

    def reply(self) -> dict[str, Any]:
        return self.until(wire.REPLY)


class Source(Unit):
    """With an SSH server, and an environment that was built there."""

    def __init__(self, folder: Path, home: Path, python: str = sys.executable) -> None:
        super().__init__(folder, home, python)
        self.keys.parent.mkdir(mode=0o700)
        self.keys.write_text(USERS_KEY)  # without a newline, as people leave it
        self.keys.chmod(0o600)
        host = make_key("host")
        self.host_key = host.public
        key_file = folder.parent / "host_key"
        key_file.write_text(host.private)
        key_file.chmod(0o600)
        self.port = free_port()
        config = folder.parent / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {key_file}\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {home}/.ssh/authorized_keys\nPermitRootLogin yes\nSetEnv HOME={home}\n"
        )
        self._log = (folder.parent / "sshd.log").open("wb")
        assert SSHD is not None
        self.server = subprocess.Popen(
            self.command([SSHD, "-D", "-e", "-f", str(config)]), stdout=self._log, stderr=self._log
        )
        give_up = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert time.monotonic() < give_up, (folder.parent / "sshd.log").read_text()
            time.sleep(0.02)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False

    def build(self) -> None:
        """Small, with all that an environment may have in it."""
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(self.env)], check=True, timeout=PATIENCE_S
        )
        packages = next(self.env.glob("lib/python3*/site-packages"))
        (packages / "thing.py").write_text("answer = 42\n")
        (packages / "some data.bin").write_bytes(os.urandom(3_000_000))
        (packages / "empty").touch()
        (packages / "nothing in it").mkdir()
        (packages / "alias.py").symlink_to("thing.py")
        os.utime(packages / "thing.py", ns=(1_000_000_000, 1_234_567_891_000_000))
        (self.env / "bin" / "tool").write_text("#!/bin/sh\necho works\n")
        (self.env / "bin" / "tool").chmod(0o755)
        (self.env / ".ready").write_text('{"python": "3.11"}')

    @contextlib.contextmanager
    def sharing(self, key: KeyPair) -> Iterator[Agent]:
        agent = self.agent()
        agent.say("share", fingerprint=FINGERPRINT, key=key.public.strip())
        agent.until(wire.PROGRESS)
        try:
            yield agent
        except BaseException:
            agent.hang_up()  # as a client does whose copy has failed
            raise
        agent.send(wire.pack(wire.FILE_END))
        agent.reply()

    def way(self, key: KeyPair, **changes: Any) -> dict[str, Any]:
        """What `fetch_environment` is told."""
        known = {"address": "127.0.0.1", "port": self.port, "user": getpass.getuser(), "host_key": self.host_key}
        return {"fingerprint": FINGERPRINT, **known, "key": key.private, **changes}

    def end(self) -> None:
        end_tree(self.server.pid)
        self.server.wait(PATIENCE_S)
        self._log.close()
        super().end()


@pytest.fixture(params=["this python", "3.9"])
def python(request: pytest.FixtureRequest) -> str:
    if request.param == "3.9":
        return find_python("3.9") or pytest.skip("no Python 3.9 here")
    return sys.executable


@pytest.fixture
def home(tmp_path: Path) -> Path:
    if why := _no_namespaces():
        pytest.skip(why)
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path: Path, home: Path) -> Iterator[Source]:
    source = Source(tmp_path / "a", home)
    try:
        source.build()
        yield source
    finally:
        source.end()


@pytest.fixture
def newcomer(tmp_path: Path, home: Path) -> Iterator[Unit]:
    unit = Unit(tmp_path / "b", home)
    yield unit
    unit.end()


@pytest.fixture
def key() -> KeyPair:
    return make_key("")
