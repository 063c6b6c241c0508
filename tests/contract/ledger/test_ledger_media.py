"""A ledger that cannot be written, or not by this cloudrun: one clear message, and not a byte of it changes."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from cloudrun.ledger import Ledger
from tests.command import CliHere

ROOM_MB = 150  # more than what is needed for a launch to be thought of


def digests(folder: Path) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def written(folder: Path, make: SimpleNamespace) -> None:
    with closing(Ledger(folder)) as ledger:
        ledger.add_run(make.run("r-0tr2aaaaaaaaa"))
    (folder / "t.py").write_text("print(1)\n")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, which may be mounted anew in another way."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM_MB}m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=False)


def test_on_a_read_only_disk_what_is_known_is_shown_and_nothing_is_begun(mounted: Path, make: SimpleNamespace) -> None:
    written(mounted, make)
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
    before = digests(mounted)
    cli = CliHere(mounted)
    for words in (("results",), ("show", "r-0tr2"), ("config", "show")):
        done = cli(*words)
        assert done.returncode == 0, done.stderr
    done = cli("submit", "t.py")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) <= 3, done.stderr
    assert "next: " in done.stderr
    assert "Traceback" not in done.stderr
    assert digests(mounted) == before


def test_on_a_full_disk_it_is_said_what_to_do(mounted: Path, make: SimpleNamespace) -> None:
    written(mounted, make)
    free = os.statvfs(mounted)
    (mounted / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize))
    before = digests(mounted / ".cloudrun")
    cli = CliHere(mounted)
    cli.environ["TMPDIR"] = str(mounted.parent)
    assert cli("results").returncode == 0, "reading needs no room"
    for words in (("submit", "t.py"), ("init", "--yes")):
        done = cli(*words)
        assert done.returncode in (1, 2)
        assert "free some space" in done.stderr
        assert "Traceback" not in done.stderr
    assert {name: digest for name, digest in digests(mounted / ".cloudrun").items() if name in before} == before
    assert not (mounted / "cloudrun.toml").exists()


@pytest.mark.parametrize("words", [("results",), ("submit", "t.py"), ("units",), ("ps",), ("reap",)], ids=" ".join)
def test_a_newer_cloudrun_s_ledger_is_left_alone(tmp_path: Path, make: SimpleNamespace, words: tuple[str, ...]) -> None:
    written(tmp_path, make)
    database = tmp_path / ".cloudrun" / "ledger.sqlite"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("INSERT INTO migrations VALUES ('9999 from the future', '2030')")
        connection.commit()
    before = database.read_bytes()
    done = CliHere(tmp_path)(*words)
    assert done.returncode == 1
    assert "written by a newer cloudrun" in done.stderr
    assert "next: upgrade cloudrun" in done.stderr
    assert done.stderr.count("\n") <= 2
    assert database.read_bytes() == before
