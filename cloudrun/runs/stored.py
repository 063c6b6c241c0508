"""What a unit has left in the bucket, read back: the manifest that makes it complete, distrusted, and its contents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from cloudrun.core.errors import ManifestRefused, ObjectMissing
from cloudrun.core.outputs import Outputs, parse_outputs, parse_status
from cloudrun.core.records import FileEntry, JobStatus

MANIFEST = "manifest.json"
MANIFEST_MAX_BYTES = 256 * 1024 * 1024  # one of 100,000 files has some 20 MB
PARTS_MAX = 10_000  # of one file: 40 TB of what a unit puts into one object


class Reader(Protocol):
    def read(self, bucket: str, key: str, offset: int = 0) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class StoredManifest:
    """A run in the bucket, whole. `parts`: how many objects a content is in, by digest, where that is not one; all but
    the last have `part_bytes`.
    """

    status: JobStatus
    outputs: Outputs
    parts: Mapping[str, int]
    part_bytes: int


def read_stored(storage: Reader, bucket: str, prefix: str) -> StoredManifest | None:
    """What is below `prefix`; None while it is not complete.

    Raises ManifestRefused, TransferError (BucketMissing where there is no bucket any more) and CredentialsError.
    """
    text = bytearray()
    try:
        for chunk in storage.read(bucket, prefix + MANIFEST):
            text += chunk
            if len(text) > MANIFEST_MAX_BYTES:
                raise ManifestRefused(f"{prefix}{MANIFEST} in {bucket} is longer than {MANIFEST_MAX_BYTES} bytes")
    except ObjectMissing:
        return None
    return parse_stored(bytes(text))


def parse_stored(text: bytes) -> StoredManifest:
    """Raises ManifestRefused where the text makes no sense or could do harm: a unit, or its job, has written it."""
    try:
        document = json.loads(text)
        if document["schema_version"] != 1:
            raise ValueError(f"version {document['schema_version']!r}")
        parts = {str(digest): int(count) for digest, count in document["parts"].items()}
        part_bytes = int(document["part_bytes"])
        outputs, status = document["outputs"], document["status"]
        if not isinstance(outputs, dict) or not isinstance(status, dict):
            raise TypeError("not an object")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ManifestRefused(f"the manifest in the bucket has a shape nobody knows: {error!r}") from error
    if part_bytes < 1 or not all(1 <= count <= PARTS_MAX for count in parts.values()):
        raise ManifestRefused("the manifest in the bucket names a file in an impossible number of parts")
    return StoredManifest(parse_status(status), parse_outputs(outputs), parts, part_bytes)


def contents(
    storage: Reader, bucket: str, prefix: str, stored: StoredManifest, entry: FileEntry, offset: int = 0
) -> Iterator[bytes]:
    """The bytes of one output or log from `offset` on. Whoever writes them checks their number and digest.

    Raises TransferError (ObjectMissing where the bucket has it no more) and CredentialsError.
    """
    key = f"{prefix}data/{entry.sha256}"
    left = entry.size - offset
    if left <= 0 < entry.size:
        return
    if entry.sha256 not in stored.parts:
        yield from _at_most(storage.read(bucket, key, offset), left)
        return
    first, within = divmod(offset, stored.part_bytes)
    for number in range(first, stored.parts[entry.sha256]):
        for chunk in _at_most(storage.read(bucket, f"{key}.{number}", within), left):
            left -= len(chunk)
            yield chunk
        within = 0


def _at_most(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """An object that is longer than its manifest says must not fill the disk: one byte more shows that it is."""
    for chunk in chunks:
        if len(chunk) > size:
            yield chunk[: size + 1]
            return
        size -= len(chunk)
        yield chunk
