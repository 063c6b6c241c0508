"""What to do where EC2 has no capacity: ask for the same in the next zone, then for the next type that is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable

from cloudrun.core.clock import Clock
from cloudrun.core.errors import CapacityError, CloudrunError, QuotaError
from cloudrun.core.events import Note, Observer
from cloudrun.core.settings import Settings
from cloudrun.plan.offers import Offer, Offers
from cloudrun.units.launching import find_site
from cloudrun.wiring import Cloud


def allowed(cloud: Cloud, settings: Settings) -> Offers:
    """What may be rented, in the order of preference, and where the network has a place for it."""
    site = find_site(cloud, settings)
    offers = Offers(
        (settings.instance_type, *settings.fallback_types),
        [subnet.zone for subnet in site.subnets] if site.subnets else None,
    )
    if len(site.subnets) > 1:  # not all zones offer all types, and EC2 no longer chooses
        for instance_type in offers.types:
            learn_zones(offers, cloud, instance_type)
    return offers


def first_launch(
    offers: Offers, cloud: Cloud, ask: Callable[[Offer], None], *, clock: Clock, observe: Observer
) -> None:
    """Ask for each offer in turn until EC2 has one. Raises the last CapacityError where it has none at all, and at once
    whatever else is in the way: a quota holds for every zone."""
    now = clock.monotonic()
    while (offer := offers.best(now, math.inf)) is not None:
        try:
            return ask(offer)
        except QuotaError:
            raise
        except CapacityError as error:
            offers.refuse(offer, now)
            learn_zones(offers, cloud, offer.instance_type)
            following = offers.best(now, math.inf)
            if following is None:
                raise none_left(offers, cloud, error) from error
            observe(Note(f"EC2 has no {offer} now ({error}); trying {following}", "warning"))
    raise AssertionError("the last offer that is refused raises")


def learn_zones(offers: Offers, cloud: Cloud, instance_type: str) -> None:
    """Where else the type may be had, once it is worth a call."""
    if not offers.knows_zones(instance_type):
        try:
            offers.learn(instance_type, cloud.instances.zones(instance_type))
        except CloudrunError:  # a permission that is missing, say: then EC2 alone chooses the zone
            offers.learn(instance_type, ())


def none_left(offers: Offers, cloud: Cloud, last: CapacityError) -> CapacityError:
    return CapacityError(
        f"no zone of {cloud.place.region} has {' or '.join(offers.types)} now: {last}",
        next_step="allow more with --fallback-types m6i.large,m5.large, try another --region, or wait some minutes",
    )
