"""What the reaper decides, as a table of records and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudrun.core.records import Instance, LaunchRecord, LaunchRequest, Leftovers, Place, UnitRecord
from cloudrun.core.states import LaunchState, UnitState
from cloudrun.plan import reaping

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLACE = Place("aws", "eu-central-1")
NOTHING = Leftovers()


def launch(launch_id: str = "l-1", client: str = "c-1", state: LaunchState = LaunchState.RESOLVED) -> LaunchRecord:
    request = LaunchRequest(
        launch_id, 1, "m7i.large", "ami-1", "/dev/sda1", 20, f"cloudrun-{launch_id}", f"sg-{launch_id}", "", {}
    )
    return LaunchRecord(
        launch_id, PLACE, state, request, "ubuntu", client, NOW + HOUR, "terminate", "ssh-ed25519 A", NOW - HOUR
    )


def unit(instance_id: str = "i-1", **changes: object) -> UnitRecord:
    values: dict[str, object] = {
        "instance_id": instance_id,
        "launch_id": "l-1",
        "place": PLACE,
        "state": UnitState.READY,
        "instance_type": "m7i.large",
        "user": "ubuntu",
        "address": "192.0.2.1",
        "ssh_port": 22,
        "host_key": "ssh-ed25519 A",
        "deadline": NOW + HOUR,
        "on_exit": "terminate",
        "client_id": "c-1",
        "created_at": NOW - HOUR,
    }
    return UnitRecord(**{**values, **changes})  # type: ignore[arg-type]


def instance(instance_id: str = "i-1", state: str = "running", launch_id: str = "l-1") -> Instance:
    return Instance(instance_id, state, "m7i.large", NOW - HOUR, "192.0.2.1", tags={"cloudrun:launch": launch_id})


def decide(
    units: list[UnitRecord],
    instances: list[Instance],
    living: frozenset[str] = frozenset(),
    launches: tuple[LaunchRecord, ...] = (launch(),),
    leftovers: Leftovers = NOTHING,
) -> list[tuple[str, str]]:
    actions = reaping.plan(
        units=units,
        launches={one.launch_id: one for one in launches},
        instances=instances,
        leftovers=leftovers,
        living=living,
        now=NOW,
    )
    return [(action.kind, action.target) for action in actions]


OURS = Leftovers(("cloudrun-l-1",), ("sg-l-1",))
TERMINATE = [("terminate", "i-1")]
DELETE = [("delete_key_pair", "cloudrun-l-1"), ("delete_security_group", "sg-l-1")]


KEPT = unit(client_id="", on_exit="keep")
EXPIRED_KEPT = unit(client_id="", on_exit="keep", deadline=NOW)
EXPIRED_STOPPED = unit(client_id="", on_exit="stop", deadline=NOW)


@pytest.mark.parametrize(
    ("why", "rows", "found", "living", "expected"),
    [
        ("its client lives", [unit()], [instance()], {"c-1"}, []),
        ("its client is dead", [unit()], [instance()], set(), TERMINATE),
        ("another client lives", [unit()], [instance()], {"c-2"}, TERMINATE),
        ("its deadline passed, though its client lives", [unit(deadline=NOW)], [instance()], {"c-1"}, TERMINATE),
        ("kept on purpose", [KEPT], [instance()], set(), []),
        ("kept, but past its deadline", [EXPIRED_KEPT], [instance()], set(), TERMINATE),
        ("stopped on purpose, past its deadline", [EXPIRED_STOPPED], [instance(state="stopped")], set(), []),
        ("its client died before it let go", [unit(on_exit="keep")], [instance()], set(), TERMINATE),
        ("its client died before it stopped it", [unit(on_exit="stop")], [instance()], set(), TERMINATE),
        ("its client died over its stop", [unit(on_exit="stop")], [instance(state="stopped")], set(), []),
        ("only EC2 knows it, its launch's client lives", [], [instance()], {"c-1"}, []),
        ("only EC2 knows it, its launch's client is dead", [], [instance()], set(), TERMINATE),
        ("tagged as ours, by a launch nobody knows", [], [instance(launch_id="l-9")], {"c-1"}, TERMINATE),
        ("already going", [unit()], [instance(state="shutting-down")], set(), []),
        ("terminated by itself", [unit()], [instance(state="terminated")], set(), [("forget", "i-1")]),
        ("EC2 forgot it", [unit()], [], set(), [("forget", "i-1")]),
        ("too young to be missed", [unit(created_at=NOW)], [], set(), []),
    ],
)
def test_units_are_ended_exactly_when_nobody_needs_them(
    why: str, rows: list[UnitRecord], found: list[Instance], living: set[str], expected: list[tuple[str, str]]
) -> None:
    assert decide(rows, found, frozenset(living)) == expected, why


def test_keys_and_groups_go_with_the_last_unit_of_their_launch() -> None:
    assert decide([], [], leftovers=OURS) == DELETE
    assert decide([unit(client_id="", on_exit="keep")], [instance()], leftovers=OURS) == []


def test_what_a_living_client_is_about_to_use_is_left_alone() -> None:
    young = Leftovers(("cloudrun-l-new",), ("sg-new",))
    assert decide([], [], frozenset({"c-7"}), leftovers=young) == []
    assert decide([], [], leftovers=young) == [
        ("delete_key_pair", "cloudrun-l-new"),
        ("delete_security_group", "sg-new"),
    ]
    assert decide([], [], frozenset({"c-1"}), leftovers=OURS) == []


def test_a_loose_volume_is_deleted_when_no_client_could_be_about_to_use_it() -> None:
    loose = Leftovers(volume_ids=("vol-1",))
    assert decide([], [], leftovers=loose) == [("delete_volume", "vol-1")]
    assert decide([], [], frozenset({"c-1"}), leftovers=loose) == []


def test_a_refused_launch_of_a_living_client_keeps_nothing() -> None:
    refused = launch(state=LaunchState.REFUSED)
    assert decide([], [], frozenset({"c-1"}), (refused,), OURS) == DELETE


@given(
    states=st.lists(st.sampled_from(["pending", "running", "stopped", "shutting-down", "terminated"]), max_size=5),
    living=st.booleans(),
)
def test_only_instances_that_were_described_as_ours_are_ever_terminated(states: list[str], living: bool) -> None:
    found = [instance(f"i-{number}", state) for number, state in enumerate(states)]
    decided = decide([unit("i-other")], found, frozenset({"c-1"} if living else ()))
    ended = {target for kind, target in decided if kind == "terminate"}
    alive = {one.instance_id for one in found if one.state not in reaping.ENDED}
    assert ended == (set() if living else alive)
