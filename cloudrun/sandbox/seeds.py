"""What a new region holds: Canonical's Ubuntu images and AWS's for GPUs, and the SSM parameters that name them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar

from moto.ec2.models.amis import Ami
from moto.ssm.models import Parameter, SimpleSystemManagerBackend

CANONICAL = "099720109477"
ROOT_GIB = 8  # as Canonical's own images have


@dataclass(frozen=True)
class Seed:
    """`machine` is Canonical's word for the architecture, `architecture` is EC2's."""

    release: str
    codename: str
    machine: str
    architecture: str
    serial: str  # the day it was built
    image_id: str
    storage: str  # as in the image's name

    owner: ClassVar[str] = CANONICAL

    @property
    def description(self) -> str:
        return f"Canonical, Ubuntu, {self.release} LTS, {self.machine} {self.codename} image"

    @property
    def name(self) -> str:
        return f"ubuntu/images/{self.storage}/ubuntu-{self.codename}-{self.release}-{self.machine}-server-{self.serial}"

    @property
    def parameter(self) -> str:
        volume = "ebs-gp3" if "gp3" in self.storage else "ebs-gp2"
        return f"/aws/service/canonical/ubuntu/server/{self.release}/stable/current/{self.machine}/hvm/{volume}/ami-id"


# Names and parameters as in "Find Ubuntu images on AWS" (Canonical); the ids are the sandbox's own.
SEEDS = (
    Seed("24.04", "noble", "amd64", "x86_64", "20250610", "ami-0c10dd24040000a64", "hvm-ssd-gp3"),
    Seed("24.04", "noble", "arm64", "arm64", "20250610", "ami-0c10dd24040000b64", "hvm-ssd-gp3"),
    Seed("22.04", "jammy", "amd64", "x86_64", "20250603", "ami-0c10dd22040000a64", "hvm-ssd"),
    Seed("22.04", "jammy", "arm64", "arm64", "20250603", "ami-0c10dd22040000b64", "hvm-ssd"),
)


class GpuSeed(Seed):
    """AWS's own, with drivers: "AWS Deep Learning Base OSS Nvidia Driver GPU AMI" of the Deep Learning AMI guide. What
    boots from it here has neither drivers nor a GPU."""

    owner: ClassVar[str] = "898082745236"

    @property
    def description(self) -> str:
        return "Supported EC2 instances: those with NVIDIA GPUs."

    @property
    def name(self) -> str:
        arm = "ARM64 " if self.architecture == "arm64" else ""
        return f"Deep Learning {arm}Base OSS Nvidia Driver GPU AMI (Ubuntu {self.release}) {self.serial}"

    @property
    def parameter(self) -> str:
        kind = f"base-oss-nvidia-driver-gpu-ubuntu-{self.release}"
        return f"/aws/service/deeplearning/ami/{self.architecture}/{kind}/latest/ami-id"


class UbuntuImage(Ami):
    """moto gives each image a 15 GiB magnetic volume that outlives its instance; Canonical's is otherwise."""

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        volume = {
            "SnapshotId": self.ebs_snapshot.id,
            "VolumeSize": ROOT_GIB,
            "VolumeType": "gp3",
            "DeleteOnTermination": True,
            "Encrypted": False,
        }
        return [{"DeviceName": self.root_device_name, "Ebs": volume}]


GPU_SEEDS = (
    GpuSeed("24.04", "noble", "amd64", "x86_64", "20250602", "ami-0c10dd24046000a64", "hvm-ssd-gp3"),
    GpuSeed("24.04", "noble", "arm64", "arm64", "20250602", "ami-0c10dd24046000b64", "hvm-ssd-gp3"),
)


def plant(ec2: Any, ssm: SimpleSystemManagerBackend) -> None:
    for seed in (*SEEDS, *GPU_SEEDS):
        built = datetime.strptime(seed.serial, "%Y%m%d").replace(tzinfo=UTC)
        ec2.amis[seed.image_id] = UbuntuImage(
            ec2,
            seed.image_id,
            name=seed.name,
            description=seed.description,
            owner_id=seed.owner,
            public=True,
            virtualization_type="hvm",
            architecture=seed.architecture,
            creation_date=built.replace(tzinfo=None),  # moto's times are naive
            hypervisor="xen",
            root_device_type="ebs",
            root_device_name="/dev/sda1",
            image_location=f"{seed.owner}/{seed.name}",
            region_name=f"{ec2.region_name}a",
        )
        # put_parameter refuses the /aws/ prefix to everybody but AWS
        ssm._parameters[seed.parameter].append(  # noqa: SLF001
            Parameter(  # type: ignore[abstract]  # moto makes them so itself
                account_id=ssm.account_id,
                name=seed.parameter,
                value=seed.image_id,
                parameter_type="String",
                description=None,
                allowed_pattern=None,
                keyid=None,
                last_modified_date=built.replace(tzinfo=None),
                version=1,
                data_type="aws:ec2:image",
            )
        )
