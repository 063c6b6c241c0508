"""Offers: a type anywhere, then in each zone, then the next type; again after a while."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from cloudrun.plan.offers import Offer, Offers, offers_text

TYPES = ("m7i.large", "m6i.large")
ZONES = ("us-east-1a", "us-east-1b")


def walked(offers: Offers) -> list[Offer]:
    """All that is asked for while everything is refused."""
    seen = []
    while (offer := offers.best(0.0, math.inf)) is not None:
        seen.append(offer)
        offers.refuse(offer, 0.0)
        offers.learn(offer.instance_type, ZONES)
    return seen


def test_every_zone_of_a_type_comes_before_the_next_type() -> None:
    assert walked(Offers(TYPES)) == [Offer(name, zone) for name in TYPES for zone in ("", *ZONES)]


def test_a_type_that_is_named_twice_is_asked_for_once() -> None:
    assert Offers(["a", "b", "a"]).types == ("a", "b")


def test_what_was_refused_is_asked_for_again_after_a_while() -> None:
    offers = Offers(["a"])
    offers.refuse(Offer("a"), 100.0)
    assert offers.best(109.9, 10.0) is None
    assert offers.best(110.0, 10.0) == Offer("a")


def test_a_slow_round_still_comes_to_the_last_of_what_is_allowed_and_then_to_its_pause() -> None:
    offers = Offers(TYPES)
    asked = []
    now = 0.0
    while (offer := offers.best(now, 10.0)) is not None:
        asked.append(offer)
        now += 3.0  # each refusal takes its time
        offers.refuse(offer, now)
        offers.learn(offer.instance_type, ZONES)
    assert asked == [Offer(name, zone) for name in TYPES for zone in ("", *ZONES)]
    assert offers.best(now + 9.9, 10.0) is None
    assert offers.best(now + 10.0, 10.0) == asked[0]
    offers.refuse(asked[0], now + 11.0)
    assert offers.best(now + 11.0, 10.0) == asked[1], "another round"


def test_once_ec2_had_something_what_it_refused_before_is_preferred_again() -> None:
    offers = Offers(["a", "b"])
    offers.refuse(Offer("a"), 100.0)
    offers.had(101.0)
    assert offers.best(109.0, 10.0) == Offer("b")
    assert offers.best(110.0, 10.0) == Offer("a")


def test_zones_are_said_in_few_letters() -> None:
    refused = [
        Offer("m7i.large"),
        Offer("m7i.large", "us-east-1a"),
        Offer("m7i.large", "us-east-1b"),
        Offer("m6i.large"),
    ]
    assert offers_text(refused) == "m7i.large in us-east-1a, b or m6i.large"
    assert (
        offers_text([Offer("a", "us-west-2a"), Offer("a", "us-west-2-lax-1a")]) == "a in us-west-2a, us-west-2-lax-1a"
    )


@given(st.integers(1, 500), st.integers(0, 500))
def test_where_a_call_asks_for_too_many_it_comes_down_to_what_there_is(wanted: int, there: int) -> None:
    offers, had, calls = Offers(["a"]), 0, 0
    while (offer := offers.best(0.0, math.inf)) is not None and had < wanted:
        count = min(wanted - had, offers.at_once(offer) or wanted)
        calls += 1
        if had + count <= there:
            had += count
        else:
            offers.refuse(offer, 0.0, count)
    assert had == min(wanted, there)
    assert calls <= 2 + 3 * math.log2(wanted + 1) + 1


def test_where_the_network_has_a_place_in_some_zones_only_those_are_asked() -> None:
    offers = Offers(TYPES, ["us-east-1b", "us-east-1z"])
    for name in TYPES:
        offers.learn(name, ZONES)
    assert walked(offers) == [Offer(name, "us-east-1b") for name in TYPES]


def test_where_no_zone_with_a_place_offers_the_type_there_is_nothing_to_ask_for() -> None:
    offers = Offers(["m7i.large"], ["us-east-1z"])
    offers.learn("m7i.large", ZONES)
    assert offers.best(0.0, 10.0) is None
