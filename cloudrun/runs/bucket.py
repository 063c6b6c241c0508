"""Outputs by way of S3: where a unit puts what nobody is there to fetch, and how that comes home."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cloudrun.core.errors import TransferError, UsageError
from cloudrun.core.events import Note, Observer
from cloudrun.core.outputs import Outputs
from cloudrun.core.records import FileEntry, JobStatus, Upload
from cloudrun.runs.stored import MANIFEST_MAX_BYTES, StoredManifest, contents, read_stored

if TYPE_CHECKING:
    from cloudrun.aws.storage import Storage
    from cloudrun.ssh.agent import OnProgress, OpenSink
    from cloudrun.wiring import Cloud

LATE_S = 3600.0  # how long after its deadline a unit whose clock is wrong may still put things there
SMALL_BYTES = 1 << 20  # objects up to this size are asked for several at a time
ASKERS, GROUP = 8, 64
LONGEST_S = 7 * 86400.0  # AWS's limit for what is signed beforehand


def store_uri(bucket: str, ledger_id: str, run_id: str, number: int) -> str:
    """Where one attempt's outputs go: "s3://bucket/cloudrun/<ledger>/<run>.<number>/"."""
    return f"s3://{bucket}/cloudrun/{ledger_id}/{run_id}.{number}/"


def split(uri: str) -> tuple[str, str]:
    """The bucket and the key, or prefix, of an s3:// address. Raises UsageError where it has no bucket."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise UsageError(f"{uri!r} is no address of S3", next_step="write s3://BUCKET/KEY")
    return bucket, key


def check(cloud: Cloud, name: str, deadline_s: float, observe: Observer) -> None:
    """Before anything is launched: the bucket is there and ours, or is made now.

    Raises UsageError, CredentialsError.
    """
    if cloud.storage().ensure_bucket(name):
        observe(Note(f"the bucket {name} was made"))
    if deadline_s > LONGEST_S:
        observe(Note("a machine may upload for 7 days at most, and its deadline is later", "warning"))


def ticket(cloud: Cloud, uri: str, max_bytes: int, left_s: float) -> Upload:
    """Leave for one attempt to put its outputs below its own prefix, until a little after the deadline."""
    bucket, prefix = split(uri)
    limit = max(max_bytes, MANIFEST_MAX_BYTES)  # of one object, and the manifest is one
    return cloud.storage().upload_ticket(bucket, prefix, limit, min(left_s + LATE_S, LONGEST_S))


def discard(storage: Storage, uri: str) -> None:
    """Delete what is below one attempt's own prefix."""
    storage.delete_prefix(*split(uri))


class Stored:
    """One attempt's outputs in the bucket, read as from a unit: a `homecoming.Source`."""

    def __init__(self, storage: Storage, uri: str) -> None:
        self._storage = storage
        self._bucket, self._prefix = split(uri)
        self._manifest = read_stored(storage, self._bucket, self._prefix)

    @property
    def complete(self) -> bool:
        """Whether the unit has put everything there: its manifest comes last."""
        return self._manifest is not None

    def status(self) -> JobStatus:
        return self._stored().status

    def outputs(self, _run_dir: str) -> Outputs:
        return self._stored().outputs

    def fetch(
        self,
        _run_dir: str,
        entries: Sequence[FileEntry],
        open_sink: OpenSink,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Each file through a writer that checks its digest. Raises TransferError naming those that are not whole."""
        total, done = sum(entry.size for entry in entries), 0
        failures: list[str] = []
        for entry, known in self._ahead(entries):
            try:
                with open_sink(entry) as writer:
                    offset = getattr(writer, "offset", 0)
                    done += offset
                    for chunk in self._content(entry, offset) if known is None else _pieces(known, offset):
                        writer.write(chunk)
                        done += len(chunk)
                        if on_progress is not None:
                            on_progress(done, total)
            except TransferError as error:
                failures.append(str(error))
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise TransferError(f"{failures[0]}{more}", next_step="pull the run again")

    def _ahead(self, entries: Sequence[FileEntry]) -> Iterator[tuple[FileEntry, bytes | TransferError | None]]:
        """The entries in their order, small ones with their contents: asked for several at a time, since one after the
        other each would cost a round trip. At most some GROUP of them are in memory."""
        with ThreadPoolExecutor(ASKERS, thread_name_prefix="cloudrun-bucket") as pool:
            for start in range(0, len(entries), GROUP):
                group = entries[start : start + GROUP]
                asked = [pool.submit(self._small, entry) if entry.size <= SMALL_BYTES else None for entry in group]
                for entry, answer in zip(group, asked, strict=True):
                    yield entry, None if answer is None else answer.result()

    def _small(self, entry: FileEntry) -> bytes | TransferError:
        try:
            return b"".join(self._content(entry, 0))
        except TransferError as error:
            return error

    def _content(self, entry: FileEntry, offset: int) -> Iterator[bytes]:
        return contents(self._storage, self._bucket, self._prefix, self._stored(), entry, offset)

    def log(self, stream: str, offset: int) -> Iterator[bytes]:
        """What the job has printed, from `offset` (bytes) on."""
        for entry in self._stored().outputs.logs:
            if entry.path == f"{stream}.log" and offset < entry.size:
                yield from self._content(entry, offset)

    def fetch_logs(self, run_dir: str, entries: Sequence[FileEntry], open_sink: OpenSink) -> None:
        self.fetch(run_dir, entries, open_sink)

    def _stored(self) -> StoredManifest:
        if self._manifest is None:
            raise TransferError(f"{self._prefix} in {self._bucket} is not complete", next_step="pull again later")
        return self._manifest


def _pieces(known: bytes | TransferError, offset: int) -> Iterator[bytes]:
    if isinstance(known, TransferError):
        raise known
    yield known[offset:]
