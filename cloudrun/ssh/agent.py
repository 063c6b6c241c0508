"""What a unit's agent does for a client: ship a project, run a job, follow it, bring home what it made."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from cloudrun.core import wire
from cloudrun.core.errors import CloudrunError, ConnectionLost, ManifestRefused, TransferError
from cloudrun.core.outputs import Outputs, parse_outputs
from cloudrun.core.records import FileEntry, JobStatus
from cloudrun.ssh.archive import archive
from cloudrun.ssh.channel import AgentChannel, as_object
from cloudrun.ssh.hostkey import make_host_key
from cloudrun.ssh.session import Session
from cloudrun.ssh.stream import SILENCE_S

__all__ = ["Agent", "Outputs"]

MANIFEST_MAX_BYTES = 256 * 1024 * 1024  # a manifest of 100,000 files has some 20 MB
ENDING_S = 300.0  # from a job's SIGKILL to its status: leftovers are ended, the digests of all outputs are made
MANIFEST_S = 600.0  # where a supervisor was killed, the manifest is made while we wait: digests of all outputs
OnProgress = Callable[[int, int], None]  # (bytes done, bytes in all)
Sink = Callable[[Literal["stdout", "stderr"], bytes], None]


class BinaryWriter(Protocol):
    def write(self, data: bytes, /) -> Any: ...


OpenSink = Callable[[FileEntry], AbstractContextManager[BinaryWriter]]


class Agent:
    """The agent on one unit, reached over `session`. Several threads may use it: each request has a channel to itself.

    Channels are kept and used again, so a run costs one process start on the unit, and every call one round trip.
    Every method raises ConnectionLost where the unit is gone, or silent for `silence_s`; its agent speaks every 5 s.
    """

    def __init__(self, session: Session, *, silence_s: float = SILENCE_S) -> None:
        self._session = session
        self._silence_s = silence_s
        self._idle: list[AgentChannel] = []
        self._lock = threading.Lock()

    def install(self) -> None:
        """Make sure that this version's agent is on the unit and starts there. Raises LaunchError where it does not."""
        with self._channel():
            pass

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for channel in idle:
            channel.close()

    def has_environment(self, fingerprint: str) -> bool:
        with self._channel() as channel:
            channel.ask("environment", fingerprint=fingerprint)
            return bool(channel.reply().get("ready"))

    def ship(
        self, run_dir: str, root: Path, entries: Sequence[FileEntry], on_progress: OnProgress | None = None
    ) -> None:
        """Send the files of `entries`, found below `root`, into the run's work/ as one stream.

        Raises TransferError, naming the file, where one is not what its entry says, or cannot be read or written.
        """
        total = sum(entry.size for entry in entries)
        done = 0
        with self._channel() as channel:
            channel.ask("ship", run_dir=run_dir, entries=[vars(entry) for entry in entries])
            try:
                for entry in entries:
                    for chunk in _chunks(root / entry.path, entry):
                        channel.send(wire.DATA, chunk)
                        done += len(chunk)
                        if on_progress is not None:
                            on_progress(done, total)
                    channel.send(wire.FILE_END)
            except ConnectionLost:
                channel.reply()  # the agent may have said why it stopped listening: that is the better error
                raise
            channel.reply()

    def start(self, run_dir: str, spec: Mapping[str, Any]) -> JobStatus:
        """Start the job that `rundir.spec` describes; it no longer needs this connection. Asked twice, it starts once.

        A job that could not start is no exception here: its status is "exited" with an `error`.
        """
        with self._channel() as channel:
            channel.ask("start", run_dir=run_dir, spec=dict(spec))
            return _job_status(channel.reply())

    def status(self, run_dir: str) -> JobStatus | None:
        """Where the job is; None where it was never started."""
        with self._channel() as channel:
            channel.ask("status", run_dir=run_dir)
            reply = channel.reply()
            return None if reply.get("status") is None else _job_status(reply)

    def follow(
        self,
        run_dir: str,
        sink: Sink,
        *,
        offsets: Mapping[str, int] | None = None,
        cancelled: threading.Event | None = None,
    ) -> JobStatus:
        """Hand the job's output to `sink` as it comes, until the job has exited; return its last status.

        `offsets` ({"stdout": bytes, "stderr": bytes}) skips what an earlier call has handed over. Raises Cancelled when
        the event is set; the job goes on then, as it does when the connection is lost.
        """
        with self._channel(cancelled=cancelled) as channel:
            channel.ask("follow", run_dir=run_dir, offsets=dict(offsets or {}))
            return _until_exited(channel, sink)

    def cancel(self, run_dir: str, grace_s: float) -> JobStatus:
        """SIGTERM to the job's process group, `grace_s` seconds to save what it has, SIGKILL. Returns its last status.

        What it wrote are outputs like any others. Raises ConnectionLost where it has not ended ENDING_S after that.
        """
        with self._channel(within_s=grace_s + ENDING_S) as channel:
            channel.ask("cancel", run_dir=run_dir, grace_s=grace_s)
            return _until_exited(channel, lambda *_: None)

    def outputs(self, run_dir: str) -> Outputs:
        """The manifest of what the job made, checked: no name in it leads out of a directory it is joined to."""
        with self._channel(silence_s=MANIFEST_S) as channel:
            channel.ask("outputs", run_dir=run_dir)
            text = bytearray()
            while True:
                kind, payload = channel.next()
                if kind == wire.REPLY:
                    return parse_outputs(as_object(bytes(text)))
                text += payload
                if len(text) > MANIFEST_MAX_BYTES:
                    raise ManifestRefused(f"the manifest of {run_dir} is longer than {MANIFEST_MAX_BYTES} bytes")

    def fetch(
        self,
        run_dir: str,
        entries: Sequence[FileEntry],
        open_sink: OpenSink,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Bring outputs home as one stream, each through the writer that `open_sink` opens for its entry.

        The writer checks the digest. A file that does not come whole leaves its writer with a TransferError, the others
        come all the same, and then one TransferError names those that did not.
        """
        self._fetch(run_dir, "work", entries, open_sink, on_progress)

    def fetch_logs(self, run_dir: str, entries: Sequence[FileEntry], open_sink: OpenSink) -> None:
        """The same for `Outputs.logs`."""
        self._fetch(run_dir, "logs", entries, open_sink, None)

    def new_host_key(self) -> str:
        """Let the unit make a host key of its own and use it from now on; returns the public line to pin.

        The key in user-data is a whole launch's, and anybody on the machine may read it. Connections that are open stay
        open. Raises CloudrunError where the unit has no ssh-keygen or its user may not become root.
        """
        return make_host_key(self._session)

    def _fetch(
        self,
        run_dir: str,
        area: Literal["work", "logs"],
        entries: Sequence[FileEntry],
        open_sink: OpenSink,
        on_progress: OnProgress | None,
    ) -> None:
        if not entries:
            return
        total = sum(entry.size for entry in entries)
        done = 0
        failures: list[str] = []
        with self._channel() as channel:
            wanted = [{"path": entry.path, "size": entry.size} for entry in entries]
            channel.ask("fetch", run_dir=run_dir, area=area, entries=wanted)
            for entry in entries:
                try:
                    with open_sink(entry) as writer:
                        for chunk in _file(channel, entry):
                            writer.write(chunk)
                            done += len(chunk)
                            if on_progress is not None:
                                on_progress(done, total)
                except TransferError as error:
                    failures.append(str(error))
            channel.reply()
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise TransferError(f"{failures[0]}{more}", next_step="pull the run again while its unit lives")

    @contextlib.contextmanager
    def _channel(
        self,
        *,
        cancelled: threading.Event | None = None,
        silence_s: float | None = None,
        within_s: float = float("inf"),
    ) -> Iterator[AgentChannel]:
        """A channel for one request. After anything but success it may be out of step, so it is not used again."""
        with self._lock:
            self._idle = [channel for channel in self._idle if channel.stream.is_open]
            channel = self._idle.pop() if self._idle else None
        if channel is None:
            channel = AgentChannel(self._session, archive())
        channel.stream.cancelled = cancelled
        channel.stream.silence_s = silence_s or self._silence_s
        channel.stream.give_up_at = time.monotonic() + within_s
        try:
            yield channel
        except BaseException:
            channel.close()
            raise
        with self._lock:
            self._idle.append(channel)


def _chunks(path: Path, entry: FileEntry) -> Iterator[bytes]:
    """Exactly `entry.size` bytes of a local file. Raises TransferError where there are fewer."""
    remaining = entry.size
    try:
        with path.open("rb", buffering=0) as file:
            while remaining:
                chunk = file.read(min(wire.CHUNK, remaining))
                if not chunk:
                    raise TransferError(f"{entry.path} changed while it was shipped", next_step="submit again")
                remaining -= len(chunk)
                yield chunk
    except OSError as error:
        raise TransferError(f"cannot read {path}: {error.strerror}") from error


def _file(channel: AgentChannel, entry: FileEntry) -> Iterator[bytes]:
    """One file of a fetch, up to its end frame."""
    received = 0
    while True:
        kind, payload = channel.next()
        if kind == wire.FILE_END:
            break
        if kind != wire.DATA:
            raise ConnectionLost(f"the agent is out of step: {kind!r} in the middle of a file")
        received += len(payload)
        if received <= entry.size:
            yield payload
    reason = as_object(payload).get("error", "")
    if reason or received != entry.size:
        raise TransferError(f"{entry.path} did not come whole: {reason or f'{received} of {entry.size} bytes'}")


def _until_exited(channel: AgentChannel, sink: Sink) -> JobStatus:
    while True:
        kind, payload = channel.next()
        if kind == wire.STDOUT:
            sink("stdout", payload)
        elif kind == wire.STDERR:
            sink("stderr", payload)
        else:
            reply = as_object(payload)
            if reply.get("status") is None:
                raise CloudrunError("this run was never started on the unit", next_step="submit it again")
            return _job_status(reply)


def _job_status(reply: Mapping[str, Any]) -> JobStatus:
    """The status in a reply; what a newer agent adds to it is left out. Raises ConnectionLost for a shapeless one."""
    names = JobStatus.__dataclass_fields__
    try:
        return JobStatus(**{name: value for name, value in reply["status"].items() if name in names})
    except (AttributeError, KeyError, TypeError) as error:
        raise ConnectionLost(f"the agent is out of step: {reply!r} where a status was due") from error
