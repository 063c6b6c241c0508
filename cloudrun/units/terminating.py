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
TERMINATION = (UnitState.TERMINATING, UnitState.TERMINATED)
ABSENT = 3  # describes in a row that do not know an instance, before it is taken for gone


def terminate(
    cloud: Cloud, ledger: Ledger, ids: Sequence[str], *, reason: EndReason, timeout_s: float, clock: Clock
) -> None:
    """Terminate, and wait until describe says so. Raises CleanupIncomplete with the ids that have not gone."""
    _end(cloud, ledger, ids, cloud.instances.terminate, TERMINATION, reason=reason, timeout_s=timeout_s, clock=clock)


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
    leaving = Leaving(cloud, ledger, ask, path, reason=reason, clock=clock)
    leaving.add(ids)
    end = clock.monotonic() + timeout_s
    pause = POLL_S[0]
    while leaving.left:
        leaving.look()
        if leaving.left and clock.monotonic() >= end:
            raise CleanupIncomplete(
                f"could not see {', '.join(leaving.left)} {path[1]} after {timeout_s:.0f} s",
                ids=leaving.left,
                next_step="cloudrun reap",
            ) from leaving.failure
        if leaving.left:
            clock.sleep(pause)
            pause = min(pause * 1.5, POLL_S[1])
    if leaving.unwritten:
        raise leaving.unwritten[0]


class Leaving:
    """Machines on their way out; a ledger that cannot be read or written keeps none alive. For one thread.

    What does not go is asked to again: EC2 does not know a new instance everywhere yet, and an id that it does not
    know is no error to `ask`. One that it has not known for a while, over several answers, is gone. That one is stopped
    is believed once EC2 has agreed to stop it: of one that was started a moment ago it may be old news.
    """

    def __init__(
        self,
        cloud: Cloud,
        ledger: Ledger,
        ask: Callable[[Sequence[str]], None],
        path: tuple[UnitState, UnitState],
        *,
        reason: EndReason | None,
        clock: Clock,
    ) -> None:
        """`path`: the states on the way and at the end of it."""
        self._cloud = cloud
        self._ledger = ledger
        self._ask = ask
        self._going, self._gone = path
        self._reason = reason
        self._clock = clock
        self._rows: dict[str, UnitRecord | None] = {}
        self._absent: dict[str, int] = {}
        self._agreed: set[str] = set()  # EC2 has said that they will go
        self.left: list[str] = []  # not seen at the end of the path yet
        self.unasked: list[str] = []  # those of them that EC2 does not say to be on it
        self.failure: CloudrunError | None = None  # of EC2, the last one
        self.unwritten: list[LedgerError] = []

    def add(self, ids: Sequence[str]) -> None:
        """They are asked to go at the next look; once more does no harm."""
        for instance_id in ids:
            row = _row(self._ledger, instance_id)
            if instance_id in self.left or (row is not None and row.state is UnitState.TERMINATED):
                continue
            self._rows[instance_id] = row
            self._absent[instance_id] = 0
            self.unasked.append(instance_id)
            self.left.append(instance_id)
            self._note(instance_id, self._going)

    def forget(self, instance_id: str) -> None:
        """It is another's to end."""
        self.left.remove(instance_id)
        self.unasked = [each for each in self.unasked if each != instance_id]

    def look(self) -> None:
        """Ask those that are not on their way, in one call, and see who has gone, and write that down."""
        failed = False
        found: dict[str, Instance] | None = None
        try:  # a network that comes and goes: time is the judge, not one answer
            if self.unasked:
                self._agreed.difference_update(self.unasked)
                self._ask(self.unasked)
                self._agreed.update(self.unasked)
        except CloudrunError as error:
            self.failure, failed = error, True
        try:
            found = self._cloud.instances.describe(self.left)
        except CloudrunError as error:
            self.failure, failed = error, True
        if failed and not self._cloud.exists():
            for instance_id in self.left:
                self._note(instance_id, UnitState.TERMINATED)
            self.left, self.unasked = [], []
            return
        for instance_id in list(self.left) if found is not None else ():
            state = found[instance_id].state if found and instance_id in found else None
            self._absent[instance_id] = self._absent[instance_id] + 1 if state is None else 0
            row = self._rows[instance_id]
            old = row is not None and self._clock.now() - row.created_at > CONSISTENCY
            agreed = state == self._gone and instance_id in self._agreed
            if agreed or state == "terminated" or (old and self._absent[instance_id] >= ABSENT):
                self._note(instance_id, UnitState(state or UnitState.TERMINATED))
                self.left.remove(instance_id)
        on_their_way = {each for each, one in (found or {}).items() if one.state in (self._going, "shutting-down")}
        self.unasked = [each for each in self.left if each not in on_their_way]

    def _note(self, instance_id: str, state: UnitState) -> None:
        try:
            move_on(self._ledger, instance_id, state, self._reason)
        except LedgerError as error:
            self.unwritten.append(error)


def _row(ledger: Ledger, instance_id: str) -> UnitRecord | None:
    try:
        return ledger.unit(instance_id)
    except LedgerError:
        return None


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
        request = ledger.launch(launch_id).request
        if not request.group_is_given:
            groups.append(request.security_group_id)
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
