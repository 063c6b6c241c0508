"""A small SSH server for tests, in a process of its own: exec and SFTP for whoever has the one authorized key.

Usage: python asyncssh_server.py PORT HOST_KEY AUTHORIZED_KEYS HOME [FOLDER_BEFORE_PATH]
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import asyncssh

CHUNK = 65536


class Pump:
    """Copies until the source ends; a sink that has gone away ends it too."""

    def __init__(self, source: Any, sink: Any) -> None:
        self._source, self._sink = source, sink
        self._waits = False  # for the source
        self._copied = 0
        self.task = asyncio.create_task(self._copy())

    async def _copy(self) -> None:
        try:
            while data := await self._read():
                self._sink.write(data)
                await self._sink.drain()
                self._copied += len(data)
            if isinstance(self._sink, asyncio.StreamWriter):  # the command's input; a channel has one end for both
                self._sink.write_eof()
        except (OSError, asyncssh.Error):
            pass

    async def _read(self) -> Any:
        self._waits = True
        data = await self._source.read(CHUNK)
        self._waits = False
        return data

    async def drained(self) -> None:
        """Until all that is in the source has been copied, though somebody may still hold its other end: in ten turns
        of the loop, each of which looks at the pipes, nothing has come."""
        turns = before = 0
        while turns < 10 and not self.task.done():
            await asyncio.sleep(0.001)
            turns = turns + 1 if self._waits and self._copied == before else 0
            before = self._copied


async def run(process: asyncssh.SSHServerProcess[bytes], home: str, path: str) -> None:
    environment = {"HOME": home, "PATH": path, "USER": os.environ.get("USER", "user")}
    command = ["/bin/sh", "-c", process.command or ""]
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *command, cwd=home, env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )
    feeding = Pump(process.stdin, child.stdin)
    telling = [Pump(child.stdout, process.stdout), Pump(child.stderr, process.stderr)]
    watching = asyncio.create_task(hang_up(process, child))
    while child.returncode is None:  # `wait` would also wait for whoever still holds the command's pipes
        await asyncio.sleep(0.01)
    code = child.returncode
    for output in telling:
        await output.drained()
    watching.cancel()
    feeding.task.cancel()
    if code < 0:
        process.exit_with_signal(signal.Signals(-code).name.removeprefix("SIG"))
    else:
        process.exit(code)


async def hang_up(process: asyncssh.SSHServerProcess[bytes], child: asyncio.subprocess.Process) -> None:
    """As sshd does: a client that has gone away takes the command's standard input with it."""
    await process.wait_closed()
    if child.stdin is not None:
        child.stdin.close()


async def main(port: int, host_key: str, authorized_keys: str, home: str, first_on_path: str) -> None:
    path = os.pathsep.join(filter(None, [first_on_path, os.environ.get("PATH", os.defpath)]))
    os.chdir(home)
    server = await asyncssh.listen(
        "127.0.0.1",
        port,
        server_host_keys=[host_key],
        authorized_client_keys=authorized_keys,
        process_factory=lambda process: run(process, home, path),
        sftp_factory=True,
        encoding=None,
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, server.close)
    await server.wait_closed()


asyncio.run(main(int(sys.argv[1]), *sys.argv[2:5], sys.argv[5] if len(sys.argv) > 5 else ""))
