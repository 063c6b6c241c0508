"""Which image a unit boots from."""

from __future__ import annotations

import pytest

from cloudrun.aws.images import Images
from cloudrun.aws.session import Aws
from cloudrun.core.errors import UsageError

from .conftest import Endpoint

GPU_PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
PARAMETER = "/aws/service/canonical/ubuntu/server/24.04/stable/current/{}/hvm/ebs-gp3/ami-id"


def test_canonicals_parameter_names_the_image(aws: Aws, endpoint: Endpoint) -> None:
    endpoint.parameters[PARAMETER.format("amd64")] = "ami-00000000000000001"
    image = Images(aws).find("m7i.large")
    assert image.image_id == "ami-00000000000000001"
    assert (image.architecture, image.root_device, image.user) == ("x86_64", "/dev/sda1", "ubuntu")
    assert image.root_gib >= 8


def test_the_architecture_is_the_instance_types(aws: Aws, endpoint: Endpoint) -> None:
    endpoint.parameters[PARAMETER.format("arm64")] = "ami-00000000000000003"
    assert Images(aws).find("m7g.large").architecture == "arm64"


def test_without_the_parameter_canonicals_newest_image_is_taken(aws: Aws) -> None:
    assert Images(aws).find("m7i.large").image_id == "ami-00000000000000002"
    assert Images(aws).find("m7g.large").image_id == "ami-00000000000000003"


def test_an_image_of_ones_own_is_found_by_id(aws: Aws) -> None:
    image = Images(aws).find("m7i.large", image_id="ami-00000000000000007", user="trainer")
    assert (image.image_id, image.name, image.user) == ("ami-00000000000000007", "our-base-17", "trainer")


@pytest.mark.parametrize(
    ("image_id", "user"),
    [
        ("ami-00000000000000006", "ec2-user"),  # by its name
        ("ami-00000000000000009", "admin"),  # by its owner, who is Debian
        ("ami-0000000000000000a", "rocky"),  # by its description
    ],
)
def test_the_login_user_is_the_one_that_the_images_maker_documents(aws: Aws, image_id: str, user: str) -> None:
    assert Images(aws).find("m7i.large", image_id=image_id).user == user


def test_a_type_with_a_gpu_boots_an_image_that_has_its_drivers(aws: Aws, endpoint: Endpoint) -> None:
    endpoint.parameters[GPU_PARAMETER] = "ami-00000000000000008"
    image = Images(aws).find("g5.xlarge")
    assert (image.image_id, image.user, image.gpu) == ("ami-00000000000000008", "ubuntu", True)
    assert not Images(aws).find("m7i.large", image_id="ami-00000000000000002").gpu


def test_where_no_image_with_drivers_is_known_it_says_how_to_find_one(aws: Aws) -> None:
    with pytest.raises(UsageError, match=r"g5\.xlarge computes on an accelerator of NVIDIA") as caught:
        Images(aws).find("g5.xlarge")
    assert "--image" in caught.value.next_step
    assert "--owners amazon" in caught.value.next_step
    assert Images(aws).find("g5.xlarge", image_id="ami-00000000000000002").gpu, "whoever names one knows"


@pytest.mark.parametrize(
    ("instance_type", "image_id", "words"),
    [
        ("m7i.larg", None, "did you mean m7i.large"),
        ("", None, "no instance type ''"),
        ("nothing.like.it", None, "no instance type 'nothing.like.it'"),
        ("m7i.large", "ami-0ffffffffffffffff", "no image 'ami-0ffffffffffffffff'"),
        ("m7i.large", "ubuntu", "no image 'ubuntu'"),
        ("m7i.large", "ami-00000000000000003", "is for arm64, m7i.large boots x86_64"),
        ("m7i.large", "ami-00000000000000005", "for windows"),
        ("m7i.large", "ami-00000000000000007", "who may log in"),
        ("mac2.metal", None, "neither x86-64 nor arm64"),
    ],
)
def test_what_cannot_boot_is_refused_with_a_next_step(
    aws: Aws, instance_type: str, image_id: str | None, words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Images(aws).find(instance_type, image_id=image_id)
    assert words in str(caught.value)
    assert caught.value.next_step
