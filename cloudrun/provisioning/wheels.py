"""Wheels in files of this computer, which travel to units: named by what is in them, wherever they lie here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cloudrun.core.errors import UsageError
from cloudrun.core.records import Wheel
from cloudrun.core.rundir import wheel_path

_PLACE = r"(?:file://\S*?|\.{1,2}/\S*?|/\S*?)[^/\s]+\.whl"
_LINE = re.compile(rf"(?:[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[^\]]*\])? @ )?(?P<place>{_PLACE})(?P<rest>\s*(;.*)?)")
_ANYWHERE = re.compile(rf"(?:^|[\s\"'])({_PLACE})", re.MULTILINE)


def local_wheels(text: str, folder: Path) -> list[Wheel]:
    """Those that a requirement file or script in `folder` names, as far as they are there."""
    paths = {_path(place, folder) for place in _ANYWHERE.findall(text)}
    return [_wheel(path) for path in sorted(paths) if path.is_file()]


def wheels_of(lines: Iterable[str], root: Path) -> tuple[tuple[str, ...], tuple[Wheel, ...]]:
    """Resolved requirement lines as a unit reads them, wheels by the places that they get there; and the wheels.

    `root` is what relative places are relative to. Raises UsageError where one is not there.
    """
    kept: list[str] = []
    wheels: dict[str, Wheel] = {}
    for line in lines:
        found = _LINE.fullmatch(line)
        if found is None:
            kept.append(line)
            continue
        path = _path(found["place"], root)
        if not path.is_file():
            raise UsageError(f"there is no wheel {path}", next_step="correct the requirement, or build the wheel")
        wheel = _wheel(path)
        wheels[wheel.sha256] = wheel
        kept.append(f"./{wheel_path(wheel.sha256, path.name)}{found['rest']}".rstrip())
    return tuple(kept), tuple(wheels.values())


def _path(place: str, folder: Path) -> Path:
    return Path(unquote(urlsplit(place).path)) if place.startswith("file://") else (folder / place).resolve()


def _wheel(path: Path) -> Wheel:
    with path.open("rb") as stream:
        return Wheel(str(path), hashlib.file_digest(stream, "sha256").hexdigest())
