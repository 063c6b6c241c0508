"""An HTTP server that takes forms and hands out objects as S3 does, and breaks off where a test wants it to."""

from __future__ import annotations

import email.parser
import email.policy
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Bucket:
    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    posted: list[str] = field(default_factory=list)  # keys, in the order in which they were whole
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and range of each GET
    # what happens to the next requests instead, in turn: "cut:N" after N bytes of the body, "slow", "early:STATUS:CODE"
    # before the body is read, "STATUS:CODE" after it, "no ranges", "replaced" (another ETag); "" is nothing
    faults: list[str] = field(default_factory=list)
    etags: dict[str, str] = field(default_factory=dict)
    on_fault: Callable[[], object] = lambda: None  # called when one begins

    def etag(self, key: str) -> str:
        return self.etags.get(key, f"etag-{len(self.objects[key])}")

    def file(self, key: str, path: str = "") -> dict[str, object]:
        """What a client promises a unit of an object."""
        size = len(self.objects[key])
        return {"path": path or key, "url": f"{self.url}/{key}?signed=1", "size": size, "etag": self.etag(key)}


@contextmanager
def serving() -> Iterator[Bucket]:
    bucket = Bucket()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def fault(self) -> str:
            with lock:
                if not bucket.faults:
                    return ""
                bucket.on_fault()
                return bucket.faults.pop(0)

        def cut(self) -> None:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

        def refuse(self, fault: str) -> None:
            status, _, code = fault.partition(":")
            text = f"<Error><Code>{code}</Code><Message>the test says {code}</Message></Error>".encode()
            self.answer(int(status), text)

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            fault = self.fault()
            length = int(self.headers["Content-Length"])
            if fault.startswith("early:"):
                self.refuse(fault.removeprefix("early:"))
                self.wfile.flush()
                self.close_connection = True
                return
            if fault.startswith("cut:"):
                self.rfile.read(min(length, int(fault.removeprefix("cut:"))))
                self.cut()
                return
            body = b""
            while len(body) < length:
                piece = self.rfile.read(min(1 << 20, length - len(body)))
                if not piece:
                    self.close_connection = True
                    return  # the client went away in the middle: no object, as in S3
                body += piece
                if fault == "slow":
                    time.sleep(0.01)
            if fault not in ("", "slow"):
                self.refuse(fault)
                return
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
            parts = {part.get_param("name", header="content-disposition"): part for part in form.iter_parts()}
            key = parts["key"].get_payload(decode=True).decode()
            boundary = form.get_boundary().encode()
            start = body.index(b"\r\n\r\n", body.index(b'name="file"')) + 4
            with lock:
                bucket.objects[key] = body[start : body.rindex(b"\r\n--" + boundary)]
                bucket.posted.append(key)
            self.answer(204)

        def do_GET(self) -> None:
            key = unquote(urlsplit(self.path).path[1:])
            with lock:
                bucket.asked.append((key, self.headers.get("Range", "")))
            fault = self.fault()
            if fault and fault[0].isdigit():
                self.refuse(fault)
                return
            content = bucket.objects[key]
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if fault != "no ranges" else 0
            if start >= len(content) > 0:
                self.refuse("416:InvalidRange")
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", '"another"' if fault == "replaced" else f'"{bucket.etag(key)}"')
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if fault.startswith("cut:"):
                self.wfile.write(content[start : start + int(fault.removeprefix("cut:"))])
                self.wfile.flush()
                self.cut()
                return
            for position in range(start, len(content), 1 << 18):
                self.wfile.write(content[position : position + (1 << 18)])
                if fault == "slow":
                    time.sleep(0.01)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # clients that go away are what these tests are about

    server = Server(("127.0.0.1", 0), Handler)
    bucket.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
