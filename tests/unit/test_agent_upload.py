"""Outputs on their way into a bucket: whole, once, and only what the job has left unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent import manifest
from cloudrun.agent.upload import upload
from cloudrun.core.rundir import RunDir, write_json
from cloudrun.runs.stored import parse_stored
from cloudrun.ssh.archive import archive
from tests.bucket_server import Bucket
from tests.pythons import find_python
from tests.uploads import PREFIX, STATUS, come_home, digest, finish, ticket

PACKAGE = Path(__file__).parents[2]


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


def test_memory_does_not_grow_with_the_outputs(run: RunDir, bucket: Bucket, tmp_path: Path) -> None:
    with (run.work / "big").open("wb") as stream:
        stream.truncate(250 * 1024**2)
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
