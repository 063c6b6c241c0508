"""One launch, from intent to resolution, and its exact reverse.

The order is what keeps a machine from leaking: the ledger knows what is about to be asked before EC2 is asked; a lost
answer is asked for again with the same token until it is known; and the end is what `DescribeInstances` says, not that
`TerminateInstances` returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from cloudrun.core.clock import Clock, utc_text
from cloudrun.core.errors import (
    CleanupIncomplete,
    CloudrunError,
    LaunchError,
    LedgerError,
    UnresolvedLaunch,
    mark_incomplete,
)
from cloudrun.core.records import Image, Instance, LaunchRecord, LaunchRequest, UnitRecord
from cloudrun.core.settings import Settings
from cloudrun.core.states import EndReason, LaunchState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.reaping import CONSISTENCY, key_name
from cloudrun.plan.userdata import user_data
from cloudrun.wiring import Cloud

SETTLED = (LaunchState.RESOLVED, LaunchState.REFUSED)
RESOLVE_ATTEMPTS = 5
POLL_S = (0.1, 2.0)  # the first pause between two describes, and the longest
UNWRITTEN_TIMEOUT_S = 120.0
ABSENT = 3  # describes in a row that do not know an instance, before it is taken for gone


class MakeKey(Protocol):
    def __call__(self, comment: str) -> KeyPair: ...


class KeyPair(Protocol):
    @property
    def private(self) -> str: ...
    @property
    def public(self) -> str: ...


def key_path(ledger: Ledger, launch_id: str) -> Path:
    return ledger.home / "keys" / launch_id


def prepare(
    cloud: Cloud,
    ledger: Ledger,
    settings: Settings,
    image: Image,
    *,
    launch_id: str,
    client_id: str,
    owner: str,
    make_key: MakeKey,
    clock: Clock,
    count: int = 1,
) -> LaunchRecord:
    """Make the keys and the security group, and write the intent. Nothing bills yet when this returns."""
    login, host = make_key(f"cloudrun {launch_id}"), make_key(f"cloudrun host {launch_id}")
    _write_private(key_path(ledger, launch_id), login.private)
    now = clock.now()
    deadline = now + timedelta(seconds=settings.deadline_s)
    tags = {
        "Name": f"cloudrun {launch_id}",
        "cloudrun:ledger": ledger.ledger_id,
        "cloudrun:launch": launch_id,
        "cloudrun:owner": owner,
        "cloudrun:expires-at": utc_text(deadline),
    }
    name = key_name(launch_id)
    cloud.network.import_key_pair(name, login.public, tags)
    group = cloud.network.create_security_group(name, cloud.caller_cidr(), tags)
    record = LaunchRecord(
        launch_id=launch_id,
        place=cloud.place,
        state=LaunchState.INTENDED,
        request=LaunchRequest(
            client_token=launch_id,
            count=count,
            instance_type=settings.instance_type,
            image_id=image.image_id,
            root_device=image.root_device,
            volume_gib=max(settings.volume_gib, image.root_gib),
            key_name=name,
            security_group_id=group,
            user_data=user_data(deadline=deadline, host_private_key=host.private, host_public_key=host.public),
            tags=tags,
            spot=settings.spot,
        ),
        user=settings.user or image.user,
        client_id=client_id,
        deadline=deadline,
        on_exit=settings.on_exit,
        host_key=" ".join(host.public.split()[:2]),
        created_at=now,
        architecture=image.architecture,
    )
    ledger.intend(record)
    return record


def image_of(cloud: Cloud, ledger: Ledger, unit: UnitRecord) -> Image:
    """What a unit of this ledger was launched from, as far as that matters to what runs on it. EC2 is asked only about
    units of an older cloudrun."""
    launch = ledger.launch(unit.launch_id)
    architecture = launch.architecture or cloud.images.find(unit.instance_type).architecture
    return Image(launch.request.image_id, "", architecture, launch.request.root_device, unit.user, 0)


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


def request(cloud: Cloud, ledger: Ledger, launch: LaunchRecord, clock: Clock) -> list[UnitRecord]:
    """Ask EC2 for the machines. Raises the refusal, or UnresolvedLaunch where even asking again gave no answer."""
    ledger.move_launch(launch.launch_id, LaunchState.REQUESTED)
    return _ask(cloud, ledger, launch, clock, attempts=RESOLVE_ATTEMPTS)


def resolve(cloud: Cloud, ledger: Ledger, launch: LaunchRecord, clock: Clock) -> list[UnitRecord]:
    """Find out what became of a launch whose answer was lost: the same call, same token, word for word."""
    if launch.state is LaunchState.INTENDED:
        ledger.move_launch(launch.launch_id, LaunchState.REFUSED, "never asked for: the client ended before")
        return []
    return _ask(cloud, ledger, launch, clock, attempts=1, asked_before=True)


def _ask(
    cloud: Cloud, ledger: Ledger, launch: LaunchRecord, clock: Clock, *, attempts: int, asked_before: bool = False
) -> list[UnitRecord]:
    for attempt in range(attempts):
        try:
            instances = cloud.instances.run(launch.request, asked_before=asked_before or attempt > 0)
        except UnresolvedLaunch as lost:
            if attempt + 1 == attempts:
                if ledger.launch(launch.launch_id).state is LaunchState.REQUESTED:
                    ledger.move_launch(launch.launch_id, LaunchState.UNRESOLVED, str(lost))
                raise
            clock.sleep(min(2.0**attempt * 0.5, 8.0))
        except CloudrunError as refusal:
            ledger.move_launch(launch.launch_id, LaunchState.REFUSED, str(refusal))
            raise
        else:
            units = [_unit(launch, instance) for instance in instances]
            try:
                ledger.resolve_launch(launch.launch_id, units)
            except LedgerError as error:
                _end_unwritten(cloud, ledger, units, error, clock)
                raise
            return units
    raise AssertionError("a launch is asked for at least once")


def _end_unwritten(cloud: Cloud, ledger: Ledger, units: Sequence[UnitRecord], error: LedgerError, clock: Clock) -> None:
    """Machines that the ledger cannot hold (a full disk) must not live: nobody would know of them."""
    ids = [unit.instance_id for unit in units]
    try:
        terminate(cloud, ledger, ids, reason=EndReason.COMPLETED, timeout_s=UNWRITTEN_TIMEOUT_S, clock=clock)
    except CleanupIncomplete as failure:
        error.add_note(str(failure))
        mark_incomplete(error)
    except LedgerError:
        pass  # the very same once more


def _unit(launch: LaunchRecord, instance: Instance) -> UnitRecord:
    return UnitRecord(
        instance_id=instance.instance_id,
        launch_id=launch.launch_id,
        place=launch.place,
        state=UnitState.LAUNCHING,
        instance_type=instance.instance_type,
        user=launch.user,
        address=instance.address,
        ssh_port=instance.ssh_port,
        host_key=launch.host_key,
        deadline=launch.deadline,
        on_exit=launch.on_exit,
        client_id=launch.client_id,
        created_at=launch.created_at,
    )


def wait_running(
    cloud: Cloud, ledger: Ledger, instance_id: str, *, timeout_s: float, clock: Clock, cancelled: Callable[[], None]
) -> Instance:
    """Poll until EC2 says `running` with an address. `cancelled` raises where the user has had enough."""
    end = clock.monotonic() + timeout_s
    pause = POLL_S[0]
    while True:
        cancelled()
        # A new instance may be missing from a describe for a moment; only the deadline makes that an error.
        found = cloud.instances.describe([instance_id]).get(instance_id)
        if found is not None and found.state == "running" and found.address:
            ledger.update_unit(instance_id, address=found.address, ssh_port=found.ssh_port)
            ledger.move_unit(instance_id, UnitState.BOOTING)
            return found
        if found is not None and found.state in ("shutting-down", "terminated", "stopping", "stopped"):
            why = found.state_reason or "EC2 gave no reason"
            raise LaunchError(
                f"{instance_id} went to {found.state} before it was up: {why}",
                next_step="submit again, or try another instance type",
            )
        if clock.monotonic() >= end:
            raise LaunchError(
                f"{instance_id} was not running after {timeout_s:.0f} s",
                next_step="submit again; raise boot_timeout_s if this recurs",
            )
        clock.sleep(pause)
        pause = min(pause * 1.5, POLL_S[1])


def terminate(
    cloud: Cloud, ledger: Ledger, ids: Sequence[str], *, reason: EndReason, timeout_s: float, clock: Clock
) -> None:
    """Terminate, and wait until describe says so. Raises CleanupIncomplete with the ids that have not gone."""
    path = (UnitState.TERMINATING, UnitState.TERMINATED)
    _end(cloud, ledger, ids, cloud.instances.terminate, path, reason=reason, timeout_s=timeout_s, clock=clock)


def stop(cloud: Cloud, ledger: Ledger, ids: Sequence[str], *, timeout_s: float, clock: Clock) -> None:
    """Stop, and wait until describe says so. Raises CleanupIncomplete with the ids that still run."""
    path = (UnitState.STOPPING, UnitState.STOPPED)
    _end(cloud, ledger, ids, cloud.instances.stop, path, reason=None, timeout_s=timeout_s, clock=clock)


def _end(
    cloud: Cloud,
    ledger: Ledger,
    ids: Sequence[str],
    ask: Callable[[Sequence[str]], None],
    path: tuple[UnitState, UnitState],
    *,
    reason: EndReason | None,
    timeout_s: float,
    clock: Clock,
) -> None:
    """Ask EC2, poll until it is so, and write it down; a ledger that cannot be read or written keeps no machine alive.

    What does not go is asked to again: EC2 does not know a new instance everywhere yet, and an id that it does not
    know is no error to `ask`. One that it has not known for a while, over several answers, is gone.
    """
    going, gone = path
    rows = {instance_id: _row(ledger, instance_id) for instance_id in ids}
    left = [each for each, row in rows.items() if row is None or row.state is not UnitState.TERMINATED]
    unwritten: list[LedgerError] = []
    for instance_id in left:
        _note(ledger, instance_id, going, reason, unwritten)
    end = clock.monotonic() + timeout_s
    pause = POLL_S[0]
    failure: CloudrunError | None = None
    unasked = list(left)
    absent = dict.fromkeys(left, 0)
    while left:
        found: dict[str, Instance] | None = None
        try:  # a network that comes and goes: time is the judge, not one answer
            if unasked:
                ask(unasked)
        except CloudrunError as error:
            failure = error
        try:
            found = cloud.instances.describe(left)
        except CloudrunError as error:
            failure = error
        if failure is not None and not cloud.exists():
            for instance_id in left:
                _note(ledger, instance_id, UnitState.TERMINATED, reason, unwritten)
            break
        for instance_id in list(left) if found is not None else ():
            state = found[instance_id].state if found and instance_id in found else None
            absent[instance_id] = absent[instance_id] + 1 if state is None else 0
            row = rows[instance_id]
            old = row is not None and clock.now() - row.created_at > CONSISTENCY
            if state in (gone, "terminated") or (old and absent[instance_id] >= ABSENT):
                _note(ledger, instance_id, UnitState(state or UnitState.TERMINATED), reason, unwritten)
                left.remove(instance_id)
        on_their_way = {each for each, one in (found or {}).items() if one.state in (going, gone, "shutting-down")}
        unasked = [each for each in left if each not in on_their_way]
        if left and clock.monotonic() >= end:
            raise CleanupIncomplete(
                f"could not see {', '.join(left)} {gone} after {timeout_s:.0f} s", ids=left, next_step="cloudrun reap"
            ) from failure
        if left:
            clock.sleep(pause)
            pause = min(pause * 1.5, POLL_S[1])
    if unwritten:
        raise unwritten[0]


def _row(ledger: Ledger, instance_id: str) -> UnitRecord | None:
    try:
        return ledger.unit(instance_id)
    except LedgerError:
        return None


def _note(
    ledger: Ledger, instance_id: str, state: UnitState, reason: EndReason | None, unwritten: list[LedgerError]
) -> None:
    try:
        move_on(ledger, instance_id, state, reason)
    except LedgerError as error:
        unwritten.append(error)


def move_on(ledger: Ledger, instance_id: str, state: UnitState, reason: EndReason | None) -> None:
    """Towards the end only: another client that looks at the same unit may have written the same, or more, before."""
    try:
        ledger.move_unit(instance_id, state, reason=reason)
    except LedgerError:
        if ledger.unit(instance_id).state not in (state, UnitState.TERMINATED):
            raise


def release_resources(cloud: Cloud, ledger: Ledger, launch_id: str, *, timeout_s: float, clock: Clock) -> None:
    """Delete the launch's key pair and security group. Only after its instances are terminated: EC2 refuses before.

    The group is found by its tag, since an abort in the middle of creating it leaves no id behind, and by what the
    ledger knows, since a list may miss what was made a moment ago. All is tried; raises CleanupIncomplete.
    """
    key_path(ledger, launch_id).unlink(missing_ok=True)
    if not cloud.exists():
        return
    name = key_name(launch_id)
    failures: dict[str, CloudrunError] = {}
    try:
        cloud.network.delete_key_pair(name)
    except CloudrunError as error:
        failures[name] = error
    groups: list[str] = []
    with suppress(LedgerError):  # the intent was never written
        groups.append(ledger.launch(launch_id).request.security_group_id)
    try:
        groups += cloud.network.leftovers(ledger.ledger_id, launch_id=launch_id).security_group_ids
    except CloudrunError as error:
        failures["its security group"] = error
    for group in dict.fromkeys(groups):
        try:
            delete_group(cloud, group, timeout_s=timeout_s, clock=clock)
        except CloudrunError as error:
            failures[group] = error
    if failures:
        why = "; ".join(dict.fromkeys(str(error) for error in failures.values()))
        raise CleanupIncomplete(
            f"could not delete {', '.join(failures)}: {why}", ids=list(failures), next_step="cloudrun reap"
        ) from next(iter(failures.values()))


def delete_group(cloud: Cloud, group: str, *, timeout_s: float, clock: Clock) -> None:
    """Delete a security group, waiting for the network interfaces that outlive their instance by seconds."""
    end = clock.monotonic() + timeout_s
    pause = POLL_S[0]
    while not cloud.network.delete_security_group(group):
        if clock.monotonic() >= end:
            raise CleanupIncomplete(f"security group {group} is still in use", ids=[group], next_step="cloudrun reap")
        clock.sleep(pause)
        pause = min(pause * 1.5, POLL_S[1])
