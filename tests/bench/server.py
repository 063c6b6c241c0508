"""A private OpenSSH server on loopback, and the ways to it: what both sides of every comparison talk to.

It has its own configuration, host key, authorized key and home, all in one folder; nobody's `~/.ssh` is read. What
calls itself a unit's agent there may think that it owns the machine, so nothing behind this server can power it off.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudrun.core.records import SshTarget
from cloudrun.ssh.keys import make_key
from tests.proxies import proxy_process

HOST = "127.0.0.1"
DELAY_S = 0.020  # each direction
_POWER = ("systemctl", "shutdown", "poweroff", "halt", "reboot", "telinit", "init", "sudo")
_STUB = "#!/bin/sh\necho 'this machine is not to be powered off' >&2\nexit 1\n"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_START_S = 20.0


@dataclass(frozen=True)
class Server:
    folder: Path
    port: int
    host_key: str  # the public line

    @property
    def home(self) -> Path:
        """The login user's, of this server alone."""
        return self.folder / "home"

    @property
    def user(self) -> str:
        return getpass.getuser()

    @property
    def key(self) -> Path:
        return self.folder / "login_key"

    def authorize(self, public: str) -> None:
        with (self.folder / "authorized_keys").open("a") as stream:
            stream.write(public.strip() + "\n")


@dataclass(frozen=True)
class Line:
    """A way to the server. `shared` commands go over one connection that is open already (a ControlMaster)."""

    name: str
    server: Server
    host: str
    port: int

    @property
    def target(self) -> SshTarget:
        return SshTarget(self.host, self.port, self.server.user, self.server.key, self.server.host_key)

    @property
    def remote(self) -> str:
        return f"{self.server.user}@{self.host}"

    def options(self, *, shared: bool = False) -> list[str]:
        """For ssh, scp and sftp alike: nothing of the user's own, no question, the pinned key."""
        folder = self.server.folder
        settings = [
            f"Port={self.port}", f"IdentityFile={self.server.key}", "IdentitiesOnly=yes", "IdentityAgent=none",
            f"UserKnownHostsFile={folder}/known_hosts", "GlobalKnownHostsFile=/dev/null", "HostKeyAlias=server",
            "StrictHostKeyChecking=yes", "BatchMode=yes", "LogLevel=ERROR",
        ]  # fmt: skip
        if shared:
            settings += [f"ControlPath={self._control}", "ControlMaster=no"]
        return ["-F", "/dev/null", *(word for setting in settings for word in ("-o", setting))]

    def ssh(self, *command: str, shared: bool = False) -> list[str]:
        return ["ssh", *self.options(shared=shared), self.remote, *command]

    def rsync_shell(self, *, shared: bool = False) -> str:
        return shlex.join(["ssh", *self.options(shared=shared)])

    @property
    def _control(self) -> Path:
        return self.server.folder / f"c{self.port}"

    @contextlib.contextmanager
    def open(self) -> Iterator[Line]:
        """With its shared connection."""
        master = ["ssh", *self.options(), "-o", f"ControlPath={self._control}", "-o", "ControlMaster=yes", "-fN"]
        run([*master, self.remote])
        try:
            yield self
        finally:
            subprocess.run(
                ["ssh", *self.options(shared=True), "-O", "exit", self.remote], capture_output=True, check=False
            )


def run(command: list[str], *, text: str = "", env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    """Run it to its end; what it said is in the error where it failed."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, env=env, cwd=cwd)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def private_server(folder: Path) -> Iterator[Server]:
    """Started with its files in `folder`, which must not exist; ended with every process that it left."""
    program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}")
    if program is None:
        raise SystemExit("no sshd here: sudo apt install openssh-server (it need not be started)")
    (folder / "home").mkdir(parents=True)
    host, login = make_key("host"), make_key("login")
    for name, text in (("host_key", host.private), ("login_key", login.private)):
        (folder / name).touch(0o600)
        (folder / name).write_text(text)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        server = Server(folder, int(probe.getsockname()[1]), host.public)
    server.authorize(login.public)
    (folder / "known_hosts").write_text(f"server {host.public}\n")
    (folder / "sshd_config").write_text(_config(server))
    command = _guarded(folder, [str(Path(program).resolve()), "-D", "-e", "-f", f"{folder}/sshd_config"])
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        _await(server, process)
        yield server
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        _end_what_is_left(server)


def _config(server: Server) -> str:
    folder = server.folder
    # The same Python for everybody: the one that measures, which is no shell script that looks for another.
    path = f"{folder}/power:{_SYSTEM_PATH}:{sys.base_prefix}/bin"
    return (
        f"Port {server.port}\nListenAddress {HOST}\nHostKey {folder}/host_key\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nStrictModes no\nUsePAM no\nUseDNS no\n"
        "PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\n"
        "MaxStartups 100\nMaxSessions 100\nLogLevel ERROR\nSubsystem sftp internal-sftp\n"
        f'SetEnv HOME="{server.home}" PATH="{path}" CLOUDRUN_BENCH="{folder}"\n'
    )


def _guarded(folder: Path, command: list[str]) -> list[str]:
    """The command where no power-off works. For root that takes namespaces, and all processes end with them."""
    stubs = folder / "power"
    stubs.mkdir()
    for name in _POWER:
        (stubs / name).write_text(_STUB)
        (stubs / name).chmod(0o755)
    if os.geteuid() != 0:
        return command  # who is not root powers nothing off but by these names
    Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants it
    real = {found for name in _POWER if (found := shutil.which(name, path=_SYSTEM_PATH))}
    mounts = [
        f"mount --bind {stubs}/systemctl {shlex.quote(str(path))}" for path in {Path(each).resolve() for each in real}
    ]
    script = " && ".join([*mounts, f"exec {shlex.join(command)}"])
    unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]
    return ["setpriv", "--pdeathsig", "KILL", *unshare]


def _await(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection((HOST, server.port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"sshd does not start:\n{(server.folder / 'sshd.log').read_text()}")
        time.sleep(0.02)


def _end_what_is_left(server: Server) -> None:
    """Whatever outlives its connection (the agent does on purpose): known by a variable that all of them inherit."""
    mark = f"CLOUDRUN_BENCH={server.folder}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)


@contextlib.contextmanager
def lines(server: Server, names: list[str]) -> Iterator[list[Line]]:
    """The ways to the server that were asked for: "loopback", and "40 ms" more of round-trip time."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            host, port = HOST, server.port
            if name != "loopback":
                host, port = stack.enter_context(proxy_process(HOST, server.port, delay_s=DELAY_S))
            made.append(stack.enter_context(Line(name, server, host, port).open()))
        yield made
