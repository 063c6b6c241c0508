"""What is shipped, from real folders and real git checkouts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.core.marks import REPORT_MARK
from cloudrun.runs.digests import Digests
from cloudrun.runs.project import Shipment, checked_script, project_root, shipment


def ship(script: Path, cwd: Path | None = None, refuse: int = 10**9) -> Shipment:
    return shipment(script, warn_bytes=10**6, refuse_bytes=refuse, caller_cwd=cwd or script.parent)


def names(goods: Shipment) -> list[str]:
    return [entry.path for entry in goods.entries]


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def git(folder: Path, *words: str) -> None:
    subprocess.run(["git", "-C", folder, *words], check=True, capture_output=True)


@pytest.mark.parametrize("marker", ["cloudrun.toml", "pyproject.toml", ".git"])
def test_the_root_is_the_nearest_folder_with_a_marker(tmp_path: Path, marker: str) -> None:
    write(tmp_path / "outer" / marker)
    script = write(tmp_path / "outer" / "jobs" / "deep" / "train.py")
    assert project_root(script) == tmp_path / "outer"


def test_without_a_marker_the_scripts_folder_travels_but_nothing_hidden(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py")
    for name in ("data/rows.csv", ".ssh/id_ed25519", ".env", "venv/pyvenv.cfg", "venv/lib/a.py", "__pycache__/t.pyc"):
        write(tmp_path / name)
    assert names(ship(script)) == ["data/rows.csv", "train.py"]


def test_in_a_checkout_git_says_what_travels(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    script = write(tmp_path / "jobs" / "train.py")
    write(tmp_path / ".gitignore", "*.csv\njobs/secret.py\n")
    write(tmp_path / "big.csv")
    write(tmp_path / "untracked but welcome.txt")
    write(tmp_path / ".cloudrun" / "ledger.sqlite")
    tracked = write(tmp_path / "tracked.csv")
    git(tmp_path, "add", "-f", "tracked.csv")
    gone = write(tmp_path / "gone.txt")
    git(tmp_path, "add", "gone.txt")
    gone.unlink()
    assert names(ship(script)) == [".gitignore", "jobs/train.py", tracked.name, "untracked but welcome.txt"]
    ignored = write(tmp_path / "jobs" / "secret.py")
    assert "jobs/secret.py" in names(ship(ignored)), "a script that is submitted travels, ignored or not"


def test_reports_of_ours_stay_whatever_they_are_called_and_other_pages_travel(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py")
    write(tmp_path / "report.html", f"{REPORT_MARK}...")
    write(tmp_path / "monday.htm", f"{REPORT_MARK}...")
    write(tmp_path / "template.html", "<!doctype html><title>mine</title>")
    write(tmp_path / "notes.txt", REPORT_MARK)
    goods = ship(script)
    assert (names(goods), goods.left_out) == (["notes.txt", "template.html", "train.py"], ())


def test_the_working_directory_is_the_callers_place_in_the_project_else_the_scripts(tmp_path: Path) -> None:
    write(tmp_path / "project" / "pyproject.toml")
    script = write(tmp_path / "project" / "jobs" / "train.py")
    assert ship(script, cwd=tmp_path / "project").cwd == "."
    assert ship(script, cwd=tmp_path / "project" / "jobs").cwd == "jobs"
    assert ship(script, cwd=tmp_path).cwd == "jobs"


def test_links_inside_the_project_travel_and_links_out_of_it_stay(tmp_path: Path) -> None:
    script = write(tmp_path / "project" / "train.py", "text")
    write(tmp_path / "outside.txt")
    (tmp_path / "project" / "inside.py").symlink_to("train.py")
    (tmp_path / "project" / "outward.txt").symlink_to(tmp_path / "outside.txt")
    (tmp_path / "project" / "dangling").symlink_to("nowhere")
    goods = ship(script)
    assert names(goods) == ["inside.py", "train.py"]
    assert [path for path, _ in goods.left_out] == ["outward.txt"]


def test_hostile_names_stay_and_are_named(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py")
    write(tmp_path / "two\nlines")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_text("x")
    os.mkfifo(tmp_path / "pipe")
    goods = ship(script)
    assert names(goods) == ["train.py"]
    assert len(goods.left_out) == 3


def test_too_much_is_refused_and_the_largest_files_are_named(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py")
    (tmp_path / "huge.bin").write_bytes(b"0" * 5000)
    with pytest.raises(UsageError, match=r"huge\.bin"):
        ship(script, refuse=4000)


def test_digests_are_of_the_content(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", "")
    (entry,) = ship(script).entries
    assert (entry.size, entry.sha256[:8]) == (0, "e3b0c442")  # SHA-256 of nothing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no script"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "not a regular file"),
    ],
)
def test_a_script_that_cannot_be_one_is_refused(tmp_path: Path, make: object, message: str) -> None:
    path = tmp_path / "train.py"
    make(path)  # type: ignore[operator]
    with pytest.raises(UsageError, match=message) as caught:
        ship(path)
    assert caught.value.next_step


def test_a_mistyped_script_is_suggested(tmp_path: Path) -> None:
    write(tmp_path / "train.py")
    with pytest.raises(UsageError, match=r"train\.py"):
        ship(tmp_path / "trian.py")


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path) -> None:
    """Left alone for long enough; what its memory says is then believed, which a wrong memory shows."""
    script = write(tmp_path / "train.py", "text")
    cache = tmp_path / "cache"
    clock = time.time_ns() + 10_000_000_000  # nothing here is older than a moment: the file system's clock is put on
    digests = Digests(tmp_path, cache)
    digests._moment_ns = clock
    digests._new = cache / "new"
    cache.mkdir()
    digests.of("train.py", script.stat())
    digests.save(["train.py"])
    document = (cache / "digests.json").read_text()
    (cache / "digests.json").write_text(document.replace(hashlib.sha256(b"text").hexdigest(), "1" * 64))
    assert Digests(tmp_path, cache).of("train.py", script.stat())[1] == "1" * 64
    script.write_text("tex2")
    assert Digests(tmp_path, cache).of("train.py", script.stat())[1] == hashlib.sha256(b"tex2").hexdigest()


def test_an_edit_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    write(tmp_path / ".cloudrun" / "ledger")
    script = write(tmp_path / "train.py", "before")
    ship(script)
    info = script.stat()
    script.write_text("behind")
    os.utime(script, ns=(info.st_atime_ns, info.st_mtime_ns))
    (entry,) = ship(script).entries
    assert entry.sha256 == hashlib.sha256(b"behind").hexdigest()


def test_a_damaged_memory_of_digests_is_none(tmp_path: Path) -> None:
    script = write(tmp_path / "train.py", "text")
    for text in ("", "[]", "{", '{"version":1,"root":"/elsewhere","files":{}}'):
        write(tmp_path / ".cloudrun" / "cache" / "digests.json", text)
        (entry,) = ship(script).entries
        assert entry.sha256 == hashlib.sha256(b"text").hexdigest()


def test_a_script_in_a_folder_above_is_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cloudrun.toml").touch()
    (tmp_path / "train.py").touch()
    (tmp_path / "below" / "further").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below" / "further")
    script = checked_script("../../train.py")
    assert script == tmp_path / "train.py"
    assert project_root(script) == tmp_path
