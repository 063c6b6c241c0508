"""The proxy that other tests and the benchmarks put between a client and a server is the bad line that it says."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.proxies import CHUNK_BYTES, Proxy, proxy_process
from tests.waiting import until

DELAY_S = 0.05


class Echo:
    """A server that sends back what it gets, and remembers how each connection ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(peer,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while piece := peer.recv(1 << 16):
                    peer.sendall(piece)
                self.ends.append("closed")
            except OSError:
                self.ends.append("reset")

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()


@pytest.fixture
def echo() -> Iterator[Echo]:
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy("127.0.0.1", echo.port) as proxy:
        yield proxy


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection((proxy.host, proxy.port), timeout=60)


def receive(peer: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (piece := peer.recv(1 << 20)):
        got += piece
    return got


def send_until_closed(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            peer.sendall(bytes(CHUNK_BYTES))


def test_bytes_go_both_ways_and_are_counted(proxy: Proxy, echo: Echo) -> None:
    sent = os.urandom(3 * CHUNK_BYTES + 1)
    with connect(proxy) as peer:
        writer = threading.Thread(target=peer.sendall, args=(sent,))
        writer.start()
        assert receive(peer, len(sent)) == sent
        writer.join()
        assert (proxy.connections, proxy.active) == (1, 1)
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""
    assert proxy.bytes == {"up": len(sent), "down": len(sent)}
    until(lambda: proxy.active == 0)
    assert echo.ends == ["closed"]


def test_a_delay_is_added_to_every_round_trip_and_to_the_opening(proxy: Proxy) -> None:
    proxy.delay_s = DELAY_S
    began = time.monotonic()
    with connect(proxy) as peer:
        for trips in (2.5, 3.5, 4.5):  # one and a half to open
            peer.sendall(b"x")
            assert peer.recv(1) == b"x"
            assert time.monotonic() - began >= trips * 2 * DELAY_S - 0.01


def test_a_delay_does_not_add_up_over_a_transfer(proxy: Proxy) -> None:
    proxy.delay_s = 0.2
    sent = bytes(128 * CHUNK_BYTES)
    began = time.monotonic()
    with connect(proxy) as peer:
        writer = threading.Thread(target=peer.sendall, args=(sent,))
        writer.start()
        assert receive(peer, len(sent)) == sent
        writer.join()
    assert time.monotonic() - began < 128 * 0.2  # what waiting for each piece would take at the least


def test_a_cut_is_a_reset_on_both_sides(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as first, connect(proxy) as second:
        for peer in (first, second):
            peer.sendall(b"x")
            assert peer.recv(1) == b"x"
        assert proxy.cut() == 2
        for peer in (first, second):
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
    until(lambda: echo.ends == ["reset", "reset"])
    assert proxy.active == 0
    with connect(proxy) as peer:
        peer.sendall(b"y")
        assert peer.recv(1) == b"y"


def test_a_cut_can_be_an_orderly_close(proxy: Proxy, echo: Echo) -> None:
    with connect(proxy) as peer:
        peer.sendall(b"x")
        assert peer.recv(1) == b"x"
        proxy.cut(reset=False)
        assert peer.recv(1) == b""
    until(lambda: echo.ends == ["closed"])


def test_a_cut_comes_after_exactly_so_many_bytes(proxy: Proxy) -> None:
    count = 2 * CHUNK_BYTES + 7
    with connect(proxy) as peer:
        proxy.cut_after(count, "down", reset=False)
        writer = threading.Thread(target=send_until_closed, args=(peer,))
        writer.start()
        try:
            got = len(receive(peer, 2 * count))
        except ConnectionResetError:
            got = -1  # what we still sent met a closed connection, and took what had arrived along
        writer.join()
    assert got <= count  # less, where what we still sent met a closed connection before we had read it all
    assert proxy.bytes["down"] == count
    with connect(proxy) as peer:  # armed for one cut only
        peer.sendall(bytes(count))
        assert len(receive(peer, count)) == count


def test_a_stalled_line_is_silent_until_it_resumes(proxy: Proxy) -> None:
    with connect(proxy) as peer:
        peer.sendall(b"x")
        assert peer.recv(1) == b"x"
        proxy.stall()
        peer.sendall(b"y")
        peer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            peer.recv(1)
        proxy.resume()
        peer.settimeout(20)
        assert peer.recv(1) == b"y"


def test_new_connections_are_refused_and_taken_again_at_the_same_port(proxy: Proxy) -> None:
    port = proxy.port
    with connect(proxy) as peer:
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connect(proxy)
        peer.sendall(b"x")
        assert peer.recv(1) == b"x"
    proxy.admit()
    assert proxy.port == port
    with connect(proxy) as peer:
        peer.sendall(b"x")
        assert peer.recv(1) == b"x"


def test_a_target_that_is_not_there_is_a_connection_that_breaks(echo: Echo) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        port = unused.getsockname()[1]
        # the reset may be quicker than whoever connects
        with Proxy("127.0.0.1", port) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as peer:
            peer.recv(1)


def test_nothing_is_left_of_it(echo: Echo) -> None:
    with Proxy("127.0.0.1", echo.port) as proxy:
        peer = connect(proxy)
        port = proxy.port
    assert "proxy" not in {thread.name for thread in threading.enumerate()}
    with peer, contextlib.suppress(ConnectionResetError):
        assert peer.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=60)


def test_one_in_a_process_of_its_own_relays_and_ends_with_its_block(echo: Echo) -> None:
    with (
        proxy_process("127.0.0.1", echo.port, delay_s=0.01) as address,
        socket.create_connection(address, timeout=60) as peer,
    ):
        peer.sendall(b"x")
        assert peer.recv(1) == b"x"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=60)
