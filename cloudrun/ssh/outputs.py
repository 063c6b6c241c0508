"""What the agent says of jobs and their outputs, made records: whatever it says is distrusted first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from cloudrun.core import rundir, wire
from cloudrun.core.errors import CloudrunError, ConnectionLost, ManifestRefused
from cloudrun.core.outputs import Outputs, parse_outputs, parse_status
from cloudrun.core.records import JobStatus, RunOnUnit, UnitNews, UnitOrders
from cloudrun.ssh.channel import AgentChannel, as_object

MANIFEST_MAX_BYTES = 256 * 1024 * 1024  # a manifest of 100,000 files has some 20 MB
Sink = Callable[[Literal["stdout", "stderr"], bytes], None]


@dataclass(frozen=True)
class Finished:
    """How a job ended. `outputs` is None where it has not ended yet, or was not asked for.

    `small` has the contents that came along, by SHA-256, their digests checked.
    """

    status: JobStatus
    outputs: Outputs | None
    small: Mapping[str, bytes]


def job_status(reply: Mapping[str, Any]) -> JobStatus:
    """The status in a reply. Raises ConnectionLost for a shapeless one, CloudrunError where there is none."""
    status = reply.get("status")
    if status is None:
        raise CloudrunError("this run was never started on the unit", next_step="submit it again")
    try:
        return parse_status(status)
    except ManifestRefused as error:
        raise ConnectionLost(f"the agent is out of step: {reply!r:.200} where a status was due") from error


def runs_on_unit(reply: Mapping[str, Any]) -> tuple[RunOnUnit, ...]:
    """The runs in a reply, without those whose names could do harm."""
    found = []
    for told in reply.get("runs", []):
        name = str(told.get("run_dir"))
        if rundir.safe_relative(name):
            status = None if told.get("status") is None else job_status(told)
            found.append(RunOnUnit(name, status, bool(told.get("home")), bool(told.get("stored"))))
    return tuple(found)


def unit_news(reply: Mapping[str, Any]) -> UnitNews:
    told = reply.get("news") or {}
    try:
        return UnitNews(
            interruption_at=_moment(told.get("interruption_at")),
            rebalance_at=_moment(told.get("rebalance_at")),
            power_off_at=_moment(told.get("power_off_at")),
            why=str(told.get("why") or ""),
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise ConnectionLost(f"the agent is out of step: {reply!r:.200} where news were due") from error


def unit_orders(reply: Mapping[str, Any]) -> UnitOrders | None:
    given = reply.get("orders")
    if given is None:
        return None
    try:
        return UnitOrders(
            deadline=float(given["deadline"]),
            idle_s=_moment(given.get("idle_s")),
            spot=bool(given.get("spot")),
            power_off_when_done=bool(given.get("power_off_when_done")),
            slots=None if given.get("slots") is None else int(given["slots"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConnectionLost(f"the agent is out of step: {reply!r:.200} where orders were due") from error


def _moment(value: Any) -> float | None:
    return None if value is None else float(value)


def manifest(channel: AgentChannel, run_dir: str, end: bytes, begun: bytes = b"") -> Outputs:
    """The manifest that comes as DATA frames up to a frame of kind `end`. Raises ManifestRefused."""
    text = bytearray(begun)
    while True:
        kind, payload = channel.next()
        if kind == end:
            return parse_outputs(as_object(bytes(text)))
        if kind != wire.DATA:
            raise ConnectionLost(f"the agent is out of step: {kind!r} in the middle of a manifest")
        text += payload
        if len(text) > MANIFEST_MAX_BYTES:
            raise ManifestRefused(f"the manifest of {run_dir} is longer than {MANIFEST_MAX_BYTES} bytes")


def until_exited(channel: AgentChannel, run_dir: str, sink: Sink) -> Finished:
    """The rest of a `follow` or `cancel`: output as it comes, then what comes along, then the reply."""
    outputs: Outputs | None = None
    contents: list[bytes] = []
    while True:
        kind, payload = channel.next()
        if kind == wire.STDOUT:
            sink("stdout", payload)
        elif kind == wire.STDERR:
            sink("stderr", payload)
        elif kind == wire.REPLY:
            reply = as_object(payload)
            return Finished(job_status(reply), outputs, _checked(outputs, reply.get("brought", []), contents))
        elif kind not in (wire.DATA, wire.FILE_END):
            raise ConnectionLost(f"the agent is out of step: {kind!r} where a job's output was due")
        elif outputs is None:
            outputs = manifest(channel, run_dir, wire.FILE_END, payload)
        else:
            contents.append(_rest_of_file(channel, kind, payload))


def _rest_of_file(channel: AgentChannel, kind: bytes, payload: bytes) -> bytes:
    content = b""
    while kind == wire.DATA:
        content += payload
        kind, payload = channel.next()
    return content


def _checked(outputs: Outputs | None, brought: list[str], contents: list[bytes]) -> dict[str, bytes]:
    """By digest, the contents that are what the manifest says; any other is fetched like a large one."""
    if outputs is None:
        return {}
    digests = {f"work/{entry.path}": entry.sha256 for entry in outputs.entries}
    digests.update({f"logs/{entry.path}": entry.sha256 for entry in outputs.logs})
    return {
        digests[name]: content
        for name, content in zip(brought, contents, strict=False)
        if digests.get(name) == sha256(content).hexdigest()
    }
