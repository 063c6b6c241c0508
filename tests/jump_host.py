"""A jump host for tests: an SSH server that forwards connections, and does nothing else, in a process of its own.

`jump_host` starts one with keys of its own, and an `ssh` that knows them as a user's ~/.ssh would.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from cloudrun.ssh.keys import make_key


@dataclass(frozen=True)
class JumpHost:
    """`tools` holds an `ssh` to be first on a PATH; `forwarded` is a file with a line for each connection."""

    port: int
    tools: Path
    known_hosts: Path
    forwarded: Path

    @property
    def name(self) -> str:
        return f"jumper@127.0.0.1:{self.port}"

    def connections(self) -> list[str]:
        return self.forwarded.read_text().splitlines()

    def forget(self) -> None:
        """What a user has who never logged in there."""
        self.known_hosts.write_text("")


@contextmanager
def jump_host(folder: Path) -> Iterator[JumpHost]:
    host, login = make_key("jump host"), make_key("user")
    for name, text in (
        ("host", host.private),
        ("login", login.private),
        ("authorized", login.public + "\n"),
        ("forwarded", ""),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    command = [sys.executable, "-m", "tests.jump_host", str(folder)]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            known_hosts = folder / "known_hosts"
            known_hosts.write_text(f"[127.0.0.1]:{port} {host.public}\n")
            (folder / "config").write_text(
                f'IdentityFile "{folder}/login"\nIdentitiesOnly yes\nUserKnownHostsFile "{known_hosts}"\n'
                "GlobalKnownHostsFile /dev/null\n"
            )
            tools = folder / "tools"
            tools.mkdir()
            # a later -F wins, as in Ansible's own call: this is only what is read where nobody says otherwise
            (tools / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F "{folder}/config" "$@"\n')
            (tools / "ssh").chmod(0o755)
            yield JumpHost(port, tools, known_hosts, folder / "forwarded")
        finally:
            server.terminate()


class _Server(asyncssh.SSHServer):
    def __init__(self, forwarded: Path) -> None:
        self._forwarded = forwarded

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        with self._forwarded.open("a") as stream:
            stream.write(f"{dest_host}:{dest_port}\n")
        return True


async def _serve(folder: Path) -> None:
    server = await asyncssh.create_server(
        lambda: _Server(folder / "forwarded"),
        "127.0.0.1",
        0,
        server_host_keys=[str(folder / "host")],
        authorized_client_keys=str(folder / "authorized"),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
    print(server.get_port(), flush=True)
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
