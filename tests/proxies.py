"""A TCP proxy for tests and benchmarks: relays to one address, and is a bad line on command.

It delays, cuts (in the middle of a transfer too), falls silent, refuses, and counts. It runs in a thread of its own;
`proxy_process` runs a merely delaying one in a process of its own, which takes no time from the one that measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

CHUNK_BYTES = 256 * 1024
# What may be under way in one direction: at 1 GB/s a delay of 64 ms; a smaller bound would be a slower line.
IN_FLIGHT_MAX_BYTES = 64 * 1024**2
_DONE_TIMEOUT_S = 90.0
_RESET = struct.pack("ii", 1, 0)  # linger for no time: what is left is thrown away and the peer gets an RST

Direction = Literal["up", "down"]  # up: from whoever connected to the target
T = TypeVar("T")


class Proxy:
    """Listens at `host`, `port` for as long as it is entered. Every method works from any thread."""

    def __init__(self, target_host: str, target_port: int, *, delay_s: float = 0.0) -> None:
        """`delay_s` is each direction's: half of the round-trip time that is added. As on a longer line a new
        connection reaches the target one and a half round trips after it was asked for."""
        self.target = (target_host, target_port)
        self.delay_s = delay_s
        self.host = "127.0.0.1"
        self.port = 0
        self.connections = 0  # ever taken
        self.bytes: dict[Direction, int] = {"up": 0, "down": 0}  # handed on
        self._allowed: dict[Direction, int | None] = {"up": None, "down": None}  # until all is cut
        self._reset = True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._flows = asyncio.Event()
        self._listener: socket.socket | None = None

    def __enter__(self) -> Proxy:
        self._thread.start()
        self._flows.set()
        self._do(self._admit())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._refuse())
        self._do(self._cut(reset=True))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def active(self) -> int:
        """Connections that are open now."""
        return len(self._open)

    def cut(self, *, reset: bool = True) -> int:
        """End all connections now, with an RST or with an orderly close; how many there were."""
        return self._do(self._cut(reset=reset))

    def cut_after(self, count: int, direction: Direction, *, reset: bool = True) -> None:
        """End all connections once exactly `count` more bytes have gone in that direction."""

        async def arm() -> None:
            self._allowed[direction], self._reset = count, reset

        self._do(arm())

    def stall(self) -> None:
        """Hand nothing on any more, and say nothing about it: what is behind the line is silent."""
        self._loop.call_soon_threadsafe(self._flows.clear)
        self._do(asyncio.sleep(0))

    def resume(self) -> None:
        self._loop.call_soon_threadsafe(self._flows.set)
        self._do(asyncio.sleep(0))

    def refuse(self) -> None:
        """New connections are refused; those that are open stay."""
        self._do(self._refuse())

    def admit(self) -> None:
        """New connections are taken again, at the same port."""
        self._do(self._admit())

    # -- in the loop's thread ------------------------------------------------------------------------------------------

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_DONE_TIMEOUT_S)

    async def _admit(self) -> None:
        if self._listener is not None:
            return
        self._listener = socket.create_server((self.host, self.port), backlog=128)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _refuse(self) -> None:
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return  # it went away again
        near.setblocking(False)
        connection = _Connection(self, near)
        self._open.add(connection)
        self.connections += 1
        connection.begin()

    async def _cut(self, *, reset: bool) -> int:
        victims = list(self._open)
        self._allowed = {"up": None, "down": None}
        for connection in victims:
            await connection.end(reset=reset)
        return len(victims)

    def allowance(self, direction: Direction, wanted: int) -> int:
        """How many of these bytes may go; the last that may are followed by the cut."""
        allowed = self._allowed[direction]
        return wanted if allowed is None else min(wanted, allowed)

    def handed_on(self, direction: Direction, count: int) -> bool:
        """Whether that was the last byte before the cut."""
        self.bytes[direction] += count
        allowed = self._allowed[direction]
        if allowed is None:
            return False
        self._allowed[direction] = allowed - count
        if allowed > count:
            return False
        self.later(self._cut(reset=self._reset))
        return True

    def later(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def gone(self, connection: _Connection) -> None:
        self._open.discard(connection)

    async def flows(self) -> None:
        await self._flows.wait()


class _Connection:
    def __init__(self, proxy: Proxy, near: socket.socket) -> None:
        self._proxy = proxy
        self._near = near
        self._far = socket.socket()
        self._far.setblocking(False)
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._relay())

    async def end(self, *, reset: bool) -> None:
        if self._task is not None:
            await _ended([self._task])
        self._close(reset=reset)

    async def _relay(self) -> None:
        loop = asyncio.get_running_loop()
        for end in (self._near, self._far):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        broken = True
        try:
            await asyncio.sleep(3 * self._proxy.delay_s)
            await self._proxy.flows()
            await loop.sock_connect(self._far, self._proxy.target)
            pumps = [
                asyncio.create_task(_pump(self._proxy, "up", self._near, self._far)),
                asyncio.create_task(_pump(self._proxy, "down", self._far, self._near)),
            ]
            try:
                await asyncio.gather(*pumps)  # both directions have ended, or one of them broke
                broken = False
            finally:
                await _ended(pumps)
        except OSError:
            pass
        except asyncio.CancelledError:
            return  # whoever cancelled it says how it closes
        self._close(reset=broken)

    def _close(self, *, reset: bool) -> None:
        for end in (self._near, self._far):
            if reset:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()
        self._proxy.gone(self)


async def _pump(proxy: Proxy, direction: Direction, source: socket.socket, sink: socket.socket) -> None:
    """Read as fast as the line takes it, write each piece once its time has come: delay costs no throughput."""
    loop = asyncio.get_running_loop()
    pieces: deque[tuple[float, bytes]] = deque()  # when it is due, what; b"" is the end
    waiting, changed = 0, asyncio.Event()

    async def read() -> None:
        nonlocal waiting
        while True:
            while waiting >= IN_FLIGHT_MAX_BYTES:
                changed.clear()
                await changed.wait()
            await proxy.flows()
            piece = await loop.sock_recv(source, CHUNK_BYTES)
            pieces.append((loop.time() + proxy.delay_s, piece))
            waiting += len(piece)
            changed.set()
            if not piece:
                return

    async def write() -> None:
        nonlocal waiting
        while True:
            while not pieces:
                changed.clear()
                await changed.wait()
            due, piece = pieces.popleft()
            if (early := due - loop.time()) > 0:
                await asyncio.sleep(early)
            await proxy.flows()
            if not piece:
                sink.shutdown(socket.SHUT_WR)
                return
            await loop.sock_sendall(sink, piece[: proxy.allowance(direction, len(piece))])
            if proxy.handed_on(direction, min(len(piece), proxy.allowance(direction, len(piece)))):
                await asyncio.Event().wait()  # until this connection is cut with the others
            waiting -= len(piece)
            changed.set()

    tasks = [asyncio.create_task(read()), asyncio.create_task(write())]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _ended(tasks)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def proxy_process(target_host: str, target_port: int, *, delay_s: float) -> Iterator[tuple[str, int]]:
    """Where a delaying proxy in a process of its own listens. It ends with its caller, however that ends."""
    command = [sys.executable, "-m", "tests.proxies", target_host, str(target_port), "--delay", str(delay_s)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        host, port = process.stdout.readline().split()
        yield host, int(port)
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(_DONE_TIMEOUT_S)


def main(until: Callable[[], object] = sys.stdin.read) -> None:
    parser = argparse.ArgumentParser(description="A delaying TCP proxy; ends when its standard input does.")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, each direction")
    arguments = parser.parse_args()
    with Proxy(arguments.host, arguments.port, delay_s=arguments.delay) as proxy:
        print(proxy.host, proxy.port, flush=True)
        until()


if __name__ == "__main__":
    main()
