"""How a run is recorded to have ended, decided from what the agent saw or from what interrupted it."""

from __future__ import annotations

import signal
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cloudrun.core.errors import Cancelled, ConnectionLost, DeadlineReached, Interrupted, ProvisionError
from cloudrun.core.records import Instance, JobStatus
from cloudrun.core.states import EndReason, RunState
from cloudrun.plan.quantities import duration_text, size_text


@dataclass(frozen=True)
class Ending:
    """The state, the reason, and one sentence ("" where it succeeded)."""

    state: RunState
    reason: EndReason
    detail: str = ""


CANCELLED = Ending(RunState.CANCELLED, EndReason.CANCELLED, "it was asked to end")
CLOCKS = timedelta(seconds=5)  # by how much a machine's clock may be ahead of ours
AGAIN = "submit again with --bucket NAME, or with a longer --deadline"  # after a deadline that took outputs along

# By the reason in `status.json`: the agent ended the job, and how it then exited says nothing.
_BY_THE_AGENT = {
    "cancelled": CANCELLED,
    "deadline": Ending(RunState.FAILED, EndReason.DEADLINE, "its machine reached its deadline"),
    "interrupted": Ending(RunState.LOST, EndReason.INTERRUPTED, "the provider took the machine back"),
    "wall_time": Ending(RunState.FAILED, EndReason.WALL_TIME, "it ran longer than its limit, wall_time"),
    "memory": Ending(RunState.FAILED, EndReason.MEMORY, "it took more memory than its limit, memory"),
    "disk": Ending(RunState.FAILED, EndReason.DISK, "it wrote more to the disk than its limit, disk"),
}


def verdict(status: JobStatus, refused: str = "") -> Ending:
    """For a job that has ended. `refused`: which limit its outputs passed, "" for none."""
    if status.reason in _BY_THE_AGENT:
        ending = _BY_THE_AGENT[status.reason]
        return replace(ending, detail=ending.detail + _figure(status))
    if status.error:
        return Ending(RunState.FAILED, EndReason.EXITED, status.error)
    if status.signal is not None:
        name = next((known.name for known in signal.Signals if known.value == status.signal), f"signal {status.signal}")
        return Ending(RunState.FAILED, EndReason.SIGNALLED, f"it was killed by {name}")
    if status.exit_code == 0 and refused:
        return Ending(RunState.FAILED, EndReason.OUTPUT_REFUSED, refused)
    if status.exit_code == 0:
        return Ending(RunState.SUCCEEDED, EndReason.COMPLETED)
    if status.exit_code is None:
        return Ending(RunState.LOST, EndReason.UNIT_LOST, "it ended, and nobody saw how")
    return Ending(RunState.FAILED, EndReason.EXITED, f"it exited with code {status.exit_code}")


def _figure(status: JobStatus) -> str:
    """What it had taken of that of which it took too much; "" where nobody counted."""
    if status.reason == "wall_time" and status.started_at is not None and status.ended_at is not None:
        return f": {duration_text(status.ended_at - status.started_at)}"
    if status.usage is not None and status.reason in ("memory", "disk"):
        used = status.usage.peak_memory_bytes if status.reason == "memory" else status.usage.written_bytes
        return f": {size_text(used)}"
    return ""


def in_words(error: BaseException) -> str:
    """What put an end to something, for people."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C"
    if isinstance(error, SystemExit):
        number = error.code - 128 if isinstance(error.code, int) else 0
        name = next((known.name for known in signal.Signals if known.value == number), "")
        return f"ended by {name}" if name else "the process that waited for it was told to end"
    return str(error) or type(error).__name__


def interruption(
    error: BaseException, *, started: bool, cause: BaseException | None = None, ran_s: float = 0.0, again: str = ""
) -> Ending:
    """For an attempt that `error` put an end to. `cause`: of which that one is the consequence; `ran_s`: how long the
    job has run (0: it has not); `again`: what to do where the user has stopped it, and may want it all the same."""
    cause = cause or error
    detail = in_words(cause) + (f" after {duration_text(ran_s)}" if ran_s else "")
    if again and not isinstance(cause, Exception):
        detail += f"; {again}"
    if isinstance(error, DeadlineReached):
        return Ending(RunState.FAILED, EndReason.DEADLINE, detail)
    if isinstance(error, ProvisionError):
        return Ending(RunState.FAILED, EndReason.PROVISION_FAILED, detail)
    if isinstance(error, Interrupted):
        return Ending(RunState.LOST, EndReason.INTERRUPTED, detail)
    if isinstance(error, ConnectionLost):
        return Ending(RunState.LOST, EndReason.UNIT_LOST if started else EndReason.SHIP_FAILED, detail)
    if isinstance(error, Cancelled) or not isinstance(error, Exception):
        return Ending(RunState.CANCELLED, EndReason.CANCELLED, detail)
    return Ending(RunState.FAILED, EndReason.PULL_FAILED if started else EndReason.SHIP_FAILED, detail)


def at_its_deadline(deadline: datetime, instance: Instance | None, now: datetime) -> bool:
    """Whether a machine that is gone went because its time was up. `instance` is what EC2 still says of it."""
    why = instance.state_reason if instance is not None else ""
    return now >= deadline - CLOCKS and (not why or why.startswith("Client.InstanceInitiatedShutdown"))


def with_its_machine(deadline: datetime, instance: Instance | None, now: datetime, *, bucket: bool) -> Ending:
    """For a run whose machine went before anybody had what it wrote. `bucket`: it had one, and did not get to it."""
    nowhere = ", and its outputs are not in its bucket" if bucket else ""
    if not at_its_deadline(deadline, instance, now):
        return Ending(RunState.LOST, EndReason.CLIENT_LOST, f"its machine is gone{nowhere}")
    helps = "cloudrun extend or a longer --deadline" if bucket else "--bucket, cloudrun extend or a longer --deadline"
    return Ending(
        RunState.LOST,
        EndReason.DEADLINE,
        f"its machine went at its deadline, {deadline:%Y-%m-%d %H:%M} UTC, before anybody came for its outputs{nowhere}"
        f" ({helps} would have kept them)",
    )
