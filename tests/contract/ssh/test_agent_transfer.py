"""Files to and from a unit: the project up, outputs and logs down, and nothing that could do harm."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudrun.core import rundir
from cloudrun.core.errors import ConnectionLost, TransferError
from cloudrun.core.records import FileEntry
from cloudrun.core.rundir import RunDir, write_json
from cloudrun.ssh.agent import Agent, Outputs
from cloudrun.ssh.session import Session

MAX_BYTES, MAX_FILES = 1_000_000, 20


class Store:
    """Keeps what arrives whole, as the artifact store does: the digest decides."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    @contextlib.contextmanager
    def writer(self, entry: FileEntry) -> Iterator[io.BytesIO]:
        buffer = io.BytesIO()
        yield buffer
        if hashlib.sha256(buffer.getvalue()).hexdigest() != entry.sha256:
            raise TransferError(f"{entry.path} is not what its manifest says")
        self.files[entry.path] = buffer.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def entry_of(root: Path, name: str) -> FileEntry:
    data = (root / name).read_bytes()
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest(), (root / name).stat().st_mode & 0o777)


def work(agent: Agent, run_dir: str, code: str) -> Outputs:
    """Run `code` to its end in the run's work/ and return its manifest."""
    argv = [sys.executable, "-I", "-c", code]
    agent.start(run_dir, rundir.spec("run", 1, argv, ".", {}, MAX_BYTES, MAX_FILES, 1.0))
    ended = agent.follow(run_dir, lambda *_: None)
    assert ended.exit_code == 0, ended
    return agent.outputs(run_dir)


def names(outputs: Outputs) -> list[str]:
    return [entry.path for entry in outputs.entries]


def test_a_project_arrives_as_it_is(agent: Agent, run_dir: str, root: Path, host: Any) -> None:
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "data.bin").write_bytes(os.urandom(700_000))
    (root / "tool").write_text("#!/bin/sh\n")
    (root / "tool").chmod(0o755)
    (root / "größe.txt").touch()
    entries = [entry_of(root, name) for name in ("deep/er/data.bin", "tool", "größe.txt")]
    progress: list[tuple[int, int]] = []

    agent.ship(run_dir, root, entries, lambda done, total: progress.append((done, total)))

    there = host.home / run_dir / "work"
    assert [entry_of(there, entry.path) for entry in entries] == entries
    assert progress[-1] == (700_010, 700_010)


def test_shipping_again_replaces_what_a_first_try_left(agent: Agent, run_dir: str, root: Path, host: Any) -> None:
    (root / "a").write_text("one")
    agent.ship(run_dir, root, [entry_of(root, "a")])
    (root / "a").write_text("two!")
    agent.ship(run_dir, root, [entry_of(root, "a")])
    assert (host.home / run_dir / "work" / "a").read_text() == "two!"


@pytest.mark.parametrize("now", ["short", "the same length!", "much longer than it was"])
def test_a_file_that_changed_since_its_digest_is_not_shipped(agent: Agent, run_dir: str, root: Path, now: str) -> None:
    (root / "a").write_text("what it was like")
    entry = entry_of(root, "a")
    (root / "a").write_text(now)
    with pytest.raises(TransferError, match="a"):
        agent.ship(run_dir, root, [entry])


def test_a_file_that_is_gone_is_named(agent: Agent, run_dir: str, root: Path) -> None:
    with pytest.raises(TransferError, match="absent"):
        agent.ship(run_dir, root, [FileEntry("absent", 1, "0" * 64)])


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a//b", "a\nb", "."])
def test_no_path_leads_out_of_the_work_folder(agent: Agent, run_dir: str, root: Path, host: Any, name: str) -> None:
    with pytest.raises((TransferError, ConnectionLost)):
        agent.ship(run_dir, root, [FileEntry(name, 0, hashlib.sha256().hexdigest())])
    assert not (host.home / run_dir / "outside").exists()


def test_a_ship_refused_in_the_middle_says_why(agent: Agent, run_dir: str, root: Path, host: Any) -> None:
    """The agent stops listening while the client still has megabytes to say."""
    (root / "big").write_bytes(os.urandom(30_000_000))
    (root / "one").write_text("x")
    agent.ship(run_dir, root, [entry_of(root, "one")])
    (host.home / run_dir / "incoming").write_text("no folder")
    with pytest.raises(TransferError, match="incoming"):
        agent.ship(run_dir, root, [entry_of(root, "one"), entry_of(root, "big")])


def test_outputs_are_what_the_job_made_or_changed(agent: Agent, run_dir: str, root: Path) -> None:
    for name in ("kept", "changed", "rewritten", "removed"):
        (root / name).write_text("before")
    agent.ship(run_dir, root, [entry_of(root, name) for name in ("kept", "changed", "rewritten", "removed")])
    code = (
        "import os\nos.remove('removed')\n"
        "open('changed', 'w').write('behind')\nopen('rewritten', 'w').write('before')\n"
        "os.makedirs('models/best')\nopen('models/best/model.joblib', 'wb').write(bytes(300_000))\n"
        "os.makedirs('__pycache__')\nopen('__pycache__/module.pyc', 'w')\nprint('done')"
    )
    outputs = work(agent, run_dir, code)
    # written with the very bytes it had: a model that is trained again is a result again
    assert names(outputs) == ["changed", "rewritten", "models/best/model.joblib"]
    assert outputs.left_out == ()
    assert outputs.refused == ""

    store, progress = Store(), []
    agent.fetch(run_dir, outputs.entries, store.writer, lambda done, total: progress.append((done, total)))
    assert store.files == {
        "changed": b"behind",
        "rewritten": b"before",
        "models/best/model.joblib": bytes(300_000),
    }
    assert progress[-1] == (300_012, 300_012)

    logs = Store()
    agent.fetch_logs(run_dir, outputs.logs, logs.writer)
    assert logs.files == {"stdout.log": b"done\n", "stderr.log": b""}


def test_a_change_that_keeps_size_and_time_is_still_seen(agent: Agent, run_dir: str, root: Path) -> None:
    (root / "a").write_text("before")
    agent.ship(run_dir, root, [entry_of(root, "a")])
    code = (
        "import os\ns = os.stat('a')\nopen('a', 'r+').write('behind')\nos.utime('a', ns=(s.st_atime_ns, s.st_mtime_ns))"
    )
    assert names(work(agent, run_dir, code)) == ["a"]


def test_what_is_not_a_plain_file_with_a_plain_name_is_left_out_with_a_reason(agent: Agent, run_dir: str) -> None:
    code = (
        "import os, socket\n"
        "os.symlink('/etc/passwd', 'link')\nos.symlink('/etc', 'folder-link')\nos.mkfifo('pipe')\n"
        "s = socket.socket(socket.AF_UNIX); s.bind('socket')\n"
        "open('two\\nlines', 'w')\nopen(b'not-utf8-\\xff', 'w')\nopen('back\\\\slash', 'w')\n"
        "os.mkdir('bad\\nfolder'); open('bad\\nfolder/x', 'w')\n"
        "open('good', 'w').write('x')"
    )
    outputs = work(agent, run_dir, code)
    assert names(outputs) == ["good"]
    reasons = dict(outputs.left_out)
    assert reasons["link"] == "a symbolic link to '/etc/passwd'"
    assert reasons["folder-link"] == "a symbolic link to '/etc'"
    assert reasons["pipe"] == "a named pipe"
    assert reasons["socket"] == "a socket"
    assert reasons[r"'two\nlines'"] == "its name is not plain text"
    assert reasons[r"'not-utf8-\udcff'"] == "its name is not plain text"
    assert r"'back\\slash'" in reasons
    assert reasons[r"'bad\nfolder'"] == "a folder whose name is not plain text"
    assert len(reasons) == 8


def test_too_many_files_come_up_to_the_limit(agent: Agent, run_dir: str) -> None:
    outputs = work(agent, run_dir, "for n in range(30): open(f'{n:02}', 'w').write('x')")
    assert names(outputs) == [f"{number:02}" for number in range(MAX_FILES)]
    assert len(outputs.left_out) == 10
    assert str(MAX_FILES) in outputs.refused


def test_too_large_files_do_not_keep_the_small_ones(agent: Agent, run_dir: str) -> None:
    code = "open('big', 'w').truncate(2_000_000)\nopen('scores.json', 'w').write('{}')"
    outputs = work(agent, run_dir, code)
    assert names(outputs) == ["scores.json"]
    assert outputs.left_out[0][0] == "big"
    assert str(MAX_BYTES) in outputs.refused


def test_a_very_long_list_of_left_out_names_is_counted(agent: Agent, run_dir: str) -> None:
    outputs = work(agent, run_dir, "import os\nfor n in range(1500): os.symlink('x', f'{n:04}')")
    assert len(outputs.left_out) == 1001
    assert outputs.left_out[-1][0] == "(500 more)"


def test_a_file_that_grew_is_still_what_the_manifest_says(agent: Agent, run_dir: str, host: Any) -> None:
    outputs = work(agent, run_dir, "open('log', 'w').write('until here')")
    with (host.home / run_dir / "work" / "log").open("a") as file:
        file.write(", and further")
    store = Store()
    agent.fetch(run_dir, outputs.entries, store.writer)
    assert store.files == {"log": b"until here"}


def test_a_file_that_vanished_or_changed_does_not_keep_the_others(agent: Agent, run_dir: str, host: Any) -> None:
    code = "for name in ('a-gone', 'b-cut', 'c-other', 'd-good'): open(name, 'w').write('content')"
    outputs = work(agent, run_dir, code)
    folder = host.home / run_dir / "work"
    (folder / "a-gone").unlink()
    (folder / "b-cut").write_text("con")
    (folder / "c-other").write_text("CONTENT")
    store = Store()
    with pytest.raises(TransferError, match=r"a-gone.*\(and 2 more\)"):
        agent.fetch(run_dir, outputs.entries, store.writer)
    assert store.files == {"d-good": b"content"}
    assert agent.status(run_dir) is not None  # the channel is still in step


def test_a_link_put_in_an_outputs_place_is_not_followed(agent: Agent, run_dir: str, host: Any) -> None:
    outputs = work(agent, run_dir, "open('a', 'w').write('content')")
    (host.home / run_dir / "work" / "a").unlink()
    (host.home / run_dir / "work" / "a").symlink_to("/etc/passwd")
    store = Store()
    with pytest.raises(TransferError):
        agent.fetch(run_dir, outputs.entries, store.writer)
    assert store.files == {}


@pytest.mark.parametrize(
    "entry",
    [
        {"path": "../../escape", "size": 1, "sha256": "0" * 64, "mode": 0o644},
        {"path": "/etc/passwd", "size": 1, "sha256": "0" * 64, "mode": 0o644},
        {"path": "fine", "size": -1, "sha256": "0" * 64, "mode": 0o644},
        {"path": "fine", "size": 1, "sha256": "../../escape", "mode": 0o644},
        {"path": "fine", "size": 1, "mode": 0o644},
        {"path": "fine", "size": "many", "sha256": "0" * 64, "mode": 0o644},
        {"path": "fine", "size": float("inf"), "sha256": "0" * 64, "mode": 0o644},
        "no entry at all",
    ],
)
def test_a_manifest_that_could_do_harm_is_refused(agent: Agent, run_dir: str, host: Any, entry: Any) -> None:
    run = RunDir(host.home / run_dir)
    run.root.mkdir(parents=True)
    write_json(run.outputs, {"entries": [entry], "logs": [], "left_out": [], "refused": ""})
    with pytest.raises(TransferError):
        agent.outputs(run_dir)


def test_the_manifest_says_what_the_jobs_python_had(agent: Agent, run_dir: str) -> None:
    outputs = work(agent, run_dir, "pass")
    assert outputs.python == ".".join(map(str, sys.version_info[:3]))
    assert outputs.platform
    import numpy

    assert outputs.versions["numpy"] == numpy.__version__
    assert set(outputs.versions) == {"numpy", "scipy", "scikit-learn", "joblib"}


def test_a_connection_cut_in_the_middle_of_a_fetch_leaves_nothing_half(line: Any, run_dir: str) -> None:
    store = Store()
    with Session.open(line.target, timeout_s=60) as session:
        agent = Agent(session)
        size = 40_000_000  # more than may be on its way when the line is cut
        work(agent, run_dir, f"open('a', 'wb').truncate({size})")
        with pytest.raises(ConnectionLost):
            agent.fetch(run_dir, [FileEntry("a", size, "0" * 64)], store.writer, lambda done, total: line.cut())
    assert store.files == {}


def test_a_writer_that_fails_surfaces_as_itself(agent: Agent, run_dir: str) -> None:
    outputs = work(agent, run_dir, "open('a', 'w').write('x')")

    @contextlib.contextmanager
    def full_disk(entry: FileEntry) -> Iterator[Any]:
        raise OSError(28, "No space left on device")
        yield

    with pytest.raises(OSError, match="No space"):
        agent.fetch(run_dir, outputs.entries, full_disk)
    assert agent.status(run_dir) is not None


def test_hundreds_of_small_files_come_as_one_stream(agent: Agent, run_dir: str, root: Path) -> None:
    for number in range(400):
        (root / str(number)).write_text(str(number))
    entries = [entry_of(root, str(number)) for number in range(400)]
    agent.ship(run_dir, root, entries)
    store = Store()
    agent.fetch(run_dir, entries, store.writer)
    assert store.files == {str(number): str(number).encode() for number in range(400)}


def test_a_file_of_many_windows_comes_whole(agent: Agent, run_dir: str, root: Path) -> None:
    (root / "big").write_bytes(os.urandom(1_000_000) * 20)
    entry = entry_of(root, "big")
    agent.ship(run_dir, root, [entry])
    store = Store()
    agent.fetch(run_dir, [entry], store.writer)
    assert hashlib.sha256(store.files["big"]).hexdigest() == entry.sha256


def test_nobody_listens_to_the_network_on_the_unit() -> None:
    """The agent speaks over the SSH channel, and the warden over a Unix socket in a folder of its user's."""
    import cloudrun.agent

    sources = {path.name: path.read_text() for path in Path(str(cloudrun.agent.__file__)).parent.glob("*.py")}
    assert [name for name, text in sources.items() if "AF_INET" in text or "create_server" in text] == []
    listening = [name for name, text in sources.items() if ".listen(" in text]
    assert all("AF_UNIX" in sources[name] for name in listening)
