"""The versions that matter in a bug report: of this computer, and of the libraries that do the work."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from cloudrun.ledger.database import sqlite_version

PACKAGES = (
    "boto3", "botocore", "paramiko", "ansible-core", "ansible-runner", "uv", "numpy", "scikit-learn", "joblib", "moto",
)  # fmt: skip
MISSING = "not installed"
_SSH_TIMEOUT_S = 10


def versions() -> dict[str, str]:
    """By name, "not installed" among them. Raises nothing: this is what is asked when something is wrong."""
    return {
        "cloudrun": package_version("cloudrun"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        **{name: package_version(name) for name in PACKAGES},
        "sqlite": sqlite_version(),
        "openssh": ssh_version() or MISSING,
    }


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return MISSING


def ssh_version() -> str | None:
    """As in "OpenSSH_9.2p1 Debian-2"; None where there is no SSH client, or one that does not run."""
    try:
        done = subprocess.run(["ssh", "-V"], capture_output=True, text=True, timeout=_SSH_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stderr or done.stdout).strip().partition(",")[0]
