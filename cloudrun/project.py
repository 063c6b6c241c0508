"""The user's project: where its root is, which of its files a unit gets, and where a job starts in it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cloudrun.core.errors import UsageError
from cloudrun.core.records import FileEntry
from cloudrun.core.rundir import safe_relative
from cloudrun.plan.quantities import size_text

ROOT_MARKERS = ("cloudrun.toml", "pyproject.toml", ".git")
_NEVER = {".cloudrun", "__pycache__", "node_modules"}


@dataclass(frozen=True)
class Shipment:
    """What travels to a unit: files below `root`, the `script` among them and where the job starts (`cwd`).

    `script` and `cwd` are relative to `root` ("." for the root itself); `left_out` says which files stay and why.
    """

    root: Path
    script: str
    cwd: str
    entries: tuple[FileEntry, ...]
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(entry.size for entry in self.entries)


def checked_script(script: str | Path) -> Path:
    """The script's absolute path. Raises UsageError where it is missing, a folder, or cannot be read."""
    path = Path(script).expanduser()
    if path.is_dir():
        raise UsageError(f"{script} is a folder, not a script", next_step=f"cloudrun submit {path / 'train.py'}")
    if not path.exists():
        near = _nearest(path)
        raise UsageError(
            f"there is no script {script}" + (f" (the folder has {near})" if near else ""),
            next_step=f"cloudrun submit {path.parent / near}"
            if near
            else "check the path, or cd to the script's folder",
        )
    if not path.is_file():
        raise UsageError(f"{script} is not a regular file", next_step="give the path of a Python script")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{script} cannot be read", next_step=f"chmod u+r {script}")
    return path.absolute()


def _nearest(path: Path) -> str:
    from difflib import get_close_matches

    try:
        names = [other.name for other in path.parent.iterdir() if other.suffix == ".py"]
    except OSError:
        return ""
    return next(iter(get_close_matches(path.name, names, n=1, cutoff=0.5)), "")


def project_root(script: Path) -> Path:
    """The nearest folder at or above the script's with a root marker; else the script's own folder."""
    for folder in script.parents:
        if any((folder / marker).exists() for marker in ROOT_MARKERS):
            return folder
    return script.parent


def shipment(script: str | Path, *, warn_bytes: int, refuse_bytes: int, caller_cwd: Path | None = None) -> Shipment:
    """What a unit gets to run `script`. Raises UsageError for an unusable script or more than `refuse_bytes`."""
    path = checked_script(script)
    root = project_root(path)
    names = {*_files(root), path.relative_to(root).as_posix()}
    entries: list[FileEntry] = []
    left_out: list[tuple[str, str]] = []
    total = 0
    for name in sorted(names):
        reason = _refusal(root, name)
        if reason is None:
            size = (root / name).stat().st_size
            total += size
            if total > refuse_bytes:
                raise _too_large(root, names, refuse_bytes)
            entries.append(FileEntry(name, size, "", 0o755 if os.access(root / name, os.X_OK) else 0o644))
        elif reason:
            left_out.append((name, reason))
    if total > warn_bytes:
        left_out.append(("", f"{size_text(total)} travel to the unit, in {len(entries)} files"))
    cwd = (caller_cwd or Path.cwd()).absolute()
    start = cwd if cwd.is_relative_to(root) else path.parent
    return Shipment(
        root,
        path.relative_to(root).as_posix(),
        start.relative_to(root).as_posix(),
        tuple(_digested(root, entry) for entry in entries),
        tuple(left_out),
    )


def _refusal(root: Path, name: str) -> str | None:
    """Why a file is not shipped; None where it is; "" where not even a word is due (gone, or a folder)."""
    if not safe_relative(name):
        return "its name has control characters or a backslash"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    path = root / name
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return "a link that leads out of the project"
    if not path.is_file():
        return "" if path.is_dir() or not path.exists() else "not a regular file"
    if not os.access(path, os.R_OK):
        return "it cannot be read"
    return None


def _too_large(root: Path, names: set[str], refuse_bytes: int) -> UsageError:
    sizes = sorted(((root / name).stat().st_size, name) for name in names if (root / name).is_file())
    largest = ", ".join(f"{name} ({size_text(size)})" for size, name in sizes[:-4:-1])
    leave_out = "put what the job does not need into .gitignore"
    if not (root / ".git").exists():
        leave_out = f"move what the job does not need elsewhere, or `git init {root}` and name it in .gitignore"
    return UsageError(
        f"{root} has more than {size_text(refuse_bytes)} to ship; the largest are {largest}",
        next_step=f"{leave_out}, or raise ship_refuse in cloudrun.toml",
    )


def _digested(root: Path, entry: FileEntry) -> FileEntry:
    digest = hashlib.sha256()
    size = 0
    with (root / entry.path).open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
    return FileEntry(entry.path, size, digest.hexdigest(), entry.mode)


def _files(root: Path) -> Iterator[str]:
    """In a git checkout what git tracks or would track; elsewhere every file that is not hidden."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            capture_output=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        yield from _walk(root)
        return
    for raw in listed.stdout.split(b"\0"):
        name = os.fsdecode(raw)
        if name and not _NEVER.intersection(name.split("/")):
            yield name


def _walk(root: Path) -> Iterator[str]:
    # Hidden files stay: outside a checkout nobody has said that .ssh or .aws are meant to travel.
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and name not in _NEVER and not (here / name / "pyvenv.cfg").exists()
        ]
        for name in files:
            if not name.startswith("."):
                yield (here / name).relative_to(root).as_posix()
