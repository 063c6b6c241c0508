"""Prices as AWS says them, how long what it said holds, and what is said where it does not."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from cloudrun import prices
from cloudrun.aws.prices import Prices
from cloudrun.aws.session import Aws
from cloudrun.core.errors import CloudrunError
from cloudrun.core.records import Place
from cloudrun.plan import pricing
from cloudrun.wiring import Cloud
from tests.contract.test_aws.conftest import Endpoint

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def product(usd: str, unit: str = "Hrs") -> str:
    """One entry of the price list, as "Reading the service price list file" (AWS Billing user guide) has it."""
    dimension = {"unit": unit, "pricePerUnit": {"USD": usd}, "description": f"${usd} per On Demand Linux"}
    offer = {"priceDimensions": {"A.B.C": dimension}, "effectiveDate": "2026-11-01T00:00:00Z"}
    return json.dumps({"product": {"attributes": {}}, "terms": {"OnDemand": {"A.B": offer}}})


@pytest.fixture
def cloud(aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setenv("CLOUDRUN_CACHE_DIR", str(tmp_path / "cache"))
    unused: object = None
    return Cloud(
        Place("aws", "us-east-1", "1"),
        *[unused] * 3,  # type: ignore[arg-type]  # prices need no other adapter
        caller_cidr=str,
        storage=lambda: unused,  # type: ignore[arg-type, return-value]
        credentials_expire_at=lambda: None,
        prices=lambda: Prices(aws),
    )


def asked(endpoint: Endpoint) -> int:
    return endpoint.actions().count("GetProducts")


def test_the_snapshot_holds_until_aws_is_asked_and_then_its_word_does_for_a_week(
    cloud: Cloud, endpoint: Endpoint
) -> None:
    endpoint.documents["GetProducts"] = {"PriceList": [product("0.1111000000"), product("0.0000000000")]}
    listed = pricing.usd_per_hour("m7i.large", "us-east-1")
    assert prices.usd_per_hour("m7i.large", "us-east-1") == listed
    assert prices.refresh(cloud, ["m7i.large"], NOW) == ""
    assert prices.usd_per_hour("m7i.large", "us-east-1") == pricing.Price(
        "m7i.large", "us-east-1", 0.1111, date(2026, 11, 22)
    )
    assert prices.refresh(cloud, ["m7i.large"], NOW + timedelta(days=6)) == ""
    assert asked(endpoint) == 1, "what is fresh is not asked for"
    prices.refresh(cloud, ["m7i.large", "m7i.24xlarge"], NOW + timedelta(days=6))
    assert asked(endpoint) == 2, "a type that nobody asked about is"
    prices.refresh(cloud, ["m7i.large"], NOW + timedelta(days=8))
    assert asked(endpoint) == 3


def test_a_refusal_is_remembered_for_a_day_and_the_snapshot_holds(cloud: Cloud, endpoint: Endpoint) -> None:
    endpoint.denied.add("GetProducts")
    assert "AccessDenied" in prices.refresh(cloud, ["m7i.large"], NOW)
    assert "AccessDenied" in prices.refresh(cloud, ["m7i.large"], NOW + timedelta(hours=23))
    assert asked(endpoint) == 1
    assert "AccessDenied" in prices.problem("us-east-1")
    assert prices.usd_per_hour("m7i.large", "us-east-1") == pricing.usd_per_hour("m7i.large", "us-east-1")
    endpoint.denied.clear()
    endpoint.documents["GetProducts"] = {"PriceList": [product("0.2")]}
    assert prices.refresh(cloud, ["m7i.large"], NOW + timedelta(hours=25)) == ""
    assert prices.problem("us-east-1") == ""


def test_a_type_without_a_price_has_none_and_is_not_asked_for_again(cloud: Cloud, endpoint: Endpoint) -> None:
    endpoint.documents["GetProducts"] = {"PriceList": []}
    prices.refresh(cloud, ["q9.huge"], NOW)
    prices.refresh(cloud, ["q9.huge"], NOW + timedelta(days=1))
    assert asked(endpoint) == 1
    assert prices.usd_per_hour("q9.huge", "us-east-1") is None


def test_a_price_older_than_the_snapshot_s_does_not_take_its_place(cloud: Cloud, endpoint: Endpoint) -> None:
    endpoint.documents["GetProducts"] = {"PriceList": [product("9.99")]}
    prices.refresh(cloud, ["m7i.large"], datetime(2020, 1, 1, tzinfo=UTC))
    assert prices.usd_per_hour("m7i.large", "us-east-1") == pricing.usd_per_hour("m7i.large", "us-east-1")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"form": 2}', '{"form": 1, "usd_per_hour": {"m7i.large": "x"}}'])
def test_a_spoilt_cache_is_as_good_as_none(cloud: Cloud, text: str) -> None:
    path = prices._path("us-east-1")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert prices.usd_per_hour("m7i.large", "us-east-1") == pricing.usd_per_hour("m7i.large", "us-east-1")


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(
    cloud: Cloud, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CLOUDRUN_CACHE_DIR", str(tmp_path / "file"))
    endpoint.documents["GetProducts"] = {"PriceList": [product("0.2")]}
    assert prices.refresh(cloud, ["m7i.large"], NOW) == ""


@pytest.mark.parametrize("answer", [["{"], [1], ["[]"], ['{"terms": {"OnDemand": {"a": 3}}}']])
def test_a_list_in_an_unknown_form_is_an_error_and_no_price(aws: Aws, endpoint: Endpoint, answer: list[object]) -> None:
    endpoint.documents["GetProducts"] = {"PriceList": answer}
    with pytest.raises(CloudrunError):
        Prices(aws).on_demand(["m7i.large"])


def test_a_price_by_the_second_or_for_nothing_is_none(aws: Aws, endpoint: Endpoint) -> None:
    endpoint.documents["GetProducts"] = {"PriceList": [product("0.0"), product("3", unit="Quantity")]}
    assert Prices(aws).on_demand(["m7i.large"]) == {}


def test_the_spot_market_s_price_is_told_by_zone(aws: Aws) -> None:
    by_zone = Prices(aws).spot("m7i.large")
    assert set(by_zone) <= {f"us-east-1{letter}" for letter in "abcdef"}
    assert all(usd > 0 for usd in by_zone.values())
