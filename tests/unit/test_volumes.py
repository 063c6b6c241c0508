"""Disks that EC2 would not make."""

from __future__ import annotations

import pytest

from cloudrun.plan.volumes import VolumeType, volume_problem


@pytest.mark.parametrize(
    ("kind", "iops", "throughput"),
    [("gp3", None, None), ("gp3", 3000, 125), ("gp3", 16000, 1000), ("io2", 100, None), ("gp2", None, None)],
)
def test_what_ec2_makes_is_no_problem(kind: VolumeType, iops: int | None, throughput: int | None) -> None:
    assert volume_problem(kind, iops, throughput) == ""


@pytest.mark.parametrize(
    ("kind", "iops", "throughput", "words"),
    [
        ("io2", None, None, "needs volume_iops"),
        ("gp2", 3000, None, "not gp2"),
        ("gp3", 100, None, "at least 3000"),
        ("io1", 99, None, "at least 100"),
        ("io2", 100, 200, "not io2"),
        ("gp3", None, 1, "at least 125"),
    ],
)
def test_what_ec2_would_refuse_is_named(kind: VolumeType, iops: int | None, throughput: int | None, words: str) -> None:
    assert words in volume_problem(kind, iops, throughput)
