"""Data that a job needs and its code does not hold: `--data s3://... | path`, fetched by a unit once and shared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cloudrun import bucket
from cloudrun.core.errors import UsageError
from cloudrun.core.records import DataSet, FileEntry
from cloudrun.core.rundir import safe_relative
from cloudrun.plan.fingerprint import data_digest
from cloudrun.project import Shipment

if TYPE_CHECKING:
    from cloudrun.wiring import Cloud

FOLDER = "data"  # where a job finds what has no place of its own in the project
SIGNED_S = 6 * 3600.0  # for the unit to have begun with an object; it may take as long as it likes to read it
digest = data_digest


def resolve(sources: Sequence[str], goods: Shipment, cloud: Cloud) -> tuple[DataSet, ...]:
    """What each source holds now, by content. Raises UsageError for what is not there, or would be in the same place.

    A path inside the project is found by the job where it is there; everything else as `data/<its name>` below the
    project's root.
    """
    found = [_remote(source, cloud) if source.startswith("s3://") else _local(source, goods.root) for source in sources]
    links = [data.link for data in found]
    for link in links:
        if links.count(link) > 1:
            raise UsageError(f"two --data would both be {link}", next_step="rename one of them")
    return tuple(found)


def without(goods: Shipment, data: Iterable[DataSet]) -> Shipment:
    """The shipment less what travels as data."""
    places = [data_set.link for data_set in data]

    def travels_as_data(entry: FileEntry) -> bool:
        return any(entry.path == place or entry.path.startswith(f"{place}/") for place in places)

    return replace(goods, entries=tuple(entry for entry in goods.entries if not travels_as_data(entry)))


def _local(source: str, root: Path) -> DataSet:
    path = Path(source).expanduser().absolute()
    if not path.exists():
        raise UsageError(f"there is no {source}, given as --data", next_step="check the path")
    place = path.relative_to(root).as_posix() if path.is_relative_to(root) and path != root else f"{FOLDER}/{path.name}"
    if path == root or not safe_relative(place):
        raise UsageError(f"{source} cannot travel as --data", next_step="name a file or folder inside it")
    entries = tuple(_entries(path))
    if not entries:
        raise UsageError(f"{source}, given as --data, has no file in it", next_step="check the path")
    single = path.name if path.is_file() else ""
    key = _key("files", single, [(each.path, each.size, each.sha256) for each in entries])
    return DataSet(key, place, source, single, root=path.parent if single else path, entries=entries)


def _entries(path: Path) -> Iterator[FileEntry]:
    """Every regular file at or below `path`, by content, hidden ones too: the user named this folder."""
    base = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    for file in files:
        name = file.relative_to(base).as_posix()
        if not safe_relative(name):
            raise UsageError(f"{name!r} below --data {path} cannot be a file's name there", next_step="rename it")
        with file.open("rb") as stream:
            yield FileEntry(name, file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest(), 0o444)


def _remote(source: str, cloud: Cloud) -> DataSet:
    name, key = bucket.split(source)
    files = cloud.storage().remote_files(source, SIGNED_S)
    for file in files:
        if not safe_relative(file.path):
            raise UsageError(f"{file.path!r} at {source} cannot be a file's name", next_step="leave it out of --data")
    last = PurePosixPath(key).name or name
    single = files[0].path if len(files) == 1 and key and not key.endswith("/") else ""
    listed = [(each.path, each.size, each.etag) for each in files]
    return DataSet(_key("s3", single, listed), f"{FOLDER}/{last}", source, single, remote=files)


def _key(kind: str, single: str, files: Sequence[tuple[str, int, str]]) -> str:
    """One name for this content."""
    text = json.dumps(["cloudrun data set 1", kind, single, sorted(files)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
