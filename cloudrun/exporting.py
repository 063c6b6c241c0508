"""A run as a folder of plain files, for whoever has no cloudrun: what it was, what it made, what it was made of."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from cloudrun.core.errors import LedgerError, UsageError
from cloudrun.core.rundir import safe_relative
from cloudrun.ledger import Ledger, Run
from cloudrun.plan.typed import path_typed

FOLDERS = {"output": "outputs", "log": "logs"}


def export_run(ledger: Ledger, run: Run, destination: Path) -> Path:
    """Write it to a new folder, whole or not at all:

        run.json params.json scores.json    as `show --json` has them
        passport.json environment.txt       versions: what the model needs, and all that was installed
        code/                               the script and the modules of the project that it imports, where kept
        outputs/ logs/                      every file, its digest checked

    Raises UsageError where something is there already, NotFound and LedgerError where a file is not, or is damaged, or
    the disk is full.
    """
    check_free(destination)
    part = destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.part")
    try:
        _write(ledger, run, part)
        with suppress(OSError):
            destination.rmdir()  # an empty one may be there
        part.rename(destination)
    except OSError as error:
        raise LedgerError(
            f"{destination}: {error.strerror or error}", next_step="export it to another folder, or free some space"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return destination


def check_free(destination: Path) -> None:
    """Raises UsageError where the folder could not be made."""
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if os.path.lexists(destination):
        raise UsageError(f"{destination} is there already", next_step="name a folder that is not there yet")
    if not destination.parent.is_dir():
        raise UsageError(
            f"there is no folder {destination.parent}",
            next_step=f"mkdir -p {path_typed(destination.parent)}, then type it again",
        )


def _write(ledger: Ledger, run: Run, folder: Path) -> None:
    folder.mkdir()
    document = run.to_dict()
    _json(folder / "run.json", document)
    for name in ("params", "scores", "passport"):
        if document[name] is not None:
            _json(folder / f"{name}.json", document[name])
    environment = ledger.environment(run.environment_digest)
    if environment is not None:
        lines = [f"# Python {environment.python}, {environment.architecture}", *environment.requirements]
        lines += [f"# apt install {package}" for package in environment.system.apt]
        (folder / "environment.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path, sha256 in ledger.code_files(run.code_digest).items():
        ledger.artifacts.copy_out(sha256, _below(folder / "code", path))
    for artifact in run.artifacts:
        place = _below(folder / FOLDERS.get(artifact.kind, artifact.kind), artifact.path)
        ledger.artifacts.copy_out(artifact.sha256, place)


def _below(folder: Path, path: str) -> Path:
    """Names in the ledger were strict when they came; whoever wrote to it since shall not choose a place here."""
    if not safe_relative(path):
        raise LedgerError(
            f"{path!r} is no name of a file below a folder", next_step="cloudrun show --json tells it all"
        )
    return folder / path


def _json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
