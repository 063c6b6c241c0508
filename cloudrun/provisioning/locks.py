"""The files at a project's root that say what it needs: locks and requirements files, read for uv to resolve."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudrun.core.errors import UsageError
from cloudrun.provisioning.uv import exact_lines, run_uv

ROOT_FILES = ("uv.lock", "pylock.toml", "requirements.lock", "requirements.txt")  # the first that is there counts

_INCLUDE = re.compile(r"^\s*(?:-r|-c|--requirement|--constraint)[ =]\s*(\S+)", re.MULTILINE)
_INDEX = re.compile(r"^\s*((?:-i|--index-url|--extra-index-url|-f|--find-links)[ =]\s*https?://\S+)", re.MULTILINE)

_LOCAL_FOLDER = re.compile(r"^\s*(?:-f|--find-links)[ =]\s*(?!https?://)(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Wanted:
    """What uv is to resolve: files as they are, lines beside them, and the indexes that the unit is to ask too."""

    files: tuple[Path, ...] = ()
    lines: tuple[str, ...] = ()
    index_lines: tuple[str, ...] = ()


def root_file(root: Path) -> Path | None:
    return next((root / name for name in ROOT_FILES if (root / name).is_file()), None)


def contents(path: Path) -> Mapping[Path, str]:
    """The file and all that it includes, with their text: what its resolution depends on."""
    found: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in found or not current.is_file():
            continue  # where one is missing, uv says so
        found[current] = text = current.read_text(encoding="utf-8", errors="replace")
        if not _is_toml(path):
            waiting += [(current.parent / name).resolve() for name in _INCLUDE.findall(text)]
    return found


def required_python(path: Path) -> str | None:
    """A lock's `requires-python`, or None."""
    return _table(path).get("requires-python") if _is_toml(path) else None


def wanted(path: Path, root: Path) -> Wanted:
    """Raises UsageError where the file cannot be read, or something in it lies on this computer."""
    if path.name == "uv.lock":
        exported = run_uv(
            [
                *("export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--no-python-downloads"),
                *("--format", "requirements.txt", "--no-hashes", "--no-header", "--no-annotate"),
            ],
            root=root,
            named=path.name,
        )
        return Wanted(lines=exact_lines(exported))
    if path.name == "pylock.toml":
        return Wanted(lines=tuple(_pylock_line(package, path) for package in _table(path).get("packages", [])))
    for text in contents(path).values():
        if folder := _LOCAL_FOLDER.search(text):
            raise UsageError(
                f"{path.name} looks for packages in {folder[1]}, which a unit does not have",
                next_step="name each wheel in the file, as in ./wheels/mine-1.0-py3-none-any.whl: it travels then",
            )
    found = [line for text in contents(path).values() for line in _INDEX.findall(text)]
    return Wanted(files=(path,), index_lines=tuple(dict.fromkeys(found)))


def _pylock_line(package: Mapping[str, Any], path: Path) -> str:
    """One locked package (https://packaging.python.org/en/latest/specifications/pylock-toml/) as a requirement."""
    name = package.get("name", "?")
    marker = f" ; {package['marker']}" if "marker" in package else ""
    vcs, archive = package.get("vcs"), package.get("archive")
    if vcs and "url" in vcs:
        return f"{name} @ {vcs['type']}+{vcs['url']}@{vcs['commit-id']}{marker}"
    if archive and "url" in archive:
        return f"{name} @ {archive['url']}{marker}"
    if "version" in package and not any(key in package for key in ("vcs", "directory", "archive")):
        return f"{name}=={package['version']}{marker}"
    raise UsageError(
        f"{path.name}: {name} lies on this computer, where a unit cannot fetch it",
        next_step="put its modules into the project, or lock a released version",
    )


def _is_toml(path: Path) -> bool:
    return path.name in ("uv.lock", "pylock.toml")


def _table(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} is not TOML: {error}", next_step=f"make {path.name} again") from error
