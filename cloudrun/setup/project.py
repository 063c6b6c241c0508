"""A project's own configuration file, written once and never over another; what its account needs, and may answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudrun import config
from cloudrun.core.errors import UsageError
from cloudrun.ledger.home import DATABASE, FOLDER, find_project
from cloudrun.setup.template import toml_text

if TYPE_CHECKING:
    from cloudrun.aws.error_table import Line

FILE = "cloudrun.toml"


def iam_policy(
    *, bucket: str | None = None, region: str | None = None, instance_profile: str | None = None
) -> dict[str, Any]:
    """The least that AWS has to allow. Raises UsageError for what cannot be a bucket's name."""
    from cloudrun.aws.policy import policy
    from cloudrun.aws.storage import check_bucket_name

    if bucket is not None:
        check_bucket_name(bucket)
    return policy(bucket=bucket, region=region, instance_profile=instance_profile)


def error_table() -> list[Line]:
    """What each error of AWS's and its libraries' becomes, and which exit code that is."""
    from cloudrun.aws.error_table import table

    return list(table())


def check_target(folder: Path, *, force: bool) -> None:
    """Raises UsageError where there is a file already, or a table in pyproject.toml that the file would hide."""
    if (folder / FILE).exists() and not force:
        raise UsageError(f"there is a {FILE} in {folder} already", next_step="edit it, or write over it with --force")
    if config.table_in_pyproject(folder) and not force:
        raise UsageError(
            f"the pyproject.toml in {folder} has a [tool.cloudrun], which nobody would read beside a {FILE}",
            next_step="edit that table, or move it into the new file with --force",
        )


def write_file(folder: Path, chosen: Mapping[str, object], *, force: bool = False) -> tuple[Path, list[str]]:
    """Write `cloudrun.toml`; returns its path, and what the user should know. Raises UsageError."""
    check_target(folder, force=force)
    text = toml_text(chosen)
    notes = _notes(folder)
    path = folder / FILE
    fresh = folder / f".{FILE}.{os.getpid()}"
    try:
        fresh.write_text(text, encoding="utf-8")
        path.open("a" if force else "x").close()  # fails where somebody was faster
        fresh.replace(path)
    except FileExistsError as error:
        raise UsageError(f"there is a {path} already", next_step="edit it, or write over it with --force") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror}",
            next_step=f"make {folder} writable, free some space, or cd to your project",
        ) from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
    return path, notes


def _notes(folder: Path) -> list[str]:
    """A file of ours marks the root of a project: that is no surprise only where it is the root already."""
    above = find_project(folder.parent) if folder.parent != folder else folder
    has_own = (folder / FOLDER / DATABASE).exists() or (folder / ".git").exists()
    if has_own or not (above / FOLDER / DATABASE).exists():
        return []
    return [f"{folder} is a project of its own now; the runs in the ledger of {above} stay there"]
