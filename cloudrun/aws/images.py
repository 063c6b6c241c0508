"""Which image a unit boots from: one that the user names, or Canonical's current Ubuntu LTS for the machine's type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from botocore.exceptions import ClientError

from cloudrun.aws.errors import code_of, translated
from cloudrun.aws.session import Aws
from cloudrun.core.errors import LaunchError, UsageError
from cloudrun.core.records import Image

if TYPE_CHECKING:
    from mypy_boto3_ec2.type_defs import ImageTypeDef

UBUNTU = "24.04"
CODENAME = "noble"
CANONICAL = "099720109477"  # https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/
_DEBIAN_NAMES: Mapping[str, str] = {"x86_64": "amd64", "arm64": "arm64"}  # as Canonical calls architectures

# who may log in, by a word in an image's name: the users that the makers of these images document
_USERS: Mapping[str, str] = {
    "ubuntu": "ubuntu",
    "debian": "admin",
    "al2023": "ec2-user",
    "amzn": "ec2-user",
    "amazon": "ec2-user",
    "rhel": "ec2-user",
    "suse": "ec2-user",
    "fedora": "fedora",
    "rocky": "rocky",
    "almalinux": "ec2-user",
    "centos": "ec2-user",
}
USER_TAG = "cloudrun:user"


class Images:
    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._ec2 = aws.client("ec2")

    def find(self, instance_type: str, *, image_id: str | None = None, user: str | None = None) -> Image:
        """The image for a unit of this type. Raises UsageError for an unknown type or image, or for two at odds."""
        architectures = self._architectures(instance_type)
        if image_id is not None:
            return self._named(image_id, user, instance_type, architectures)
        architecture = architectures[0]
        image = self._canonical_by_parameter(architecture) or self._canonical_by_name(architecture)
        return _image(image, user or "ubuntu")

    def _architectures(self, instance_type: str) -> list[str]:
        """What a type can boot of what cloudrun supports."""
        try:
            with translated(f"look up the instance type {instance_type}"):
                answer = self._ec2.describe_instance_types(InstanceTypes=[instance_type])  # type: ignore[list-item]
        except UsageError as error:
            raise UsageError(
                f"{self._aws.region} has no instance type {instance_type!r}{self._near(instance_type)}",
                next_step="name another with --instance-type, for example m7i.large",
            ) from error
        found = {name for each in answer["InstanceTypes"] for name in each["ProcessorInfo"]["SupportedArchitectures"]}
        supported: list[str] = [name for name in _DEBIAN_NAMES if name in found]
        if not supported:
            raise UsageError(
                f"{instance_type} is neither x86-64 nor arm64 ({', '.join(sorted(found)) or 'unknown'})",
                next_step="name another with --instance-type, for example m7i.large",
            )
        return supported

    def _near(self, instance_type: str) -> str:
        """ "; did you mean ...?" from what the region offers."""
        with translated("list instance types"):
            pages = self._ec2.get_paginator("describe_instance_type_offerings").paginate(LocationType="region")
            offered = {str(each["InstanceType"]) for page in pages for each in page["InstanceTypeOfferings"]}
        near = difflib.get_close_matches(instance_type, sorted(offered), n=3)
        return f"; did you mean {' or '.join(near)}?" if near else ""

    def _named(self, image_id: str, user: str | None, instance_type: str, architectures: list[str]) -> Image:
        image = self._describe(image_id)
        if image is None:
            raise UsageError(
                f"{self._aws.region} has no image {image_id!r} that this account may use",
                next_step="check --image and --region (image ids differ by region), or leave --image out",
            )
        architecture = str(image.get("Architecture", ""))
        if architecture not in architectures:
            raise UsageError(
                f"the image {image_id} is for {architecture}, {instance_type} boots {' or '.join(architectures)}",
                next_step="name a matching --instance-type, or leave --image out",
            )
        if image.get("Platform") or image.get("State", "available") != "available":
            what = f"for {image['Platform']}" if image.get("Platform") else str(image["State"])
            raise UsageError(f"the image {image_id} is {what}", next_step="name an available Linux image with --image")
        login = user or _login_user(image)
        if login is None:
            raise UsageError(
                f"nobody knows who may log in to the image {image_id} ({image.get('Name', 'without a name')})",
                next_step="set `user` in cloudrun.toml to the image's login user",
            )
        return _image(image, login)

    def _canonical_by_parameter(self, architecture: str) -> ImageTypeDef | None:
        name = (
            f"/aws/service/canonical/ubuntu/server/{UBUNTU}/stable/current/"
            f"{_DEBIAN_NAMES[architecture]}/hvm/ebs-gp3/ami-id"
        )
        with translated("look up Canonical's current Ubuntu image"):
            try:
                image_id = self._aws.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
            except ClientError as error:
                # not every region has the parameter and not every account may read it: the images themselves know too
                if code_of(error) in ("ParameterNotFound", "AccessDeniedException", "AccessDenied"):
                    return None
                raise
        return self._describe(image_id)

    def _canonical_by_name(self, architecture: str) -> ImageTypeDef:
        name = f"ubuntu/images/hvm-ssd-gp3/ubuntu-{CODENAME}-{UBUNTU}-{_DEBIAN_NAMES[architecture]}-server-*"
        with translated("list Canonical's Ubuntu images"):
            pages = self._ec2.get_paginator("describe_images").paginate(
                Owners=[CANONICAL],
                Filters=[
                    {"Name": "name", "Values": [name]},
                    {"Name": "architecture", "Values": [architecture]},
                    {"Name": "state", "Values": ["available"]},
                ],
            )
            images = [image for page in pages for image in page["Images"]]
        if not images:
            raise LaunchError(
                f"{self._aws.region} has no Ubuntu {UBUNTU} image of Canonical's for {architecture}",
                next_step="name an image with --image, or another --region",
            )
        return max(images, key=lambda image: image.get("CreationDate", ""))

    def _describe(self, image_id: str) -> ImageTypeDef | None:
        with translated(f"look up the image {image_id}"):
            try:
                images = self._ec2.describe_images(ImageIds=[image_id])["Images"]
            except ClientError as error:
                if code_of(error).startswith("InvalidAMIID."):
                    return None
                raise
        return images[0] if images else None


def _login_user(image: ImageTypeDef) -> str | None:
    tagged = next((tag["Value"] for tag in image.get("Tags", []) if tag["Key"] == USER_TAG), None)
    words = f"{image.get('Name', '')} {image.get('Description', '')}".lower()
    return tagged or next((user for word, user in _USERS.items() if word in words), None)


def _image(image: ImageTypeDef, user: str) -> Image:
    root = str(image.get("RootDeviceName", "/dev/sda1"))
    sizes = [
        each["Ebs"].get("VolumeSize", 0)
        for each in image.get("BlockDeviceMappings", [])
        if each.get("DeviceName") == root and "Ebs" in each
    ]
    return Image(
        image_id=image["ImageId"],
        name=str(image.get("Name", "")),
        architecture=str(image["Architecture"]),
        root_device=root,
        user=user,
        root_gib=max(sizes, default=0) or 8,
    )
