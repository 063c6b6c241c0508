"""What is refused before anything is launched, because it cannot be or would not be what was meant."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloudrun.core.errors import UsageError
from cloudrun.core.records import Image
from cloudrun.core.settings import Settings
from cloudrun.units.launching import find_image, find_site
from cloudrun.wiring import Cloud


def find(instance_type: str, *, image_id: str | None = None, user: str | None = None) -> Image:
    return Image(image_id or "ami-1", "an image", "x86_64", "/dev/sda1", "ubuntu", 8, gpu=instance_type.startswith("g"))


CLOUD = cast("Cloud", SimpleNamespace(images=SimpleNamespace(find=find), refuses={"instance_profile": "it has no IAM"}))


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"max_price": 0.1}, "a maximum price is for spot machines"),
        ({"volume_type": "io2"}, "needs volume_iops"),
        ({"instance_profile": "trainer"}, "it has no IAM"),
        ({"fallback_types": ("g5.xlarge",)}, "one image does not suit both"),
    ],
)
def test_what_cannot_be_is_refused_with_a_next_step(wishes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        find_image(CLOUD, Settings(**wishes))
    assert caught.value.next_step


def test_an_image_that_is_named_suits_whatever_its_owner_says() -> None:
    wishes = Settings(fallback_types=("g5.xlarge",), image="ami-2")
    assert find_image(CLOUD, wishes).image_id == "ami-2"


def test_without_a_word_about_the_network_nobody_is_asked_about_it() -> None:
    site = find_site(CLOUD, Settings())
    assert (site.vpc_id, site.subnets, site.group_id, site.private) == ("", (), "", False)
