"""Files that runs made: stored whole and verified or not at all, and the ways to them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.core.errors import LedgerError, NotFound, TransferError, UsageError
from cloudrun.core.records import FileEntry
from cloudrun.ledger import Ledger
from cloudrun.ledger.artifacts import ArtifactStore


def entry_of(content: bytes, path: str = "model.joblib") -> FileEntry:
    return FileEntry(path, len(content), hashlib.sha256(content).hexdigest())


def files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "artifacts")


def test_what_was_written_is_stored_under_its_digest_and_read_only(store: ArtifactStore) -> None:
    entry = entry_of(b"a model")
    assert not store.has(entry.sha256)
    with store.writer(entry) as sink:
        sink.write(b"a ")
        sink.write(b"")
        sink.write(b"model")
    assert store.has(entry.sha256)
    path = store.path(entry.sha256)
    assert path == store.root / entry.sha256[:2] / entry.sha256
    assert path.read_bytes() == b"a model"
    assert path.stat().st_mode & 0o777 == 0o444
    assert files_below(store.root) == [path]


@given(pieces=st.lists(st.binary(max_size=50), max_size=5))
def test_any_content_comes_back_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    entry = entry_of(b"".join(pieces))
    with store.writer(entry) as sink:
        for piece in pieces:
            sink.write(piece)
    with store.open(entry.sha256) as source:
        assert source.read() == b"".join(pieces)


@pytest.mark.parametrize(
    ("arrived", "why"),
    [
        (b"a mode", "6 of 7 bytes"),
        (b"a model!", "more than its 7 bytes"),
        (b"a m0del", "digest differs"),
        (b"", "0 of"),
    ],
)
def test_other_bytes_than_announced_are_not_stored(store: ArtifactStore, arrived: bytes, why: str) -> None:
    entry = entry_of(b"a model")
    with pytest.raises(TransferError, match=why), store.writer(entry) as sink:
        sink.write(arrived)
    assert not store.has(entry.sha256)
    assert files_below(store.root) == []


def test_what_goes_wrong_in_between_comes_out_unchanged_and_leaves_nothing(store: ArtifactStore) -> None:
    for error in (ConnectionResetError("gone"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, store.writer(entry_of(b"a model")) as sink:  # noqa: PT012
            sink.write(b"a mo")
            raise error
        assert caught.value is error
    assert files_below(store.root) == []


def test_storing_it_again_is_fine_and_heals_a_damaged_file(store: ArtifactStore) -> None:
    entry = entry_of(b"a model")
    for _ in range(2):
        with store.writer(entry) as sink:
            sink.write(b"a model")
    path = store.path(entry.sha256)
    path.chmod(0o644)
    path.write_bytes(b"a m0del")
    with store.writer(entry) as sink:
        sink.write(b"a model")
    assert path.read_bytes() == b"a model"


def test_many_threads_may_store_the_same_content(store: ArtifactStore) -> None:
    content = os.urandom(100_000)
    entry = entry_of(content)

    def write(_thread: int) -> None:
        with store.writer(entry) as sink:
            for start in range(0, len(content), 1000):
                sink.write(content[start : start + 1000])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [path.read_bytes() for path in files_below(store.root)] == [content]


def test_a_digest_that_is_none_never_becomes_a_path(store: ArtifactStore) -> None:
    for digest in ("", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "\n"):
        with pytest.raises(NotFound):
            store.has(digest)
    with pytest.raises(NotFound, match="no artifact 000000000000"):
        store.path("0" * 64)


def test_a_copy_is_whole_ones_own_and_replaces_what_was_there(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"a model")
    entry = store.add(tmp_path / "source")
    assert entry == FileEntry("source", 7, hashlib.sha256(b"a model").hexdigest())
    destination = tmp_path / "new" / "folder" / "model.joblib"
    store.copy_out(entry.sha256, destination)
    destination.write_bytes(b"mine")
    assert store.path(entry.sha256).read_bytes() == b"a model"
    store.copy_out(entry.sha256, destination)
    assert destination.read_bytes() == b"a model"
    assert files_below(tmp_path / "new") == [destination]
    with pytest.raises(UsageError, match="is a folder"):
        store.copy_out(entry.sha256, tmp_path)


def test_a_damaged_file_is_noticed_before_it_is_used(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"a model")
    entry = store.add(tmp_path / "source")
    path = store.path(entry.sha256)
    path.chmod(0o644)
    path.write_bytes(b"a m0del")
    with pytest.raises(LedgerError, match="damaged"):
        store.copy_out(entry.sha256, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_what_cannot_be_read_or_written_is_a_ledger_error(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        store.add(tmp_path / "nothing")
    store.root.write_text("a file where the folder should be")
    with pytest.raises(LedgerError), store.writer(entry_of(b"a model")):
        pass


FILL_A_SMALL_DISK = """
import ctypes, os, sys
from pathlib import Path
from cloudrun.core.errors import LedgerError
from cloudrun.ledger.artifacts import ArtifactStore
from cloudrun.core.records import FileEntry

libc = ctypes.CDLL(None, use_errno=True)
small = sys.argv[1].encode()
NEW_USER_AND_MOUNTS = 0x10000000 | 0x00020000
maps = {"uid_map": f"0 {os.geteuid()} 1", "setgroups": "deny", "gid_map": f"0 {os.getegid()} 1"}
if libc.unshare(NEW_USER_AND_MOUNTS):
    sys.exit(77)
for name, text in maps.items():
    Path("/proc/self", name).write_text(text)
if libc.mount(b"none", small, b"tmpfs", 0, b"size=64k"):
    sys.exit(77)
store = ArtifactStore(Path(sys.argv[1]))
try:
    with store.writer(FileEntry("big", 1_000_000, "0" * 64)) as sink:
        sink.write(bytes(1_000_000))
except LedgerError as error:
    print(error, "|", error.next_step)
print([path for path in store.root.rglob("*") if path.is_file()])
"""


def test_a_full_disk_is_said_and_nothing_half_written_stays(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("a small disk of one's own takes Linux's namespaces")
    done = subprocess.run(
        [sys.executable, "-c", FILL_A_SMALL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    if done.returncode == 77:
        pytest.skip("no user namespaces here")
    assert done.stderr == ""
    said, left = done.stdout.splitlines()
    assert "the disk is full" in said
    assert "free some space" in said
    assert left == "[]"


# -- by way of a run


def test_artifacts_are_found_by_path_and_by_file_name(ledger: Ledger, make: SimpleNamespace, tmp_path: Path) -> None:
    make.launched(ledger, "i-1")
    files = {"out/a.txt": b"1", "a.txt": b"2", "x/b.txt": b"3", "y/b.txt": b"4", "stdout.log": b"5", "c.txt": b"6"}
    make.finished(ledger, make.run(), files=files, logs={"stdout.log": b"printed \xff", "stderr.log": b""})
    run = ledger.get("run-1")
    assert run.path("a.txt").read_bytes() == b"2"
    assert run.path("out/a.txt").read_bytes() == b"1"
    assert run.path("stdout.log").read_bytes() == b"5"
    assert run.path("stderr.log").read_bytes() == b""
    with pytest.raises(UsageError, match=r"several artifacts are called 'b.txt': x/b.txt, y/b.txt"):
        run.path("b.txt")
    with pytest.raises(NotFound, match=r"no artifact 'c.txr'; near: c.txt"):
        run.path("c.txr")
    assert run.log() == "printed \ufffd"
    assert run.log("stderr") == ""
    with pytest.raises(NotFound, match="no provision log"):
        run.log("provision")


def test_an_artifact_is_saved_to_a_file_or_into_a_folder(ledger: Ledger, make: SimpleNamespace, tmp_path: Path) -> None:
    make.launched(ledger, "i-1")
    make.finished(ledger, make.run(), files={"out/a.txt": b"1"})
    run = ledger.get("run-1")
    assert run.save("a.txt", tmp_path) == tmp_path / "a.txt"
    assert run.save("out/a.txt", tmp_path / "mine.txt").read_bytes() == b"1"
