"""What a unit's agent does for a client: ship a project, run a job, follow it, bring home what it made."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cloudrun.core import wire
from cloudrun.core.errors import ConnectionLost, TransferError
from cloudrun.core.outputs import Outputs
from cloudrun.core.records import (
    ComingJobs,
    CopySource,
    DataSet,
    FileEntry,
    JobStatus,
    RunOnUnit,
    SealedEnvironment,
    UnitNews,
    UnitOrders,
    Upload,
)
from cloudrun.ssh import outputs as told
from cloudrun.ssh import transfer
from cloudrun.ssh.channel import as_object
from cloudrun.ssh.channels import Channels
from cloudrun.ssh.hostkey import make_host_key
from cloudrun.ssh.outputs import Finished, Sink
from cloudrun.ssh.session import Session
from cloudrun.ssh.stream import SILENCE_S
from cloudrun.ssh.transfer import OnProgress, OpenSink

__all__ = ["Agent", "Finished", "OnProgress", "OpenSink", "Outputs", "Queued", "Sink"]

COPYING_S = 600.0  # for an environment from another unit
ENDING_S = 300.0  # from a job's SIGKILL to its status: leftovers are ended, the digests of all outputs are made
INLINE_BYTES = 64 * 1024  # a project no larger than this is sent without asking what the unit has of it
BRING_BYTES = 1024 * 1024  # outputs that come along with the end of a job, without being asked for
BEYOND = 1 << 62  # an offset after the end of any log
QUEUED_AT_ONCE = 200  # requests whose replies are waited for together: so many fit into any window


@dataclass(frozen=True)
class Queued:
    """A run that shall wait on a unit. `number`: its place among all that do. `tree`: the key of the project that it
    gets, which was shipped to `rundir.tree_dir`; None where it was shipped to its own directory."""

    run_dir: str
    spec: Mapping[str, Any]
    number: int
    tree: str | None


class Agent:
    """The agent on one unit, reached over `session`. Several threads may use it: each request has a channel to itself.

    Channels are kept and used again, so a run costs one process start on the unit, and every call one round trip.
    Every method raises ConnectionLost where the unit is gone, or silent for `silence_s`; its agent speaks every 5 s.
    """

    def __init__(self, session: Session, *, silence_s: float = SILENCE_S) -> None:
        self._session = session
        self._channels = Channels(session, silence_s)

    @property
    def has_room(self) -> bool:
        """Whether a request that could wait may be sent now, without a channel too many."""
        return self._channels.has_room

    def install(self) -> None:
        """Make sure that this version's agent is on the unit and starts there. Raises LaunchError where it does not."""
        with self._channels.take():
            pass

    def close(self) -> None:
        """Close the channels; a call after this opens new ones."""
        self._channels.close()

    # -- the unit ------------------------------------------------------------------------------------------------------

    def has_environment(self, fingerprint: str) -> bool:
        """Whether the unit has it, whole. What it had when it greeted us need not be asked for."""
        return fingerprint in self._channels.environments or bool(
            self._ask("environment", fingerprint=fingerprint).get("ready")
        )

    def seal(self, fingerprint: str) -> SealedEnvironment:
        """Note all that an environment consists of, while it is what was built: copies of it are held to that.

        Raises TransferError or CloudrunError where it is of a kind that cannot be copied.
        """
        found = self._ask("seal", fingerprint=fingerprint)
        digest, files, total = str(found.get("digest")), int(found.get("files", 0)), int(found.get("bytes", 0))
        return SealedEnvironment(fingerprint, digest, files, total)

    @contextlib.contextmanager
    def sharing(self, fingerprint: str, public_key: str) -> Iterator[None]:
        """While the block lasts, let whoever has the private half of the key fetch this one environment."""
        over = False
        try:
            with self._channels.take() as channel:
                channel.ask("share", fingerprint=fingerprint, key=public_key)
                channel.next()
                yield
                over = True
                channel.send(wire.FILE_END)
                channel.reply()
        except ConnectionLost:
            if not over:  # else it lets nobody in any more, which is what was wanted
                raise

    def fetch_environment(
        self, sealed: SealedEnvironment, source: CopySource, *, cancelled: threading.Event | None = None
    ) -> None:
        """Let the unit get an environment from another one, that it is `sharing`.

        Raises TransferError where it does not come, or not as it was sealed; ConnectionLost where it takes longer than
        COPYING_S; Cancelled when the event is set.
        """
        with self._channels.take(cancelled=cancelled, within_s=COPYING_S) as channel:
            channel.ask(
                "fetch_environment",
                fingerprint=sealed.fingerprint,
                digest=sealed.digest,
                address=source.address,
                port=source.port,
                user=source.user,
                host_key=source.host_key,
                key=source.private_key,
            )
            channel.reply()

    def orders(self, orders: UnitOrders | None = None, coming: ComingJobs | None = None) -> UnitNews:
        """Give the unit new orders, or none, and say what is `coming`; returns what its agent has seen of its
        machine."""
        given = None if orders is None else asdict(orders)
        soon = None if coming is None else {"environment": coming.environment, "spec": dict(coming.spec)}
        return told.unit_news(self._ask("orders", orders=given, coming=soon))

    def renew_upload(self, run_dir: str, upload: Upload) -> None:
        """Give a run another leave to upload, in place of the one in its spec."""
        self._ask("upload", run_dir=run_dir, upload={**asdict(upload), "fields": dict(upload.fields)})

    def standing_orders(self) -> UnitOrders | None:
        """What the unit was told last; None where it never was."""
        return told.unit_orders(self._ask("orders", orders=None))

    def runs(self) -> tuple[RunOnUnit, ...]:
        """Every run that has a directory on the unit."""
        return told.runs_on_unit(self._ask("runs"))

    def has_data(self, key: str) -> bool:
        """Whether the data set is there, whole."""
        return bool(self._ask("data", key=key).get("ready"))

    def bring_data(self, data: DataSet, on_progress: OnProgress | None = None) -> None:
        """Make sure that the unit has a data set: it fetches remote files itself, local ones are sent.

        Raises TransferError where a file is not what it was said to be, or cannot be had.
        """
        if not data.remote:
            self.ship(data.key, data.root or Path(), data.entries, on_progress, area="data")
            return
        with self._channels.take() as channel:
            channel.ask("fetch_data", key=data.key, files=[asdict(file) for file in data.remote])
            while True:
                kind, payload = channel.next()
                if kind == wire.REPLY:
                    return
                progress = as_object(payload)
                if on_progress is not None:
                    on_progress(int(progress.get("done", 0)), int(progress.get("total", 0)))

    def new_host_key(self) -> str:
        """Let the unit make a host key of its own and use it from now on; returns the public line to pin.

        The key in user-data is a whole launch's, and anybody on the machine may read it. Connections that are open stay
        open. Raises CloudrunError where the unit has no ssh-keygen or its user may not become root.
        """
        return make_host_key(self._session)

    # -- a run ---------------------------------------------------------------------------------------------------------

    def ship(
        self,
        run_dir: str,
        root: Path,
        entries: Sequence[FileEntry],
        on_progress: OnProgress | None = None,
        *,
        area: Literal["project", "outputs", "data"] = "project",
    ) -> None:
        """Bring the files of `entries`, found below `root`, into the run's work/: as one stream, and only those that
        the unit does not have. Called again after a connection was lost, it goes on where it was.

        `area` "outputs" is for what an earlier attempt made, "data" for a data set, whose key stands for `run_dir`.
        Raises TransferError, naming the file, where one is not what its entry says, or cannot be read or written.
        """
        with self._channels.take() as channel:
            transfer.ship(channel, {"run_dir": run_dir, "area": area}, root, entries, on_progress)
            channel.reply()

    def start(self, run_dir: str, spec: Mapping[str, Any]) -> JobStatus:
        """Start the job that `rundir.spec` describes; it no longer needs this connection. Asked twice, it starts once.

        A job that could not start is no exception here: its status is "exited" with an `error`.
        """
        return told.job_status(self._ask("start", run_dir=run_dir, spec=dict(spec)))

    def queue(self, waiting: Sequence[Queued]) -> None:
        """As `start`, in their turn: see `UnitOrders.slots`. A thousand of them take a few round trips; those that are
        queued, or have begun, stay as they are."""
        with self._channels.take() as channel:
            for start in range(0, len(waiting), QUEUED_AT_ONCE):
                batch = waiting[start : start + QUEUED_AT_ONCE]
                with channel.sending():
                    for each in batch:
                        channel.ask(
                            "queue", run_dir=each.run_dir, spec=dict(each.spec), number=each.number, tree=each.tree
                        )
                for _ in batch:
                    channel.reply()

    def perform(
        self,
        run_dir: str,
        root: Path,
        entries: Sequence[FileEntry] | None,
        spec: Mapping[str, Any],
        sink: Sink,
        *,
        on_started: Callable[[JobStatus], None],
        on_progress: OnProgress | None = None,
        offsets: Mapping[str, int] | None = None,
        cancelled: threading.Event | None = None,
        bring_bytes: int = BRING_BYTES,
        at_home: Sequence[str] = (),
    ) -> Finished:
        """`ship`, `start` and `follow` without waiting in between, and small outputs along with the job's end: where
        the project is small too, one round trip beside the job's own time.

        `entries`: None where they have been shipped. `at_home` are earlier runs of which everything is on this
        computer: see `home`.

        After a lost connection it is called again, with the `offsets` that `sink` has reached: what has been shipped
        and started stays so. Raises as those do.
        """
        inline = sum(entry.size for entry in entries or ()) <= INLINE_BYTES
        with self._channels.take(cancelled=cancelled) as channel:
            for earlier in at_home:
                channel.ask("home", run_dir=earlier)
            if not inline:  # what the unit needs is the next that is read
                for _ in at_home:
                    channel.reply()
            if entries is not None:
                request = {"run_dir": run_dir, "area": "project"}
                transfer.ship(channel, request, root, entries, on_progress, inline=inline)
            with channel.sending():
                channel.ask("start", run_dir=run_dir, spec=dict(spec))
                channel.ask("follow", run_dir=run_dir, offsets=dict(offsets or {}), wait=True, bring=bring_bytes)
            for _ in at_home if inline else ():
                channel.reply()
            if entries is not None:
                channel.reply()
            on_started(told.job_status(channel.reply()))
            return told.until_exited(channel, run_dir, sink)

    def status(self, run_dir: str) -> JobStatus | None:
        """Where the job is; None where it was never started."""
        reply = self._ask("status", run_dir=run_dir)
        return None if reply.get("status") is None else told.job_status(reply)

    def follow(
        self,
        run_dir: str,
        sink: Sink,
        *,
        offsets: Mapping[str, int] | None = None,
        cancelled: threading.Event | None = None,
        wait: bool = True,
    ) -> JobStatus:
        """Hand the job's output to `sink` as it comes, until the job has exited; return its last status.

        `offsets` ({"stdout": bytes, "stderr": bytes}) skips what an earlier call has handed over. Without `wait` it
        returns with what there is. Raises Cancelled when the event is set; the job goes on then, as it does when the
        connection is lost.
        """
        return self._follow(run_dir, sink, offsets or {}, cancelled, wait=wait, bring_bytes=0).status

    def follow_home(
        self, run_dir: str, sink: Sink, *, offsets: Mapping[str, int], cancelled: threading.Event | None = None
    ) -> Finished:
        """As `follow`, and small outputs along with the job's end, as from `perform`."""
        return self._follow(run_dir, sink, offsets, cancelled, wait=True, bring_bytes=BRING_BYTES)

    def collect(self, run_dir: str) -> Finished:
        """Where the job is, and where it has ended its outputs too, small ones with their contents."""
        home_already = {"stdout": BEYOND, "stderr": BEYOND}
        return self._follow(run_dir, lambda *_: None, home_already, None, wait=False, bring_bytes=BRING_BYTES)

    def _follow(
        self,
        run_dir: str,
        sink: Sink,
        offsets: Mapping[str, int],
        cancelled: threading.Event | None,
        *,
        wait: bool,
        bring_bytes: int,
    ) -> Finished:
        with self._channels.take(cancelled=cancelled) as channel:
            channel.ask("follow", run_dir=run_dir, offsets=dict(offsets), wait=wait, bring=bring_bytes)
            return told.until_exited(channel, run_dir, sink)

    def cancel(self, run_dir: str, grace_s: float, reason: str = "cancelled") -> JobStatus:
        """SIGTERM to the job's process group, `grace_s` seconds to save what it has, SIGKILL. Returns its last status.

        What it wrote are outputs like any others. Raises ConnectionLost where it has not ended ENDING_S after that.
        """
        with self._channels.take(within_s=grace_s + ENDING_S) as channel:
            channel.ask("cancel", run_dir=run_dir, grace_s=grace_s, reason=reason)
            return told.until_exited(channel, run_dir, lambda *_: None).status

    def outputs(self, run_dir: str) -> Outputs:
        """The manifest of what the job made, checked: no name in it leads out of a directory it is joined to."""
        with self._channels.take() as channel:
            channel.ask("outputs", run_dir=run_dir)
            return told.manifest(channel, run_dir, wire.REPLY)

    def fetch(
        self,
        run_dir: str,
        entries: Sequence[FileEntry],
        open_sink: OpenSink,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Bring outputs home as one stream, each through the writer that `open_sink` opens for its entry.

        The writer checks the digest; one that has the file's first bytes already says so by its `offset`, and gets the
        rest. A file that does not come whole leaves its writer with a TransferError, the others come all the same, and
        then one TransferError names those that did not.
        """
        self._fetch(run_dir, "work", entries, open_sink, on_progress)

    def fetch_logs(self, run_dir: str, entries: Sequence[FileEntry], open_sink: OpenSink) -> None:
        """The same for `Outputs.logs`."""
        self._fetch(run_dir, "logs", entries, open_sink, None)

    def home(self, run_dir: str) -> None:
        """Say that everything of the run is on this computer: the unit may remove its directory, or use its files."""
        self._ask("home", run_dir=run_dir)

    # -- asking ------------------------------------------------------------------------------------------------------

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
        with self._channels.take() as channel:
            failures = transfer.fetch(channel, run_dir, area, entries, open_sink, on_progress)
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            raise TransferError(f"{failures[0]}{more}", next_step="pull the run again while its unit lives")

    def _ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        with self._channels.take() as channel:
            channel.ask(verb, **arguments)
            return channel.reply()
