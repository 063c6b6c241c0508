"""Outputs on their way into a bucket over a network and a store that fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from cloudrun.agent import web
from cloudrun.agent.errors import AgentError
from cloudrun.agent.upload import NOTES, upload
from cloudrun.core.rundir import RunDir
from tests.bucket_server import Bucket
from tests.uploads import PREFIX, STATUS, come_home, digest, finish, ticket


@pytest.mark.parametrize("cut", [0, 10, 700, 300_000, 2_000_000])
def test_a_connection_that_is_cut_anywhere_is_made_again(run: RunDir, bucket: Bucket, cut: int) -> None:
    finish(run, a=os.urandom(3_000_000), b=b"small")
    bucket.faults = [f"cut:{cut}"] * 3
    upload(run, ticket(bucket), STATUS, pause_s=0.01)
    assert set(come_home(bucket)) == {"a", "b", "stdout.log", "stderr.log"}
    assert bucket.faults == []


@pytest.mark.parametrize("fault", ["503:SlowDown", "500:InternalError", "early:503:SlowDown", "400:RequestTimeout"])
def test_a_busy_store_is_asked_again(run: RunDir, bucket: Bucket, fault: str) -> None:
    finish(run, a=os.urandom(3_000_000))
    bucket.faults = [fault] * 4
    upload(run, ticket(bucket), STATUS, pause_s=0.01)
    assert "a" in come_home(bucket)


def test_a_slow_store_is_waited_for(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=os.urandom(5_000_000))
    bucket.faults = ["slow"] * 4
    upload(run, ticket(bucket), STATUS)
    assert "a" in come_home(bucket)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("403:AccessDenied", "refused with 403 .*AccessDenied: the test says"),
        ("early:403:AccessDenied", "refused with 403 .*AccessDenied"),
        ("400:EntityTooLarge", "EntityTooLarge"),
        ("403:ExpiredToken", "has expired"),
        ("404:NoSuchBucket", "NoSuchBucket"),
    ],
)
def test_a_refusal_says_why_and_nothing_is_called_complete(run: RunDir, bucket: Bucket, fault: str, words: str) -> None:
    finish(run, a=os.urandom(5_000_000), b=b"1", c=b"2")
    bucket.faults = [fault] * 20
    with pytest.raises(AgentError, match=words) as caught:
        upload(run, ticket(bucket), STATUS, pause_s=0.01)
    assert caught.value.kind == "transfer"
    assert PREFIX + "manifest.json" not in bucket.objects
    assert not run.stored.exists()


def test_a_store_that_is_never_there_is_given_up(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"1")
    bucket.faults = ["cut:5"] * 1000
    with pytest.raises(AgentError, match="could not put"):
        upload(run, ticket(bucket), STATUS, pause_s=0.0001)


def test_a_later_try_sends_only_what_is_missing(run: RunDir, bucket: Bucket) -> None:
    finish(run, **{f"file{number}": bytes([number]) for number in range(20)})
    bucket.faults = [""] * 8 + ["403:AccessDenied"] * 20
    with pytest.raises(AgentError):
        upload(run, ticket(bucket), STATUS)
    there = set(bucket.posted)
    assert len(there) >= 5
    bucket.faults.clear()
    bucket.posted.clear()
    upload(run, ticket(bucket), STATUS)
    assert not there & set(bucket.posted)
    assert len(come_home(bucket)) == 22


def test_parts_that_are_there_are_not_sent_again_and_the_digest_still_counts(run: RunDir, bucket: Bucket) -> None:
    content = os.urandom(3_500)
    finish(run, a=content)
    run.stdout.unlink()
    run.stderr.unlink()
    finish(run)
    bucket.faults = ["", "", "403:AccessDenied"]
    with pytest.raises(AgentError):
        upload(run, ticket(bucket, 1000), STATUS)
    bucket.posted.clear()
    upload(run, ticket(bucket, 1000), STATUS)
    assert bucket.posted == [f"{PREFIX}data/{digest(content)}.{part}" for part in (2, 3)] + [PREFIX + "manifest.json"]
    assert come_home(bucket) == {"a": content}


def test_notes_of_another_prefix_do_not_count(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"one")
    upload(run, dict(ticket(bucket), prefix="other/"), STATUS)
    run.stored.unlink()
    upload(run, ticket(bucket), STATUS)
    assert come_home(bucket)["a"] == b"one"


@pytest.mark.parametrize("spoil", ["pipe", "folder", "binary", "torn"])
def test_notes_that_the_job_has_spoilt_are_not_believed(run: RunDir, bucket: Bucket, spoil: str) -> None:
    finish(run, a=b"one")
    notes = run.root / NOTES
    if spoil == "pipe":
        os.mkfifo(notes)
    elif spoil == "folder":
        notes.mkdir()
    else:
        notes.write_bytes(b"\xff\xfe\x00" if spoil == "binary" else digest(b"one").encode())
    upload(run, ticket(bucket), STATUS)
    assert come_home(bucket)["a"] == b"one"


def test_a_file_that_changes_between_two_tries_is_noticed(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"x" * 3_000_000)
    path = run.work / "a"
    bucket.faults = ["503:SlowDown"] * 3
    bucket.on_fault = lambda: path.write_bytes(b"y" * 3_000_000)
    upload(run, ticket(bucket), STATUS, pause_s=0.01)
    assert f"{PREFIX}data/{digest(b'x' * 3_000_000)}" not in bucket.objects
    assert "a" not in come_home(bucket)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "http:///x"])
def test_an_address_that_is_not_http_is_refused(url: str) -> None:
    with pytest.raises(AgentError):
        web.Site(url)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_a_store_whose_certificate_nobody_knows_is_not_talked_to(run: RunDir, tmp_path: Path) -> None:
    import http.server
    import ssl

    finish(run, a=b"secret")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a handshake that the client broke off

    server = Server(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        post = {"url": f"https://localhost:{server.server_address[1]}/b", "fields": {}, "prefix": PREFIX}
        with pytest.raises(AgentError, match="CERTIFICATE_VERIFY_FAILED"):
            upload(run, {**post, "max_bytes": 100}, STATUS, pause_s=0.0001)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
