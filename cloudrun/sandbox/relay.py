"""How a booted machine reaches the region: relays on the machine's own loopback, run by its keeper outside.

The region's endpoint has the same address inside as outside. The metadata service answers at 169.254.169.254, where
every program looks for it; the secret path under which the region knows this machine stays outside.
"""

from __future__ import annotations

import http.client
import http.server
import re
import socket
import threading
from typing import Any

METADATA_ADDRESS = "169.254.169.254"
_UPSTREAM_TIMEOUT_S = 30.0
_VERSION = re.compile(r"/\d{4}-\d\d-\d\d(?=/|$)")
_HOP_BY_HOP = {"connection", "host", "keep-alive", "content-length", "transfer-encoding"}
_PIECE_BYTES = 1 << 18


def relay(listener: socket.socket, host: str, port: int) -> None:
    """Connect whoever calls the listener to the address outside. Never returns: it is for a thread of its own."""
    while True:
        caller, _ = listener.accept()
        threading.Thread(target=_join, args=(caller, host, port), daemon=True).start()


def _join(caller: socket.socket, host: str, port: int) -> None:
    with caller:
        try:
            callee = socket.create_connection((host, port))
        except OSError:
            return
        with callee:
            back = threading.Thread(target=_pump, args=(callee, caller), daemon=True)
            back.start()
            _pump(caller, callee)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        for each in (source, sink):  # the other direction is not to wait for ever
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def serve_metadata(listener: socket.socket, host: str, port: int, path: str) -> None:
    """Answer as EC2's metadata service does, from the region's at `path`. Never returns."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 120  # seconds a connection may be silent

        def do_GET(self) -> None:
            self._forward()

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 (the library's names)

        def _forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            upstream = http.client.HTTPConnection(host, port, timeout=_UPSTREAM_TIMEOUT_S)
            try:
                # dated versions of the metadata say what the latest says, and more than this one they never had
                upstream.request(self.command, path + _VERSION.sub("/latest", self.path, count=1), body, headers)
                answer = upstream.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException):
                self.send_error(503)
                return
            finally:
                upstream.close()
            self.send_response(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in _HOP_BY_HOP | {"server", "date"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Programs ask often and it says little."""

    server = http.server.ThreadingHTTPServer(listener.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    server.serve_forever()
