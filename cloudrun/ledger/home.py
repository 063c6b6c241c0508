"""Where a project's ledger lives: the project's root, and the private `.cloudrun/` folder in it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cloudrun.core.errors import LedgerError, UsageError

FOLDER = ".cloudrun"
DATABASE = "ledger.sqlite"
KEYS = "keys"
ROOT_MARKS = (f"{FOLDER}/{DATABASE}", "cloudrun.toml", "pyproject.toml", ".git")


def find_project(given: str | Path | None) -> Path:
    """The project's root: `given`, else the nearest folder at or above the working directory that has one of
    `ROOT_MARKS`, else the working directory. Raises UsageError where `given` is not a folder.
    """
    if given is not None:
        project = Path(given).expanduser().resolve()
        if not project.is_dir():
            raise UsageError(f"the project {project} is not a folder", next_step="name the folder of your project")
        return project
    try:
        here = Path.cwd()
    except OSError as error:
        raise UsageError(f"the working directory is gone: {error}", next_step="cd to your project") from error
    for folder in (here, *here.parents):
        if any((folder / mark).exists() for mark in ROOT_MARKS):
            return folder
    return here


def create_home(home: Path) -> None:
    """Make `.cloudrun/`, for its owner only and ignored by git. Twice is fine. Raises LedgerError."""
    with _home_errors(home):
        home.mkdir(mode=0o700, exist_ok=True)
        ignore = home / ".gitignore"
        if not ignore.exists():
            home.chmod(0o700)  # somebody else may have made it, with other habits
            ignore.write_text("*\n", encoding="utf-8")


def create_database(home: Path) -> None:
    """Make an empty database with mode 0600 where there is none. Raises LedgerError.

    One that is there must not even be opened: closing it again would drop SQLite's locks on it (POSIX, fcntl).
    """
    create_home(home)
    with _home_errors(home), suppress(FileExistsError):
        os.close(os.open(home / DATABASE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def check_writable(home: Path) -> None:
    """Raises LedgerError where nothing can be written into `.cloudrun/` (which is made where it is missing)."""
    create_home(home)
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise LedgerError(
            f"{home} cannot be written: {error.strerror or error}",
            next_step=f"make {home} writable, or free some space",
        ) from error


def create_keys_folder(home: Path) -> Path:
    """Where private keys live, mode 0700. Raises LedgerError."""
    create_home(home)
    with _home_errors(home):
        keys = home / KEYS
        keys.mkdir(mode=0o700, exist_ok=True)
        return keys


@contextmanager
def _home_errors(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"{home} cannot be made: {error.strerror or error}",
            next_step=f"make {home.parent} writable, or free some space",
        ) from error
