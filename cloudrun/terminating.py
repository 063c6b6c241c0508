"""The end of a launch: its machines terminated or stopped, then its key pair and its security group deleted.

A machine has ended when `DescribeInstances` says so, not when `TerminateInstances` has returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from cloudrun.core.clock import Clock
from cloudrun.core.errors import CleanupIncomplete, CloudrunError, LedgerError
from cloudrun.core.records import Instance, UnitRecord
from cloudrun.core.states import EndReason, UnitState
from cloudrun.ledger import Ledger
from cloudrun.plan.reaping import CONSISTENCY, key_name
from cloudrun.wiring import Cloud

POLL_S = (0.1, 2.0)  # the first pause between two describes, and the longest
ABSENT = 3  # describes in a row that do not know an instance, before it is taken for gone


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
    ledger.key_path(launch_id).unlink(missing_ok=True)
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
