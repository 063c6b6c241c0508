"""Outputs on their way into a bucket: once, whole, and over whatever the network does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import manifest, web
from cloudrun.agent.errors import AgentError
from cloudrun.agent.upload import NOTES, upload
from cloudrun.core.rundir import RunDir, write_json
from cloudrun.ssh.archive import archive
from cloudrun.stored import contents, parse_stored
from tests.bucket_server import Bucket, serving

PREFIX = "ledger/r-1.1/"
STATUS = {"state": "exited", "exit_code": 0}
PACKAGE = Path(__file__).parents[2]


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving() as running:
        yield running


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.work.mkdir(parents=True)
    made.stdout.write_bytes(b"hello\n")
    made.stderr.write_bytes(b"")
    return made


def finish(run: RunDir, **files: bytes) -> dict[str, Any]:
    """The job has made these files and ended."""
    for name, content in files.items():
        (run.work / name).write_bytes(content)
    made = manifest.outputs(run, 10**12, 10**6, since_ns=0)
    write_json(run.outputs, made)
    return made


def ticket(bucket: Bucket, max_bytes: int = 10**9) -> dict[str, Any]:
    fields = {"policy": "p", "x-amz-signature": "s"}
    return {"url": f"{bucket.url}/results", "fields": fields, "prefix": PREFIX, "max_bytes": max_bytes}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def come_home(bucket: Bucket) -> dict[str, bytes]:
    """What a client makes of the bucket: every output's content, its digest checked."""

    class Store:
        def read(self, _bucket: str, key: str, offset: int = 0) -> Iterator[bytes]:
            yield bucket.objects[key][offset:]

    stored = parse_stored(bucket.objects[PREFIX + "manifest.json"])
    home = {}
    for entry in (*stored.outputs.entries, *stored.outputs.logs):
        content = b"".join(contents(Store(), "results", PREFIX, stored, entry))
        assert digest(content) == entry.sha256
        home[entry.path] = content
    return home


def test_outputs_and_logs_are_stored_and_the_manifest_comes_last(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"one", b=b"two" * 1000)
    upload(run, ticket(bucket), STATUS)
    assert bucket.posted[-1] == PREFIX + "manifest.json"
    assert come_home(bucket) == {"a": b"one", "b": b"two" * 1000, "stdout.log": b"hello\n", "stderr.log": b""}
    stored = parse_stored(bucket.objects[PREFIX + "manifest.json"])
    assert stored.status.exit_code == 0
    assert stored.outputs.left_out == ()
    assert json.loads(run.stored.read_text())["prefix"] == PREFIX


def test_each_content_is_sent_once(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"same", b=b"same", c=b"hello\n")
    upload(run, ticket(bucket), STATUS)
    assert sorted(bucket.posted) == sorted(
        [PREFIX + name for name in ("manifest.json", *(f"data/{digest(each)}" for each in (b"same", b"hello\n", b"")))]
    )
    assert come_home(bucket)["b"] == b"same"


def test_asked_again_it_sends_nothing(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"one")
    upload(run, ticket(bucket), STATUS)
    bucket.posted.clear()
    upload(run, ticket(bucket), STATUS)
    assert bucket.posted == []


def test_a_manifest_that_its_supervisor_could_not_make_is_made(run: RunDir, bucket: Bucket) -> None:
    (run.work / "a").write_bytes(b"one")
    write_json(run.spec, {"output_max_bytes": 100, "output_max_files": 10})
    upload(run, ticket(bucket), STATUS)
    assert come_home(bucket)["a"] == b"one"


def test_what_is_too_long_for_one_object_goes_in_parts(run: RunDir, bucket: Bucket) -> None:
    content = os.urandom(2500)
    finish(run, a=content, b=b"x" * 1000)
    upload(run, ticket(bucket, max_bytes=1000), STATUS)
    parts = sorted(key for key in bucket.posted if "." in key.removeprefix(PREFIX + "data/") and "manifest" not in key)
    assert parts == [f"{PREFIX}data/{digest(content)}.{number}" for number in range(3)]
    assert parse_stored(bucket.objects[PREFIX + "manifest.json"]).parts == {digest(content): 3}
    assert come_home(bucket)["a"] == content
    assert come_home(bucket)["b"] == b"x" * 1000


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


@pytest.mark.parametrize("max_bytes", [10**9, 1_500_000])
def test_a_file_that_changed_since_is_left_out_and_never_whole_in_the_bucket(
    run: RunDir, bucket: Bucket, max_bytes: int
) -> None:
    before = os.urandom(3_000_000)
    finish(run, a=before, b=b"stays")
    (run.work / "a").write_bytes(os.urandom(3_000_000))
    upload(run, ticket(bucket, max_bytes), STATUS)
    stored = parse_stored(bucket.objects[PREFIX + "manifest.json"])
    assert stored.outputs.left_out == (("a", "it was changed after the job had ended"),)
    assert [entry.path for entry in stored.outputs.entries] == ["b"]
    assert f"{PREFIX}data/{digest(before)}" not in bucket.objects
    assert stored.parts == {}


@pytest.mark.parametrize(
    ("harm", "words"), [("shorter", "cut short"), ("gone", "No such file"), ("link", "symbolic links"), ("grown", "")]
)
def test_whatever_became_of_a_file_the_others_come(run: RunDir, bucket: Bucket, harm: str, words: str) -> None:
    finish(run, a=b"0123456789", b=b"stays")
    path = run.work / "a"
    if harm == "shorter":
        path.write_bytes(b"01234")
    elif harm == "grown":
        with path.open("ab") as stream:
            stream.write(b"more")
    else:
        path.unlink()
        if harm == "link":
            path.symlink_to("/etc/passwd")
    upload(run, ticket(bucket), STATUS)
    home = come_home(bucket)
    assert home["b"] == b"stays"
    left_out = parse_stored(bucket.objects[PREFIX + "manifest.json"]).outputs.left_out
    if harm == "grown":
        assert (home["a"], left_out) == (b"0123456789", ())
    else:
        assert [name for name, _ in left_out] == ["a"]
        assert words in left_out[0][1]


def test_a_content_that_one_of_two_files_still_has_is_stored(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"same", b=b"same")
    (run.work / "a").write_bytes(b"else")
    upload(run, ticket(bucket), STATUS)
    assert come_home(bucket)["b"] == b"same"


def test_a_file_that_changes_between_two_tries_is_noticed(run: RunDir, bucket: Bucket) -> None:
    finish(run, a=b"x" * 3_000_000)
    path = run.work / "a"
    bucket.faults = ["503:SlowDown"] * 3

    def change() -> None:
        while not path.stat().st_size or len(bucket.faults) == 3:
            time.sleep(0.001)
        path.write_bytes(b"y" * 3_000_000)

    changing = threading.Thread(target=change)
    changing.start()
    upload(run, ticket(bucket), STATUS, pause_s=0.2)
    changing.join()
    assert f"{PREFIX}data/{digest(b'x' * 3_000_000)}" not in bucket.objects
    assert "a" not in come_home(bucket)


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.12", "3.13"])
def test_every_python_that_a_unit_may_have_uploads_and_downloads(
    run: RunDir, bucket: Bucket, tmp_path: Path, version: str
) -> None:
    python = find_python(version) or pytest.skip(f"no Python {version} here")
    finish(run, a=os.urandom(2_500_000))
    bucket.faults = ["cut:100", "503:SlowDown"]
    script = (
        "import json, sys; from pathlib import Path; from cloudrun.core.rundir import RunDir\n"
        "from cloudrun.agent.upload import upload; from cloudrun.agent.download import fetch\n"
        "run, ticket, files = RunDir(Path(sys.argv[1])), *map(json.loads, sys.argv[2:])\n"
        "if files: fetch(run.root / 'data', files, lambda *_: None, 0.01)\n"
        "else: upload(run, ticket, {'state': 'exited'}, 0.01)\n"
    )
    environment = {"PYTHONPATH": str(archived(tmp_path))}

    def do(*files: Any) -> None:
        words = [python, "-W", "error", "-c", script, str(run.root), json.dumps(ticket(bucket)), json.dumps(files)]
        subprocess.run(words, check=True, env=environment)

    do()
    content = come_home(bucket)["a"]
    bucket.objects["a"] = content
    bucket.faults = ["cut:100", "503:SlowDown"]
    do(bucket.file("a", "b/c"))
    assert (run.root / "data/b/c").read_bytes() == content


def archived(folder: Path) -> Path:
    """The agent as it travels: nothing else of this package is there to be imported."""
    path = folder / "agent.pyz"
    path.write_bytes(archive().data)
    return path


def find_python(version: str) -> str | None:
    """An interpreter of that version that really starts (a version manager's shim may not)."""
    managed = sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python3")))
    for python in filter(None, [*managed, shutil.which(f"python{version}")]):
        if subprocess.run([python, "-c", ""], capture_output=True, timeout=30, check=False).returncode == 0:
            return python
    return None


def test_memory_does_not_grow_with_the_outputs(run: RunDir, bucket: Bucket, tmp_path: Path) -> None:
    with (run.work / "big").open("wb") as stream:
        stream.truncate(600 * 1024**2)
    (run.work / "small").write_bytes(b"1")
    write_json(run.outputs, manifest.outputs(run, 10**12, 10, since_ns=0))
    script = tmp_path / "measure.py"
    script.write_text(
        "import json, resource, sys\n"
        "from pathlib import Path\n"
        "from cloudrun.agent.errors import AgentError\n"
        "from cloudrun.agent.upload import upload\n"
        "from cloudrun.core.rundir import RunDir\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "upload(RunDir(Path(sys.argv[1])), json.loads(sys.argv[2]), {'state': 'exited'})\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    with sink() as url:
        words = [sys.executable, str(script), str(run.root), json.dumps({**ticket(bucket), "url": url})]
        done = subprocess.run(
            words, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(PACKAGE)}
        )
    assert int(done.stdout) < 60  # MiB


def sink() -> Any:
    """A store that keeps nothing."""
    from contextlib import contextmanager
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            left = int(self.headers["Content-Length"])
            while left:
                left -= len(self.rfile.read(min(1 << 20, left)))
            self.send_response(204)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    @contextmanager
    def running() -> Iterator[str]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/results"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    return running()


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
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2",
         "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True,
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
