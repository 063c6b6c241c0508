"""Where a project's ledger lives: the project's root, and the private `.cloudrun/` folder in it."""

from __future__ import annotations

from pathlib import Path

from cloudrun.core.errors import LedgerError, UsageError

FOLDER = ".cloudrun"
DATABASE = "ledger.sqlite"
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
    """Make `.cloudrun/` with mode 0700, ignored by git, and an empty database with mode 0600. Twice is fine."""
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        ignore = home / ".gitignore"
        if not ignore.exists():
            home.chmod(0o700)  # it may have been made by somebody with other habits
            ignore.write_text("*\n", encoding="utf-8")
        (home / DATABASE).touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise LedgerError(
            f"{home} cannot be made: {error.strerror or error}",
            next_step=f"make {home.parent} writable, or free some space",
        ) from error


def private_folder(path: Path) -> Path:
    """`path`, made with mode 0700 where it was not there."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path
