"""What a user may ask of a machine that no machine of this computer can be: refused, or said."""

from __future__ import annotations

import platform
from collections.abc import Mapping

from cloudrun.core.records import Image
from cloudrun.core.settings import Settings

REFUSED: Mapping[str, str] = {
    "instance_profile": "the sandbox has no IAM, so its machines can have no role",
}
_NOTIONAL = ("volume_gib", "volume_type", "volume_iops", "volume_throughput")
_ARCHITECTURES = {"amd64": "x86_64", "aarch64": "arm64"}


def differs(settings: Settings, image: Image, *, booted: bool) -> str:
    """What of it means nothing here, as a sentence; "" where all of it does. `booted`: machines are systems of their
    own rather than processes of this one's."""
    found = []
    if image.gpu:
        found.append("has no GPU")
    here = _ARCHITECTURES.get(platform.machine(), platform.machine())
    if image.architecture != here:
        found.append(f"is {here}, not {image.architecture}")
    if notional := [name for name in _NOTIONAL if getattr(settings, name) != getattr(Settings(), name)]:
        found.append(f"has this computer's disk, in place of the given {', '.join(notional)}")
    if settings.apt and not booted:
        found.append("has this computer's system packages and can install no others")
    return f"a machine of the sandbox {', and '.join(found)}" if found else ""
