"""The root file system of booted machines: built once from Debian's packages, kept in the sandbox's cache.

Where the packages come from is what this computer's own apt is set up with. Machines have no way out, so what the
playbook installs with apt is in the file system already, as a package repository of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cloudrun.core.errors import SandboxError
from cloudrun.sandbox.state import Locked, locked

BUILD_TIMEOUT_S = 1200.0
LOGIN_USER = "ubuntu"
_FORMAT = 1  # counted up when what is built changes and the recipe below does not say so
_NEEDED = {"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "ip": "iproute2", "nsenter": "util-linux"}
_PACKAGES = (
    "ca-certificates", "cloud-init", "dbus", "iproute2", "openssh-server", "procps", "python3", "sudo", "systemd-sysv",
)  # fmt: skip
_OFFERED = ("python3-apt", "python3-venv")  # what playbooks/unit.yml installs with apt, and what its apt module needs
_REPOSITORY = "var/lib/cloudrun/packages"
# Ec2 alone, so that cloud-init need not recognise the computer; its address and routes are there before it starts.
# Names beginning with an underscore in Debian's own configuration would be merged, so this only overrides.
_CLOUD_CONFIG = {
    "datasource_list": ["Ec2"],
    "datasource": {"Ec2": {"metadata_urls": ["http://169.254.169.254"], "timeout": 5, "max_wait": 30}},
    "network": {"config": "disabled"},
    "system_info": {
        "default_user": {
            "name": LOGIN_USER,
            "lock_passwd": True,
            "gecos": "Ubuntu",
            "groups": ["adm", "sudo"],
            "sudo": ["ALL=(ALL) NOPASSWD:ALL"],
            "shell": "/bin/bash",
        }
    },
    "apt": {"preserve_sources_list": True},
    "growpart": {"mode": "off"},
    "resize_rootfs": False,
    "grub_dpkg": {"enabled": False},
    "locale": "C.UTF-8",
}
# cloud-init tells EC2 by the firmware's tables, which containers have none of, and speaks version 2 of the metadata
# service on EC2 alone: this one function says so instead.
_EC2_SOURCE = "usr/lib/python3/dist-packages/cloudinit/sources/DataSourceEc2.py"
_IDENTIFY = "def identify_platform():\n"
# A machine that nobody sits at, whose disk is a folder and whose mounts are made from outside.
_MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "console-getty.service", "e2scrub_all.timer", "tmp.mount",
    "systemd-networkd-wait-online.service",
)  # fmt: skip


def check_requirements() -> None:
    """Raises SandboxError where this computer cannot boot machines, with what to do about it."""
    if not sys.platform.startswith("linux"):
        raise SandboxError(
            "Booted machines need Linux: they are systemd's containers.",
            next_step="cloudrun sandbox start  # machines without systemd, on any computer",
        )
    if os.geteuid() != 0:
        raise SandboxError(
            "Booted machines need root: they have networks and mounts of their own.",
            next_step="sudo cloudrun sandbox start --machines nspawn, or leave out --machines",
        )
    missing = sorted({package for program, package in _NEEDED.items() if shutil.which(program) is None})
    if missing:
        raise SandboxError(
            f"Booted machines need Debian packages that are not installed here: {', '.join(missing)}.",
            next_step=f"sudo apt-get install {' '.join(missing)}",
        )


def ensure(cache: Path, say: Callable[[str], None], *, in_use: bool) -> Path:
    """The root file system's folder, built first where it is not there; `in_use` spares those of other recipes.

    Raises SandboxError where it cannot be built.
    """
    codename, sources = _sources()
    recipe = [_FORMAT, platform.machine(), codename, sources, _PACKAGES, _OFFERED, _CLOUD_CONFIG, _MASKED, _IDENTIFY]
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / "machines"
    folder.mkdir(mode=0o700, exist_ok=True)
    place = folder / digest
    if place.is_dir():
        return place
    try:
        with locked(folder / "lock", timeout_s=BUILD_TIMEOUT_S):
            if not place.is_dir():
                _tidy(folder, everything=not in_use and not folder.is_symlink())  # one with a link to it is shared
                say("building the machines' root file system from Debian's packages, once; this takes about a minute")
                _build(place, codename, sources)
    except Locked:
        raise SandboxError(
            f"Another process has been building the machines' root file system for {BUILD_TIMEOUT_S / 60:.0f} minutes.",
            next_step=f"End it, or remove {folder}.",
        ) from None
    except OSError as error:
        raise SandboxError(
            f"The machines' root file system cannot be built in {folder}: {error}", next_step="df -h; then try again"
        ) from error
    return place


def _sources() -> tuple[str, list[str]]:
    """The release that this computer runs, and its apt's lines for it."""
    release = platform.freedesktop_os_release()
    codename = release.get("VERSION_CODENAME", "")
    form = "$(ORIGIN)|$(CODENAME)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    try:
        targets = subprocess.run(
            ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        raise SandboxError(f"apt does not say where packages come from: {error}", next_step="use Debian") from error
    found: dict[tuple[str, str], list[str]] = {}
    for line in sorted(set(targets.splitlines())):
        origin, name, uri, suite, component = line.split("|")
        if origin == "Debian" and (name == codename or name.startswith(f"{codename}-")):
            found.setdefault((uri, suite), []).append(component)
    if not found:
        raise SandboxError(
            f"apt knows no packages of Debian {codename or '(which release?)'} here, which machines are made of.",
            next_step="sudo apt-get update; on another distribution leave out --machines",
        )
    return codename, [f"deb {uri} {suite} {' '.join(components)}" for (uri, suite), components in found.items()]


def _tidy(folder: Path, *, everything: bool) -> None:
    for each in folder.iterdir():
        if each.is_dir() and (everything or each.name.startswith("building-")):
            shutil.rmtree(each)


def _build(place: Path, codename: str, sources: list[str]) -> None:
    building = place.with_name(f"building-{place.name}")
    log, options = building.with_suffix(".log"), building.with_suffix(".conf")
    options.write_text(_apt_options())
    offered = f"-y -d -o Dir::Cache::archives=/{_REPOSITORY} install {' '.join(_OFFERED)}"
    fetch = f'mkdir -p "$1/{_REPOSITORY}/partial" && chroot "$1" apt-get {offered}'
    # in mounts of its own: whatever ends it, nothing of this computer's is mounted below the folder afterwards
    command = ["unshare", "--mount", "--propagation", "private", "mmdebstrap", "--mode=root", "--variant=apt"]
    command += [f"--include={','.join(_PACKAGES)}", f"--aptopt={options}", f"--customize-hook={fetch}"]
    try:
        with log.open("wb") as stream:
            done = subprocess.run(
                [*command, codename, str(building), *sources],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, timeout=BUILD_TIMEOUT_S, check=False,
            )  # fmt: skip
        if done.returncode != 0:
            said = log.read_text(errors="replace").splitlines()[-15:]
            raise SandboxError(
                "The machines' root file system could not be built; mmdebstrap said last:\n" + "\n".join(said),
                next_step="sudo apt-get update; then try again",
            )
        _furnish(building)
        building.rename(place)
    finally:
        shutil.rmtree(building, ignore_errors=True)
        for file in (log, options):
            file.unlink(missing_ok=True)


def _apt_options() -> str:
    """How this computer's apt reaches its sources: proxies, certificates, time-outs."""
    told = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, timeout=60, check=True)
    return "".join(f"{line}\n" for line in told.stdout.splitlines() if not line.endswith(' "";'))


def _furnish(root: Path) -> None:
    """What makes a machine of a Debian: how cloud-init finds its metadata, where apt finds packages."""
    (root / "etc/cloud/cloud.cfg.d/90_cloudrun.cfg").write_text(json.dumps(_CLOUD_CONFIG, indent=1))
    # cloud.cfg's one-line form is what cloud-init's generator reads, which is a shell script
    (root / "etc/cloud/ds-identify.cfg").write_text("policy: enabled\ndatasource: Ec2\n")
    source = root / _EC2_SOURCE
    text = source.read_text()
    if text.count(_IDENTIFY) != 1:
        raise SandboxError(
            "This release's cloud-init is not one that machines can be made with.", next_step="use Debian 12"
        )
    source.write_text(text.replace(_IDENTIFY, f"{_IDENTIFY}    return CloudNames.AWS  # cloudrun\n"))
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for name in ("sbin/dhclient", "etc/machine-id", "etc/hostname", "etc/apt/apt.conf.d/99mmdebstrap"):
        (root / name).unlink(missing_ok=True)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    shutil.rmtree(root / "etc/apt/sources.list.d")
    (root / "etc/apt/sources.list.d").mkdir()
    (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:/{_REPOSITORY} ./\n")
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "var/lib/apt/lists/partial").mkdir(parents=True)
    repository = root / _REPOSITORY
    shutil.rmtree(repository / "partial", ignore_errors=True)
    (repository / "lock").unlink(missing_ok=True)
    (repository / "Packages").write_text("\n".join(_entry(package) for package in sorted(repository.glob("*.deb"))))


def _entry(package: Path) -> str:
    """A package's paragraph in its repository's index (deb822; "Debian Repository Format")."""
    control = subprocess.run(["dpkg-deb", "-f", package], capture_output=True, text=True, timeout=60, check=True).stdout
    content = package.read_bytes()
    safe = re.sub(r"[^A-Za-z0-9.+~_-]", "_", package.name)  # a colon is written %3a in a file's name, and read as one
    if safe != package.name:
        package.rename(package.with_name(safe))
    return f"{control}Filename: ./{safe}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"
