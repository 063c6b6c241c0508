"""The user's project: where its root is, which of its files a unit gets, and where a job starts in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloudrun.core.errors import UsageError
from cloudrun.core.marks import is_report, may_be_report
from cloudrun.core.records import FileEntry
from cloudrun.core.rundir import safe_relative
from cloudrun.plan.quantities import counted, size_text
from cloudrun.plan.typed import path_typed
from cloudrun.runs.digests import Digests

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
        raise UsageError(
            f"{script} is a folder, not a script", next_step=f"cloudrun submit {path_typed(path / 'train.py')}"
        )
    if not path.exists():
        near = _nearest(path)
        raise UsageError(
            f"there is no script {script}" + (f" (the folder has {near})" if near else ""),
            next_step=f"cloudrun submit {path_typed(path.parent / near)}"
            if near
            else "check the path, or cd to the script's folder",
        )
    if not path.is_file():
        raise UsageError(f"{script} is not a regular file", next_step="give the path of a Python script")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{script} cannot be read", next_step=f"chmod u+r {path_typed(script)}")
    if ".." in path.parts:  # where it leads to; a script's name itself may be a link
        return path.parent.resolve() / path.name
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


def shipment(
    script: str | Path,
    *,
    warn_bytes: int,
    refuse_bytes: int,
    caller_cwd: Path | None = None,
    cache_dir: Path | None = None,
    data: Sequence[str] = (),
    root: Path | None = None,
) -> Shipment:
    """What a unit gets to run `script`. Raises UsageError for an unusable script or more than `refuse_bytes`.

    `data` are paths that travel as data sets: what is below the root of them is no part of it, and may be of any size.
    `root` is the script's own, `project_root`, unless it is given. Digests are remembered in `cache_dir`, which is the
    project's own where it has a `.cloudrun` folder.
    """
    path = checked_script(script)
    root = root or project_root(path)
    apart = [place for each in data if "://" not in each and (place := place_below(root, each)[1])]
    listed = (name for name in _files(root) if not any(within(name, place) for place in apart))
    names = {*listed, path.relative_to(root).as_posix()}
    chosen: list[tuple[str, os.stat_result]] = []
    left_out: list[tuple[str, str]] = []
    total = 0
    for name in sorted(names):
        found = _looked_at(root, name)
        if isinstance(found, os.stat_result):
            total += found.st_size
            if total > refuse_bytes:
                raise _too_large(root, names, refuse_bytes)
            chosen.append((name, found))
        elif found:
            left_out.append((name, found))
    _require_script(path.relative_to(root).as_posix(), left_out)
    if total > warn_bytes:
        left_out.append(("", f"{size_text(total)} travel to the unit, in {counted(len(chosen), 'file')}"))
    cwd = (caller_cwd or Path.cwd()).absolute()
    start = cwd if cwd.is_relative_to(root) else path.parent
    if cache_dir is None and (root / ".cloudrun").is_dir():
        cache_dir = root / ".cloudrun" / "cache"
    return Shipment(
        root,
        path.relative_to(root).as_posix(),
        start.relative_to(root).as_posix(),
        _digested(chosen, Digests(root, cache_dir)),
        tuple(left_out),
    )


def _require_script(script: str, left_out: Iterable[tuple[str, str]]) -> None:
    """Raises UsageError where the script itself cannot travel."""
    why = dict(left_out).get(script)
    if why is None:
        return
    in_utf8 = sys.getfilesystemencoding() == "utf-8"
    raise UsageError(
        f"the script {script!r} cannot be shipped: {why}",
        next_step="give it a plain name" if in_utf8 else "export LC_ALL=C.UTF-8, or give it a plain name",
    )


def place_below(root: Path, source: str) -> tuple[Path, str | None]:
    """A path that somebody named, where it is and not how it was said: without ".." and links on the way there. And
    relative to the root ("" is the root itself), or None where it is not below it."""
    given = Path(source).expanduser()
    path = (
        Path(os.path.realpath(given)) if given.name in ("", "..") else Path(os.path.realpath(given.parent), given.name)
    )
    real = Path(os.path.realpath(root))
    if not path.is_relative_to(real):
        return path, None
    place = path.relative_to(real).as_posix()
    return path, "" if place == "." else place


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _digested(chosen: list[tuple[str, os.stat_result]], digests: Digests) -> tuple[FileEntry, ...]:
    entries = []
    for name, info in chosen:
        size, sha256 = digests.of(name, info)
        entries.append(FileEntry(name, size, sha256, 0o755 if info.st_mode & 0o111 else 0o644))
    digests.save(entry.path for entry in entries)
    return tuple(entries)


def _looked_at(root: Path, name: str) -> os.stat_result | str:
    """A file that is shipped; why it is not; "" where not even a word is due (gone, a folder, a report of ours)."""
    if not safe_relative(name):
        return "its name has control characters or a backslash"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not valid UTF-8"
    path = f"{root}/{name}"  # not a Path: there may be thousands
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            if not Path(path).resolve().is_relative_to(root.resolve()):
                return "a link that leads out of the project"
            info = os.stat(path)  # noqa: PTH116
    except (OSError, RuntimeError):  # gone, a link to nowhere, a ring of links
        return ""
    if not stat.S_ISREG(info.st_mode):
        return "" if stat.S_ISDIR(info.st_mode) else "not a regular file"
    ours = info.st_uid == os.geteuid() and info.st_mode & stat.S_IRUSR  # the kernel need not be asked once more
    if not (ours or os.access(path, os.R_OK)):
        return "it cannot be read"
    return (
        "" if may_be_report(name) and is_report(path) else info
    )  # it is another one after each run, and none reads it


def _too_large(root: Path, names: set[str], refuse_bytes: int) -> UsageError:
    sizes = sorted(((root / name).stat().st_size, name) for name in names if (root / name).is_file())
    largest = ", ".join(f"{name} ({size_text(size)})" for size, name in sizes[:-4:-1])
    return UsageError(
        f"{root} has more than {size_text(refuse_bytes)} to ship; the largest are {largest}",
        next_step=f"where the job does not need it, {how_to_leave_out(root)}; or raise ship_refuse in cloudrun.toml",
    )


def how_to_leave_out(root: Path) -> str:
    """What to do about a file that no machine needs."""
    if (root / ".git").exists():
        return "name it in .gitignore"
    return f"move it elsewhere (or `git init {path_typed(root)}`, and name it in .gitignore)"


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
    waiting = [(os.fspath(root), "")]
    while waiting:
        folder, prefix = waiting.pop()
        try:
            with os.scandir(folder) as listing:
                found = [item for item in listing if not item.name.startswith(".")]
        except OSError:
            continue
        if prefix and any(item.name == "pyvenv.cfg" for item in found):
            continue
        for item in found:
            if not item.is_dir(follow_symlinks=False):
                yield prefix + item.name
            elif item.name not in _NEVER:
                waiting.append((item.path, f"{prefix}{item.name}/"))
