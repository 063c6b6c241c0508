"""Units that need an environment at the same moment: one builds it, and what happens to one is heard by the others."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import (
    Cancelled,
    CloudrunError,
    ConnectionLost,
    LaunchError,
    ProvisionError,
    TransferError,
    UnitGone,
)
from cloudrun.core.events import Event, Note, PhaseStarted
from cloudrun.core.records import CopySource, Instance, SealedEnvironment
from cloudrun.plan.spreading import BUILDS_FAILED, COPIES_FAILED
from cloudrun.pools.spreading import Spreading
from cloudrun.units.phases import Phases
from tests.waiting import until

PATIENCE_S = 120.0


@dataclass
class World:
    """What the units share. A failure is popped by whoever comes first."""

    done: list[tuple[str, str]] = field(default_factory=list)  # ("build", unit) or (source, unit)
    admitted: list[tuple[str, str]] = field(default_factory=list)
    copy_failures: list[CloudrunError] = field(default_factory=list)
    described: Callable[[list[str]], dict[str, Instance]] | None = None
    seal_failure: CloudrunError | None = None
    open_doors: Counter[str] = field(default_factory=Counter)

    def spreading(self) -> Spreading:
        instances = SimpleNamespace(describe=self.described or self._describe)
        network = SimpleNamespace(
            admit=lambda group, cidr: self.admitted.append((group, cidr)),
            admit_each_other=lambda group: self.admitted.append((group, group)),
        )
        launch = lambda launch_id: SimpleNamespace(  # noqa: E731
            request=SimpleNamespace(
                image_id=launch_id.split("/")[1], security_group_id=launch_id.split("/")[0], group_is_given=False
            )
        )
        cloud = SimpleNamespace(instances=instances, network=network)
        return Spreading(cast("Any", cloud), cast("Any", SimpleNamespace(launch=launch)))

    def _describe(self, ids: list[str]) -> dict[str, Instance]:
        return {
            each: Instance(each, "running", "m7i.large", None, "192.0.2.1", private_address=f"10.0.0.{each[2:]}")
            for each in ids
        }


class Unit:
    """One of `group`, with an agent that notes what it is asked."""

    def __init__(self, world: World, number: int, group: str = "sg", image: str = "ami") -> None:
        self.world = world
        self.instance_id = f"i-{number}"
        self.record = SimpleNamespace(
            launch_id=f"{group}/{image}", user="ubuntu", host_key=f"key of {self.instance_id}"
        )
        self.stop = threading.Event()
        self.events: list[Event] = []
        self.phases = Phases(self.events.append)
        self.agent = self
        self.gone = False

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def is_gone(self) -> bool:
        return self.gone

    def texts(self) -> list[str]:
        return [each.detail for each in self.events if isinstance(each, PhaseStarted)]

    def warnings(self) -> list[str]:
        return [each.text for each in self.events if isinstance(each, Note) and each.level == "warning"]

    # -- as its agent

    def seal(self, fingerprint: str) -> SealedEnvironment:
        if self.world.seal_failure is not None:
            raise self.world.seal_failure
        return SealedEnvironment(fingerprint, f"built on {self.instance_id}", 1, 1)

    @contextmanager
    def sharing(self, _fingerprint: str, public_key: str) -> Iterator[None]:
        assert public_key.count(" ") == 1
        self.world.open_doors[self.instance_id] += 1
        try:
            yield
        finally:
            self.world.open_doors[self.instance_id] -= 1

    def fetch_environment(self, sealed: SealedEnvironment, source: CopySource, *, cancelled: threading.Event) -> None:
        assert cancelled is self.stop
        name = source.host_key.removeprefix("key of ")
        assert source.address == f"10.0.0.{name[2:]}"
        assert self.world.open_doors[name]
        assert sealed.digest.startswith("built on ")
        if self.world.copy_failures:
            raise self.world.copy_failures.pop()
        self.world.done.append((name, self.instance_id))


def provide(spreading: Spreading, unit: Unit, build: Callable[[], None] | None = None) -> None:
    def builds() -> None:
        if build is not None:
            build()
        unit.world.done.append(("build", unit.instance_id))

    spreading.provide(cast("Any", unit), "fingerprint", unit.phases, builds)


class Waiting:
    """A unit in a thread of its own; `end` says what came of it."""

    def __init__(self, spreading: Spreading, unit: Unit, build: Callable[[], None] | None = None) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(spreading, unit, build), daemon=True)
        self._thread.start()

    def _run(self, *arguments: Any) -> None:
        try:
            provide(*arguments)
        except BaseException as error:  # noqa: BLE001
            self.error = error

    def end(self) -> BaseException | None:
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        return self.error


def begun(spreading: Spreading, unit: Unit, error: BaseException | None = None) -> tuple[Waiting, threading.Event]:
    """A builder that is in the middle of it until the event is set, and then fails where there is an error."""
    inside, go_on = threading.Event(), threading.Event()

    def build() -> None:
        inside.set()
        assert go_on.wait(PATIENCE_S)
        if error is not None:
            raise error

    waiting = Waiting(spreading, unit, build)
    assert inside.wait(PATIENCE_S)
    return waiting, go_on


def waits(unit: Unit) -> Callable[[], bool]:
    return lambda: any(text.startswith("waits for") for text in unit.texts())


def test_one_builds_and_the_others_get_theirs_from_units() -> None:
    world = World()
    spreading = world.spreading()
    units = [Unit(world, number) for number in range(1, 17)]
    builder, go_on = begun(spreading, units[0])
    others = [Waiting(spreading, unit) for unit in units[1:]]
    until(lambda: all(waits(unit)() for unit in units[1:]))
    go_on.set()
    assert [each.end() for each in (builder, *others)] == [None] * 16
    assert [unit for source, unit in world.done if source == "build"] == ["i-1"]
    assert {unit for _, unit in world.done} == {unit.instance_id for unit in units}
    assert world.admitted == [("sg", "sg")], "one rule for all machines of a group"
    assert not any(world.open_doors.values())
    assert units[1].texts()[0] == "waits for the environment that i-1 has"
    assert units[1].texts()[1].startswith("environment from i-")


def test_a_unit_of_another_group_is_let_in_by_its_address_alone() -> None:
    world = World()
    spreading = world.spreading()
    provide(spreading, Unit(world, 1, "one"))
    provide(spreading, Unit(world, 2, "other"))
    assert world.admitted == [("one", "10.0.0.2/32")]
    assert world.done[-1] == ("i-1", "i-2")


def test_a_unit_with_another_image_builds_its_own() -> None:
    world = World()
    spreading = world.spreading()
    provide(spreading, Unit(world, 1, image="ami-a"))
    provide(spreading, Unit(world, 2, image="ami-b"))
    assert [source for source, _ in world.done] == ["build", "build"]


@pytest.mark.parametrize("error", [UnitGone("it went"), ConnectionLost("no answer"), LaunchError("?"), OSError("?")])
def test_a_builder_whose_machine_dies_is_followed_by_another(error: Exception) -> None:
    world = World()
    spreading = world.spreading()
    builder, go_on = begun(spreading, Unit(world, 1), error)
    other = Unit(world, 2)
    waiting = Waiting(spreading, other)
    until(waits(other))
    go_on.set()
    assert builder.end() is error
    assert waiting.end() is None
    assert world.done == [("build", "i-2")]


def test_a_builder_that_is_gone_is_not_waited_for_until_ansible_has_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloudrun.pools.spreading.LOOK_S", 0.0)
    world = World()
    spreading = world.spreading()
    dead = Unit(world, 1)
    builder, go_on = begun(spreading, dead, UnitGone("it went"))
    other = Unit(world, 2)
    waiting = Waiting(spreading, other)
    until(waits(other))
    dead.gone = True
    assert waiting.end() is None
    assert world.done == [("build", "i-2")]
    go_on.set()
    assert isinstance(builder.end(), UnitGone)
    provide(spreading, Unit(world, 3))
    assert world.done[-1] == ("i-2", "i-3")


def test_machines_that_die_while_ansible_is_at_work_are_not_the_requirements_fault() -> None:
    world = World()
    spreading = world.spreading()
    for number in range(BUILDS_FAILED + 2):
        unit = Unit(world, number)
        unit.gone = True

        def build() -> None:
            raise ProvisionError("unreachable", task="Build the environment")

        with pytest.raises(ProvisionError):
            provide(spreading, unit, build)
    provide(spreading, Unit(world, 99))
    assert world.done == [("build", "i-99")]


def test_requirements_that_cannot_be_met_are_tried_twice_and_not_by_everybody() -> None:
    world = World()
    spreading = world.spreading()
    tried = []

    def build() -> None:
        tried.append(1)
        raise ProvisionError("no such package", task="Build the environment", next_step="less log")

    waiting = [Waiting(spreading, Unit(world, number), build) for number in range(16)]
    for each in waiting:
        error = each.end()
        assert isinstance(error, ProvisionError)
        assert (str(error), error.task, error.next_step) == ("no such package", "Build the environment", "less log")
    assert len(tried) == BUILDS_FAILED


def test_a_copy_that_fails_is_built_instead() -> None:
    world = World(copy_failures=[TransferError("it broke off")])
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    unit = Unit(world, 2)
    provide(spreading, unit)
    assert world.done[-1] == ("build", "i-2")
    assert unit.warnings() == ["i-2 did not get the environment of i-1, and builds its own: it broke off"]
    provide(spreading, Unit(world, 3))
    assert world.done[-1] == ("i-2", "i-3"), "the one that has failed nobody is preferred"


def test_where_nobody_gets_a_copy_nobody_waits_for_one_any_more() -> None:
    world = World(copy_failures=[TransferError("no way")] * 99)
    spreading = world.spreading()
    for number in range(1, COPIES_FAILED + 2):
        provide(spreading, Unit(world, number))
    late = Unit(world, 50)
    provide(spreading, late)
    assert world.done[-1] == ("build", "i-50")
    assert late.texts() == []


def test_instances_that_ec2_does_not_describe_build_their_own() -> None:
    world = World(described=lambda _: {})
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    provide(spreading, Unit(world, 2))
    assert [source for source, _ in world.done] == ["build", "build"]


def test_what_cannot_be_sealed_is_built_by_all_at_once() -> None:
    world = World(seal_failure=TransferError("a pipe in it"))
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    first, go_on = begun(spreading, Unit(world, 2))
    provide(spreading, Unit(world, 3))
    go_on.set()
    assert first.end() is None
    assert sorted(world.done) == [("build", "i-1"), ("build", "i-2"), ("build", "i-3")]


def test_a_builder_that_is_lost_before_it_could_be_sealed_does_not_end_copying() -> None:
    world = World(seal_failure=ConnectionLost("gone"))
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    world.seal_failure = None
    provide(spreading, Unit(world, 2))
    provide(spreading, Unit(world, 3))
    assert world.done == [("build", "i-1"), ("build", "i-2"), ("i-2", "i-3")]


def test_a_unit_that_ends_gives_nothing_away_any_more() -> None:
    world = World()
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    spreading.leaves("i-1")
    provide(spreading, Unit(world, 2))
    assert world.done == [("build", "i-1"), ("build", "i-2")]


def test_a_unit_lends_while_another_one_copies_from_it() -> None:
    world = World()
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    other = Unit(world, 2)
    seen: list[bool] = []
    fetch = other.fetch_environment

    def look(*words: Any, **keywords: Any) -> None:
        seen.extend(spreading.lends(name) for name in ("i-1", "i-2"))
        fetch(*words, **keywords)

    other.fetch_environment = look  # type: ignore[method-assign]
    provide(spreading, other)
    assert seen == [True, False]
    assert not spreading.lends("i-1")


def test_who_waits_can_be_told_to_stop() -> None:
    world = World()
    spreading = world.spreading()
    builder, go_on = begun(spreading, Unit(world, 1))
    unit = Unit(world, 2)
    waiting = Waiting(spreading, unit)
    until(waits(unit))
    unit.stop.set()
    assert isinstance(waiting.end(), Cancelled)
    go_on.set()
    assert builder.end() is None


def test_a_copy_that_is_cancelled_is_not_built_instead() -> None:
    world = World(copy_failures=[])
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    world.copy_failures.append(cast("Any", Cancelled("the user says so")))
    with pytest.raises(Cancelled):
        provide(spreading, Unit(world, 2))
    assert world.done == [("build", "i-1")]
    with suppress(CloudrunError):
        provide(spreading, Unit(world, 3))
    assert world.done[-1] == ("i-1", "i-3")


def test_nobody_is_told_of_a_copy_that_failed_where_nobody_needs_it_any_more() -> None:
    """The machine it was to come from has gone with the grid, before this one heard that it may go, too."""
    world = World(copy_failures=[TransferError("i-1 does not answer")])
    spreading = world.spreading()
    provide(spreading, Unit(world, 1))
    unneeded = Unit(world, 2)
    unneeded.stop.set()
    with pytest.raises(Cancelled):
        provide(spreading, unneeded)
    assert (world.done, unneeded.warnings()) == ([("build", "i-1")], [])
