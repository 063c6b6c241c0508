"""The snapshot of list prices."""

from __future__ import annotations

from datetime import date

import pytest

from cloudrun.core.settings import Settings
from cloudrun.plan import pricing


def test_a_price_says_of_when_it_is() -> None:
    price = pricing.usd_per_hour("m7i.large", "us-east-1")
    assert price == pricing.Price("m7i.large", "us-east-1", 0.1008, date(2026, 1, 19))


@pytest.mark.parametrize(("instance_type", "region"), [("m7i.huge", "us-east-1"), ("m7i.large", "mars-north-1")])
def test_what_the_snapshot_does_not_say_has_no_price(instance_type: str, region: str) -> None:
    assert pricing.usd_per_hour(instance_type, region) is None


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1", "eu-central-1"])
def test_the_default_type_has_a_price_and_twice_the_vcpus_cost_twice_as_much(region: str) -> None:
    assert pricing.usd_per_hour(Settings().instance_type, region) is not None
    snapshot = pricing._snapshot()
    for name, usd in snapshot["usd_per_hour"][region].items():
        smallest = snapshot["usd_per_hour"][region].get(f"{name.split('.')[0]}.large")
        vcpus = pricing.vcpus(name)
        assert vcpus is not None
        if smallest is not None:
            assert usd == pytest.approx(smallest * vcpus / 2, rel=2e-3), name


def test_vcpus_are_those_of_the_type() -> None:
    assert [pricing.vcpus(name) for name in ("t3.large", "c7g.4xlarge", "g5.xlarge", "m7i.huge")] == [2, 16, 4, None]


@pytest.mark.parametrize(
    ("instance_type", "expected"),
    [
        ("m7i.large", "x86_64"), ("m7g.large", "arm64"), ("t4g.small", "arm64"), ("c7gn.xlarge", "arm64"),
        ("a1.medium", "arm64"), ("g4dn.xlarge", "x86_64"), ("g5g.xlarge", "arm64"), ("m7i-flex.large", "x86_64"),
        ("x2iedn.xlarge", "x86_64"), ("u-6tb1.metal", "x86_64"), ("gr6.4xlarge", "x86_64"),
    ],
)  # fmt: skip
def test_a_type_s_name_tells_its_architecture(instance_type: str, expected: str) -> None:
    assert pricing.architecture(instance_type) == expected
