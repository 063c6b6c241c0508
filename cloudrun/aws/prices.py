"""What AWS says that a machine costs now: the price list's on-demand prices, and the spot market's latest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from cloudrun.aws.errors import translated
from cloudrun.aws.session import Aws
from cloudrun.core.errors import CloudrunError

# Where the price list is served ("AWS Price List Query API", AWS Billing user guide): it is one list for all regions.
LIST_REGION = "us-east-1"
_LINUX = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",  # not what a reservation pays for while nothing runs in it
}
_SPOT_LINUX = "Linux/UNIX"


class Prices:
    def __init__(self, aws: Aws) -> None:
        self._aws = aws

    def on_demand(self, instance_types: Iterable[str]) -> dict[str, float]:
        """USD an hour, on demand, Linux, shared tenancy, in this region. A type without such a price is absent.

        One call each. Raises CredentialsError where `pricing:GetProducts` is not allowed, CloudrunError.
        """
        client = self._aws.client("pricing", LIST_REGION)
        found = {}
        for instance_type in dict.fromkeys(instance_types):
            wanted = {"instanceType": instance_type, "regionCode": self._aws.region, **_LINUX}
            with translated(f"ask for the price of {instance_type}"):
                answer = client.get_products(
                    ServiceCode="AmazonEC2",
                    Filters=[{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()],
                )
                usd = _cheapest(answer.get("PriceList", []))
            if usd is not None:
                found[instance_type] = usd
        return found

    def spot(self, instance_type: str) -> dict[str, float]:
        """USD an hour on the spot market now, by zone; empty where the type is not to be had there.

        Raises CredentialsError where `ec2:DescribeSpotPriceHistory` is not allowed, CloudrunError.
        """
        now = datetime.now(UTC)
        latest: dict[str, tuple[datetime, float]] = {}
        with translated(f"ask for the spot price of {instance_type}"):
            pages = (
                self._aws.client("ec2")
                .get_paginator("describe_spot_price_history")
                .paginate(
                    InstanceTypes=[instance_type],  # type: ignore[list-item]
                    ProductDescriptions=[_SPOT_LINUX],
                    StartTime=now
                    - timedelta(minutes=1),  # the price that holds then is in the answer, however old it is
                    EndTime=now,
                )
            )
            for page in pages:
                for each in page["SpotPriceHistory"]:
                    when = each["Timestamp"]
                    if each["AvailabilityZone"] not in latest or latest[each["AvailabilityZone"]][0] < when:
                        latest[each["AvailabilityZone"]] = (when, float(each["SpotPrice"]))
        return {zone: usd for zone, (_, usd) in sorted(latest.items())}


def _cheapest(products: Iterable[str | dict[str, Any]]) -> float | None:
    """The lowest hourly price among the products, each a JSON text; None where there is none above zero.

    More than one answer means that AWS tells apart what the filters do not; zero is what a reservation's entry says.
    Raises CloudrunError where the list is in a form that nobody knows.
    """
    found: list[float] = []
    try:
        for each in products:
            product = json.loads(each) if isinstance(each, str) else each
            for offer in product["terms"].get("OnDemand", {}).values():
                for dimension in offer["priceDimensions"].values():
                    usd = float(dimension["pricePerUnit"].get("USD", 0))
                    if usd > 0 and dimension.get("unit") == "Hrs":
                        found.append(usd)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise CloudrunError(f"AWS's price list is in an unknown form: {error!r}") from error
    return min(found, default=None)
