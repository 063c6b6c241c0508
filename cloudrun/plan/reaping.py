"""What the reaper should do, decided from records and the time alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from cloudrun.core.records import Instance, LaunchRecord, Leftovers, UnitRecord
from cloudrun.core.states import LaunchState, UnitState

# EC2's describe may miss a new instance for a while ("eventual consistency"); younger units are never called lost.
CONSISTENCY = timedelta(minutes=5)
KEY_PREFIX = "cloudrun-"

Kind = Literal["terminate", "forget", "delete_key_pair", "delete_security_group", "delete_volume"]
ENDED = frozenset({"terminated", "shutting-down"})


@dataclass(frozen=True)
class ReapAction:
    """One thing to do. `kind`: terminate an instance, forget a unit that is gone, delete a key pair or a group."""

    kind: Kind
    target: str
    reason: str


def key_name(launch_id: str) -> str:
    return KEY_PREFIX + launch_id


def doomed(
    unit: UnitRecord | None, launch: LaunchRecord | None, instance: Instance, living: Set[str], now: datetime
) -> str | None:
    """Why an instance of ours should be terminated; None where it should live. `living`: ids of clients alive."""
    owner = unit.client_id if unit else launch.client_id if launch else ""
    deadline = unit.deadline if unit else launch.deadline if launch else None
    if deadline is not None and now >= deadline and instance.state not in ("stopped", "stopping"):
        return "its deadline has passed"
    if unit is None and launch is None:
        return "no launch in this ledger knows it"
    if owner in living:
        return None
    if unit is not None and unit.state is UnitState.TERMINATING:
        return "its end was begun, and did not come"
    if unit is not None and owner == "" and unit.on_exit in ("keep", "stop"):
        return None  # its client let go of it on purpose
    if unit is not None and unit.on_exit == "stop" and instance.state in ("stopped", "stopping"):
        return None  # its client died over it, when it was as it should be
    return "the client that launched it is gone"


def plan(
    *,
    units: Iterable[UnitRecord],
    launches: Mapping[str, LaunchRecord],
    instances: Iterable[Instance],
    leftovers: Leftovers,
    living: Set[str],
    now: datetime,
    unwanted: Set[str] = frozenset(),
    launch_tag: str = "cloudrun:launch",
) -> list[ReapAction]:
    """Actions for one place, instances first. `instances` are those tagged as this ledger's; `units` its live rows.

    `unwanted`: ids of kept or stopped units that the user gives up; then no other instance is touched.
    """
    actions: list[ReapAction] = []
    rows = {unit.instance_id: unit for unit in units}
    seen: dict[str, Instance] = {instance.instance_id: instance for instance in instances}
    needed: set[str] = set()  # launches whose key pair and group are still in use
    for instance in seen.values():
        unit = rows.get(instance.instance_id)
        launch_id = unit.launch_id if unit else instance.tags.get(launch_tag, "")
        if instance.state in ENDED:
            continue
        why = doomed(unit, launches.get(launch_id), instance, living, now)
        if unwanted:
            why = "you asked for it" if instance.instance_id in unwanted else None
        if why is None:
            needed.add(launch_id)
        else:
            actions.append(ReapAction("terminate", instance.instance_id, why))
    for unit in rows.values():
        found = seen.get(unit.instance_id)
        if found is None and now - unit.created_at < CONSISTENCY:
            needed.add(unit.launch_id)
        elif unit.state is not UnitState.TERMINATED and (found is None or found.state == "terminated"):
            actions.append(
                ReapAction(
                    "forget", unit.instance_id, "EC2 says it is terminated" if found else "EC2 no longer knows it"
                )
            )
    for launch in launches.values():
        unknown = launch.state in (LaunchState.REQUESTED, LaunchState.UNRESOLVED)  # asked again with these very ids
        if unknown or (launch.client_id in living and launch.state is not LaunchState.REFUSED):
            needed.add(launch.launch_id)
    actions += _release(launches, leftovers, needed, living)
    return actions


def _release(
    launches: Mapping[str, LaunchRecord], leftovers: Leftovers, needed: Set[str], living: Set[str]
) -> list[ReapAction]:
    """Key pairs and security groups that no unit needs.

    What no launch in the ledger names may belong to a living client that is about to write its intent: it is left
    alone as long as any client lives.
    """
    of_group = {launch.request.security_group_id: launch.launch_id for launch in launches.values()}
    owners: list[tuple[Kind, str, str]] = [
        ("delete_key_pair", name, name.removeprefix(KEY_PREFIX)) for name in leftovers.key_names
    ]
    owners += [("delete_security_group", group, of_group.get(group, "")) for group in leftovers.security_group_ids]
    actions = [
        ReapAction(kind, target, "no unit needs it")
        for kind, target, launch_id in owners
        if launch_id not in needed and (launch_id in launches or not living)
    ]
    # Every volume goes with its instance. One that is loose all the same belongs to nobody who lives.
    return actions + [
        ReapAction("delete_volume", volume, "its instance is gone") for volume in leftovers.volume_ids if not living
    ]
