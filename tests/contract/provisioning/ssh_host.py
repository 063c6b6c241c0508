"""A small SSH host in a process of its own: runs commands for whoever has the key, and ends them with the connection.

Usage: python ssh_host.py HOME AUTHORIZED_KEYS HOST_KEY; prints its port. Commands get this process's environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

import asyncssh


async def pump(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()


async def feed(source: Any, sink: asyncio.StreamWriter) -> None:
    await pump(source, sink)
    sink.close()


async def run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", process.command or "exit"), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True
    )
    assert child.stdin is not None
    feeding = asyncio.create_task(feed(process.stdin, child.stdin))
    ending = asyncio.create_task(end_with_connection(process, child.pid))
    await asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
    process.exit(await child.wait())
    feeding.cancel()
    await ending


async def end_with_connection(process: asyncssh.SSHServerProcess[bytes], group: int) -> None:
    await process.wait_closed()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


async def main(home: str, authorized_keys: str, host_key: str) -> None:
    os.chdir(home)
    server = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        authorized_client_keys=authorized_keys,
        process_factory=run,
        encoding=None,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the test's end


asyncio.run(main(*sys.argv[1:4]))
