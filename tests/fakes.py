"""An EC2, a network, an agent and a clock in a test's hands; launches, units and runs of theirs in a real ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from cloudrun.core.errors import CloudrunError, ConnectionLost
from cloudrun.core.events import Event, nobody
from cloudrun.core.records import (
    Artifact,
    Instance,
    JobStatus,
    LaunchRecord,
    LaunchRequest,
    Leftovers,
    Place,
    RunRecord,
    Timings,
    UnitRecord,
)
from cloudrun.core.settings import Settings
from cloudrun.core.states import LaunchState, RunState
from cloudrun.ledger import Ledger
from cloudrun.runs.attempt import Attempt
from cloudrun.ssh.agent import Finished, Outputs
from cloudrun.units import launching
from cloudrun.units.rented import RentedUnit
from cloudrun.units.unit import OpenUnit
from cloudrun.wiring import Cloud

PLACE = Place("aws", "eu-west-1", "111122223333")
HOUR = timedelta(hours=1)
RUN = "r-1"


@dataclass
class ManualClock:
    """A clock that is turned by whoever sleeps."""

    time: datetime = datetime(2026, 3, 1, 12, tzinfo=UTC)
    slept_s: float = 0.0

    def now(self) -> datetime:
        return self.time + timedelta(seconds=self.slept_s)

    def monotonic(self) -> float:
        return self.slept_s

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds


@dataclass
class Ec2:
    """Instances by id, and what goes wrong: `deaf` is how many requests to end are lost without an error."""

    states: dict[str, str] = field(default_factory=dict)
    deaf: int = 0
    blind: bool = False
    launches: list[str] = field(default_factory=list)
    run_error: Callable[[LaunchRequest], CloudrunError | None] = lambda _: None

    def run(self, request: LaunchRequest, *, asked_before: bool = False) -> tuple[Instance, ...]:
        self.launches.append(request.client_token)
        if error := self.run_error(request):
            raise error
        instance_id = f"i-{request.client_token}"
        self.states.setdefault(instance_id, "pending")
        return (self._instance(instance_id),)

    def _instance(self, instance_id: str) -> Instance:
        return Instance(instance_id, self.states[instance_id], "m7i.large", None, "192.0.2.1")

    def describe(self, ids: Sequence[str]) -> dict[str, Instance]:
        return {} if self.blind else {each: self._instance(each) for each in ids if each in self.states}

    def owned(self, ledger_id: str, *, launch_id: str | None = None) -> list[Instance]:
        return []

    def terminate(self, ids: Sequence[str]) -> None:
        if self.deaf:
            self.deaf -= 1
            return
        self.states.update((each, "terminated") for each in ids if each in self.states)

    def stop(self, ids: Sequence[str]) -> None:
        self.states.update((each, "stopped") for each in ids if each in self.states)


@dataclass
class Network:
    keys: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    key_error: CloudrunError | None = None

    def delete_key_pair(self, name: str) -> None:
        if self.key_error:
            raise self.key_error
        self.keys = [key for key in self.keys if key != name]

    def delete_security_group(self, group: str) -> bool:
        self.groups = [each for each in self.groups if each != group]
        return True

    def leftovers(self, ledger_id: str, *, launch_id: str | None = None) -> Leftovers:
        return Leftovers() if launch_id else Leftovers(tuple(self.keys), tuple(self.groups))


class Agent:
    """Of a unit with one job. `cuts` is how many requests are cut off; `status` is the job's."""

    def __init__(self, status: JobStatus | None = None, cuts: int = 0, cut_home: int = 0) -> None:
        self.now = status
        self.cuts = cuts
        self.cut_home = cut_home
        self.cancelled = 0

    def status(self, place: str) -> JobStatus | None:
        return self.now

    def cancel(self, place: str, grace_s: float, reason: str) -> JobStatus:
        if self.cuts:
            self.cuts -= 1
            raise ConnectionLost("cut")
        self.cancelled += 1
        self.now = (
            self.now if self.now and self.now.state == "exited" else JobStatus("exited", signal=15, reason=reason)
        )
        return self.now

    def collect(self, place: str) -> Finished:
        status = self.status(place)
        assert status is not None
        return Finished(status, self.outputs(place), {})

    def outputs(self, place: str) -> Outputs:
        return Outputs((), (), (), "", {}, "", "")

    def fetch(self, *_: object) -> None: ...

    def fetch_logs(self, *_: object) -> None: ...

    def home(self, place: str) -> None:
        if self.cut_home:
            self.cut_home -= 1
            raise ConnectionLost("cut")


def cloud_of(ec2: Ec2, network: Network | None = None) -> Cloud:
    parts = SimpleNamespace(
        place=PLACE, instances=ec2, network=network or Network(), notes=(), exists=lambda: True, refuses={}
    )
    return cast("Cloud", parts)


def intend(
    ledger: Ledger,
    clock: ManualClock,
    launch_id: str = "l-1",
    client_id: str = "c-1",
    overdue_grace_s: float = 300.0,
    **tags: str,
) -> LaunchRecord:
    request = LaunchRequest(
        launch_id, 1, "m7i.large", "ami-1", "/dev/sda1", 20, f"cloudrun-{launch_id}", f"sg-{launch_id}", "", tags,
        overdue_grace_s=overdue_grace_s,
    )  # fmt: skip
    launch = LaunchRecord(
        launch_id, PLACE, LaunchState.INTENDED, request, "ubuntu", client_id,
        clock.now() + 4 * HOUR, "terminate", "ssh-ed25519 A", clock.now(), "x86_64",
    )  # fmt: skip
    ledger.intend(launch)
    return launch


def launch_one(
    ledger: Ledger, clock: ManualClock, ec2: Ec2, launch_id: str = "l-1", client_id: str = "c-1", **tags: str
) -> UnitRecord:
    launch = intend(ledger, clock, launch_id, client_id, **tags)
    (unit,) = launching.request(cloud_of(ec2), ledger, launch, clock)
    ec2.states[unit.instance_id] = "running"
    return unit


def open_unit(ledger: Ledger, clock: ManualClock, ec2: Ec2, observe: Callable[[Event], None] = nobody) -> OpenUnit:
    unit = RentedUnit(cloud_of(ec2), ledger, Settings(), observe, clock)
    unit.record = launch_one(ledger, clock, ec2)
    unit.client_id = unit.record.client_id
    unit.opened = True
    unit._ending.callback(unit._release, "l-1")
    unit._ending.callback(unit._end_instances, "l-1")
    return unit


def begun(ledger: Ledger, clock: ManualClock, store: str = "") -> RunRecord:
    """A run on the machine of launch l-1."""
    ledger.add_run(RunRecord(RUN, "train", "train.py", RunState.QUEUED, clock.now()))
    ledger.begin_attempt(RUN, "i-l-1", clock.now(), store=store)
    ledger.move_run(RUN, RunState.RUNNING)
    return ledger.run(RUN)


def ended_well(ledger: Ledger, run_id: str, instance_id: str, beside: str = "") -> None:
    """An hour on that machine, without a score."""
    ledger.begin_attempt(run_id, instance_id, ManualClock().now(), beside=beside)
    ledger.move_run(run_id, RunState.RUNNING)
    ledger.move_run(run_id, RunState.PULLING)
    ledger.finish_run(
        run_id, RunState.SUCCEEDED, reason=None, exit_code=0, detail="", scores={}, metric=None,
        minimize=False, artifacts=(), passport=None, timings=Timings(), at=ManualClock().now() + HOUR,
    )  # fmt: skip


def saved(ledger: Ledger, tmp_path: Path) -> Artifact:
    (tmp_path / "checkpoint").write_text("step 3")
    entry = ledger.artifacts.add(tmp_path / "checkpoint")
    return Artifact("checkpoint", entry.size, entry.sha256)


def an_attempt(ledger: Ledger, clock: ManualClock, ec2: Ec2, agent: Agent, store: str = "") -> Attempt:
    unit = open_unit(ledger, clock, ec2)
    unit._connection.agent = cast("Any", agent)
    unit._connection.session = cast("Any", SimpleNamespace(is_alive=True, close=lambda: None))
    unit.reconnect = lambda stop=None, *, lost=None: None  # type: ignore[method-assign]
    unit.run_ids.append(RUN)
    begun(ledger, clock, store)
    attempt = Attempt(unit, ledger.run(RUN), 1)
    attempt.started = True
    return attempt
