"""What a machine's disk may be, checked before EC2 is asked for it."""

from __future__ import annotations

from typing import Literal

VolumeType = Literal["gp3", "gp2", "io2", "io1"]
VOLUME_TYPES: tuple[VolumeType, ...] = ("gp3", "gp2", "io2", "io1")  # of those that EBS has, what a machine boots from
# "Amazon EBS volume types", Amazon EBS User Guide. What a volume may have at most grows from year to year: EC2 says so.
_LEAST_IOPS = {"gp3": 3000, "io1": 100, "io2": 100}
_LEAST_THROUGHPUT = 125  # MiB/s, of gp3


def volume_problem(kind: str, iops: int | None, throughput: int | None) -> str:
    """Why EC2 would not make such a disk; "" where it may. `throughput` in MiB/s."""
    if kind in ("io1", "io2") and iops is None:
        return f"a volume of type {kind} needs volume_iops"
    if iops is not None and kind not in _LEAST_IOPS:
        return f"volume_iops is for volumes of type {', '.join(_LEAST_IOPS)}, not {kind}"
    if iops is not None and iops < _LEAST_IOPS[kind]:
        return f"volume_iops is {iops}, and a volume of type {kind} has at least {_LEAST_IOPS[kind]}"
    if throughput is not None and kind != "gp3":
        return f"volume_throughput is for volumes of type gp3, not {kind}"
    if throughput is not None and throughput < _LEAST_THROUGHPUT:
        return f"volume_throughput is {throughput} MiB/s, and a volume of type gp3 has at least {_LEAST_THROUGHPUT}"
    return ""
