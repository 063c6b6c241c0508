"""Launches that EC2 refuses: what they leave behind, and when they are asked for again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloudrun.core.errors import CapacityError, CloudrunError
from cloudrun.core.events import nobody
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
from cloudrun.ledger import Ledger
from cloudrun.plan.offers import Offer
from cloudrun.plan.scheduling import Terms
from cloudrun.pools.context import Context
from cloudrun.pools.renting import AGAIN_MAX_S, AGAIN_S, Launched, Renting
from tests.fakes import Ec2, ManualClock, Network, cloud_of

IMAGE = Image("ami-1", "/dev/sda1", "x86_64", "/dev/sda1", "ubuntu", 8)
OFFER = Offer(Settings().instance_type)


class Making(Network):
    def import_key_pair(self, name: str, public: str, tags: Mapping[str, str]) -> None:
        self.keys.append(name)

    def create_security_group(self, name: str, cidr: str, tags: Mapping[str, str]) -> str:
        self.groups.append(f"sg-{name}")
        return f"sg-{name}"


class Asked:
    """A `Renting` whose EC2 has nothing."""

    def __init__(self, ledger: Ledger, clock: ManualClock) -> None:
        self.clock = clock
        self.network = Making()
        self.heard: list[Launched] = []
        ec2: Any = Ec2(run_error=lambda _: CapacityError("none"))
        ec2.zones = lambda _: ()
        cloud: Any = cloud_of(ec2, self.network)
        cloud.caller_cidr = lambda: "192.0.2.1/32"
        context = Context(cloud, ledger, Settings(), IMAGE, lambda _: Terms(1, 1.0), nobody, clock, "c-1")
        self.renting = Renting(context, tags={}, tell=self.heard.append)

    def ask(self) -> None:
        self.renting.ask(OFFER, 1, self.clock.now().timestamp() + 3600)
        self.renting.join()


def test_a_refused_launch_leaves_no_key_and_no_group(ledger: Ledger, clock: ManualClock) -> None:
    asked = Asked(ledger, clock)
    asked.ask()
    assert [type(event.error) for event in asked.heard] == [CapacityError]
    assert (asked.network.keys, asked.network.groups) == ([], [])
    assert asked.renting.launch_ids == []


def test_what_cannot_be_deleted_at_once_is_left_to_the_end(ledger: Ledger, clock: ManualClock) -> None:
    asked = Asked(ledger, clock)
    asked.network.key_error = CloudrunError("throttled")
    asked.ask()
    assert asked.renting.launch_ids == [asked.heard[0].launch_id]


def test_while_ec2_has_nothing_it_is_asked_less_and_less_often(ledger: Ledger, clock: ManualClock) -> None:
    renting = Asked(ledger, clock).renting
    pauses = []
    for number in range(6):
        renting._unknown[f"l-{number}"] = []
        renting.heard(Launched(f"l-{number}", OFFER, 1, error=CapacityError("none")))
        began = clock.monotonic()
        while renting.offer() is None:
            clock.sleep(1.0)
        pauses.append(clock.monotonic() - began)
    assert pauses == [AGAIN_S, 2 * AGAIN_S, 4 * AGAIN_S, *[AGAIN_MAX_S] * 3]

    renting._unknown["l-had"] = []
    renting.heard(Launched("l-had", OFFER, 1))
    renting._unknown["l-not"] = []
    renting.heard(Launched("l-not", OFFER, 1, error=CapacityError("none")))
    clock.sleep(AGAIN_S)
    assert renting.offer() == OFFER
