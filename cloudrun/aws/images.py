"""Which image a unit boots from: one that the user names, or Canonical's current Ubuntu LTS for the machine's type."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
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

# Who may log in, as the makers of these images document it: by a word in the image's name (copies and images built from
# another keep that as a rule), by whose it is where that is one system's maker, by a word in its description.
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
_USERS_BY_OWNER: Mapping[str, str] = {
    CANONICAL: "ubuntu",
    "136693071363": "admin",  # Debian: https://wiki.debian.org/Cloud/AmazonEC2Image
    "137112412989": "ec2-user",  # Amazon Linux
    "309956199498": "ec2-user",  # Red Hat
    "013907871322": "ec2-user",  # SUSE
    "792107900819": "rocky",  # https://rockylinux.org/download
    "764336703387": "ec2-user",  # AlmaLinux: https://wiki.almalinux.org/cloud/AWS.html
}
# "AWS Deep Learning Base OSS Nvidia Driver GPU AMI", which has NVIDIA's drivers and what belongs to them
_GPU_PARAMETER = "/aws/service/deeplearning/ami/{}/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
USER_TAG = "cloudrun:user"
_NVIDIA = "NVIDIA"


@dataclass(frozen=True)
class _Kind:
    instance_type: str
    architectures: list[str]
    accelerator: str  # its maker, in capitals; "" where there is none


class Images:
    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._ec2 = aws.client("ec2")

    def find(self, instance_type: str, *, image_id: str | None = None, user: str | None = None) -> Image:
        """The image for a unit of this type. Raises UsageError for an unknown type or image, or for two at odds."""
        kind = self._kind(instance_type)
        if image_id is not None:
            return self._named(image_id, user, kind)
        architecture = kind.architectures[0]
        if kind.accelerator:
            image = self._with_drivers(kind)
        else:
            image = self._canonical_by_parameter(architecture) or self._canonical_by_name(architecture)
        return _image(image, user or "ubuntu", gpu=kind.accelerator == _NVIDIA)

    def _kind(self, instance_type: str) -> _Kind:
        """What a type can boot of what cloudrun supports, and what it computes on beside its processors."""
        try:
            with translated(f"look up the instance type {instance_type}"):
                answer = self._ec2.describe_instance_types(InstanceTypes=[instance_type])  # type: ignore[list-item]
        except UsageError as error:
            near = self._near(instance_type)
            raise UsageError(
                f"{self._aws.region} has no instance type {instance_type!r}"
                + (f"; did you mean {' or '.join(near)}?" if near else ""),
                next_step="name another with --instance-type, for example m7i.large",
                instead=(instance_type, near[0]) if near else None,
            ) from error
        found = {name for each in answer["InstanceTypes"] for name in each["ProcessorInfo"]["SupportedArchitectures"]}
        supported: list[str] = [name for name in _DEBIAN_NAMES if name in found]
        if not supported:
            raise UsageError(
                f"{instance_type} is neither x86-64 nor arm64 ({', '.join(sorted(found)) or 'unknown'})",
                next_step="name another with --instance-type, for example m7i.large",
            )
        gpus = [gpu for each in answer["InstanceTypes"] for gpu in each.get("GpuInfo", {}).get("Gpus", [])]
        others = [
            each for each in answer["InstanceTypes"] if "NeuronInfo" in each or "InferenceAcceleratorInfo" in each
        ]
        accelerator = str(gpus[0].get("Manufacturer", "")).upper() if gpus else "AWS" if others else ""
        return _Kind(instance_type, supported, accelerator)

    def _with_drivers(self, kind: _Kind) -> ImageTypeDef:
        """An image with the drivers of the type's accelerator. Raises UsageError where nobody knows one."""
        if kind.accelerator == _NVIDIA:
            image = self._by_parameter(_GPU_PARAMETER.format(kind.architectures[0]), "AWS's current GPU image")
            if image is not None:
                return image
        raise UsageError(
            f"{kind.instance_type} computes on an accelerator of {kind.accelerator}, and {self._aws.region} names no "
            "image with its drivers",
            next_step="name one with --image, say an AWS Deep Learning AMI: aws ec2 describe-images --region "
            f"{self._aws.region} --owners amazon --filters 'Name=name,Values=Deep Learning*'",
        )

    def _near(self, instance_type: str) -> list[str]:
        """What the region offers and is called nearly so."""
        with translated("list instance types"):
            pages = self._ec2.get_paginator("describe_instance_type_offerings").paginate(LocationType="region")
            offered = {str(each["InstanceType"]) for page in pages for each in page["InstanceTypeOfferings"]}
        return difflib.get_close_matches(instance_type, sorted(offered), n=3)

    def _named(self, image_id: str, user: str | None, kind: _Kind) -> Image:
        image = self._describe(image_id)
        if image is None:
            raise UsageError(
                f"{self._aws.region} has no image {image_id!r} that this account may use",
                next_step="check --image and --region (image ids differ by region), or leave --image out",
            )
        architecture = str(image.get("Architecture", ""))
        if architecture not in kind.architectures:
            boots = " or ".join(kind.architectures)
            raise UsageError(
                f"the image {image_id} is for {architecture}, {kind.instance_type} boots {boots}",
                next_step="name a matching --instance-type, or leave --image out",
            )
        if image.get("Platform") or image.get("State", "available") != "available":
            what = f"for {image['Platform']}" if image.get("Platform") else str(image["State"])
            raise UsageError(f"the image {image_id} is {what}", next_step="name an available Linux image with --image")
        login = user or _login_user(image)
        if login is None:
            raise UsageError(
                f"nobody knows who may log in to the image {image_id} ({image.get('Name', 'without a name')})",
                next_step="say it: --user NAME, or `user` in cloudrun.toml",
            )
        return _image(image, login, gpu=kind.accelerator == _NVIDIA)

    def _canonical_by_parameter(self, architecture: str) -> ImageTypeDef | None:
        name = (
            f"/aws/service/canonical/ubuntu/server/{UBUNTU}/stable/current/"
            f"{_DEBIAN_NAMES[architecture]}/hvm/ebs-gp3/ami-id"
        )
        return self._by_parameter(name, "Canonical's current Ubuntu image")

    def _by_parameter(self, name: str, what: str) -> ImageTypeDef | None:
        """The image that a public parameter of SSM names; None where there is none, or it may not be read."""
        with translated(f"look up {what}"):
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
    return (
        tagged
        or _user_in(image.get("Name", ""))
        or _USERS_BY_OWNER.get(image.get("OwnerId", ""))
        or _user_in(image.get("Description", ""))
    )


def _user_in(words: str) -> str | None:
    return next((user for word, user in _USERS.items() if word in words.lower()), None)


def _image(image: ImageTypeDef, user: str, *, gpu: bool) -> Image:
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
        gpu=gpu,
    )
