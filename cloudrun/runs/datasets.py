"""Data that a job needs and its code does not hold: `--data s3://... | path`, fetched by a unit once and shared."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from cloudrun.core.errors import TransferError, UsageError
from cloudrun.core.records import DataSet, FileEntry
from cloudrun.core.rundir import safe_relative
from cloudrun.plan.fingerprint import data_digest
from cloudrun.runs import bucket
from cloudrun.runs.project import Shipment, place_below, within

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
        hidden = [entry.path for entry in goods.entries if within(entry.path, link)]
        if hidden and link not in _inside(sources, goods.root):
            raise UsageError(
                f"data that is found as {link} would hide the project's own {hidden[0]}", next_step="rename one of them"
            )
        if within(goods.script, link):
            raise UsageError(f"the script is in {link}, given as --data", next_step="name only what it reads")
    return tuple(found)


def _inside(sources: Sequence[str], root: Path) -> set[str]:
    """The places of sources that are in the project themselves: there nothing is hidden but what travels as data."""
    local = [source for source in sources if not source.startswith("s3://")]
    return {place for source in local if (place := place_below(root, source)[1]) is not None}


def signed_again(data: Iterable[DataSet], cloud: Cloud) -> tuple[DataSet, ...]:
    """The same data with addresses that are good from now on. Raises TransferError where it has changed meanwhile."""
    again = []
    for known in data:
        found = _remote(known.source, cloud) if known.remote else known
        if found.key != known.key:
            raise TransferError(f"{known.source} is not what it was when the run was submitted")
        again.append(found)
    return tuple(again)


def without(goods: Shipment, data: Iterable[DataSet]) -> Shipment:
    """The shipment less what travels as data."""
    places = [data_set.link for data_set in data]

    def travels_as_data(entry: FileEntry) -> bool:
        return any(within(entry.path, place) for place in places)

    return replace(goods, entries=tuple(entry for entry in goods.entries if not travels_as_data(entry)))


def _local(source: str, root: Path) -> DataSet:
    path, inside = place_below(root, source)
    if not os.path.lexists(path):
        raise UsageError(f"there is no {source}, given as --data", next_step="check the path")
    place = f"{FOLDER}/{path.name}" if inside is None else inside
    if not safe_relative(place):
        raise UsageError(f"{source} cannot travel as --data", next_step="name a file or folder inside it")
    try:
        entries = tuple(_entries(path))
    except OSError as error:
        raise UsageError(
            f"{error.filename or path} of --data {source} cannot be read: {error.strerror}",
            next_step="make it readable, or leave it out",
        ) from error
    if not entries:
        raise UsageError(f"{source}, given as --data, has no file in it", next_step="check the path")
    single = path.name if path.is_file() else ""
    key = _key("files", single, [(each.path, each.size, each.sha256) for each in entries])
    return DataSet(key, place, source, single, root=path.parent if single else path, entries=entries)


def _entries(path: Path) -> Iterator[FileEntry]:
    """Every regular file at or below `path`, by content, hidden ones and what links lead to too: the user named this
    folder. Raises OSError for what cannot be read, UsageError for a link that leads nowhere or in a ring."""
    base = path.parent if path.is_file() else path
    for file in [path] if path.is_file() else _walk(path, (os.path.realpath(path),)):
        name = file.relative_to(base).as_posix()
        if not safe_relative(name):
            raise UsageError(f"{name!r} below --data {path} cannot be a file's name there", next_step="rename it")
        with file.open("rb") as stream:
            yield FileEntry(name, file.stat().st_size, hashlib.file_digest(stream, "sha256").hexdigest(), 0o444)


def _walk(folder: Path, above: tuple[str, ...]) -> Iterator[Path]:
    """`above`: the real paths of the folders on the way here."""
    for item in sorted(folder.iterdir()):
        if item.is_dir():
            real = os.path.realpath(item)
            if real in above:
                raise UsageError(f"{item} leads back to a folder above it", next_step="remove that link")
            yield from _walk(item, (*above, real))
        elif item.is_file():
            yield item
        elif item.is_symlink() and not item.exists():
            raise UsageError(f"{item} is a link that leads nowhere", next_step="mend or remove it")


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
