"""One unit as a real Debian booted under systemd-nspawn. Runs in a process of its own, started by machine.py.

The process started is the unit's *keeper*, as in container.py: it reads its configuration from standard input, and ends
the unit when that closes. Below it is a PID namespace whose first process dies with the keeper, and whose end takes
everything of the unit's along, whoever was killed. Mounts are in a mount namespace and the network in a network
namespace that end with their last process; what has to be removed is a cgroup: see `sweep`.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cloudrun.core.rundir import BASE
from cloudrun.sandbox import bridge, relay
from cloudrun.sandbox.container import DIED, POWERED_OFF, REBOOTED, keep, read_line
from cloudrun.sandbox.guest import disk, kernel, processes

_REBOOT_STATUS = 133  # systemd-nspawn's exit status for it
_LAYERS = ("proc", "sys", "dev", "run", "tmp", "usr", "etc", "bin", "sbin", "lib", "lib64", "boot")
_KILL_TIMEOUT_S = 10.0


def main() -> int:
    config = json.loads(read_line(0))
    os.umask(0o022)
    processes.be_first_to_go()
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    root = config["root"]
    layers = ",".join(
        f"{name}={_escaped(path, chr(92) + ',:')}"
        for name, path in (
            ("lowerdir", config["image"]),
            ("upperdir", config["disk"]),
            ("workdir", f"{config['directory']}/work"),
        )
    )
    kernel.mount("overlay", root, "overlay", 0, layers)
    os.chdir(root)
    bound = _bound(config)
    _furnish(config, bound)
    os.chdir("/")
    region = urlsplit(config["metadata_url"])
    network, metadata, endpoint = _plug_in(config, str(region.hostname), int(region.port or 80))
    before = _enter_cgroup(_cgroup(config["directory"]))
    outside = os.open("/proc/self/ns/pid", os.O_RDONLY)
    kernel.unshare(kernel.CLONE_NEWPID)  # for the next child
    lifeline, held = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(held)
        os._exit(_first_process(config, bound, network, lifeline))
    kernel.enter_namespace(outside)  # else there could be no threads here
    _enter_cgroup(before)
    os.close(lifeline)
    address = str(region.hostname), int(region.port or 80)
    threading.Thread(target=relay.serve_metadata, args=(metadata, *address, region.path), daemon=True).start()
    threading.Thread(target=relay.relay, args=(endpoint, *address), daemon=True).start()
    return keep(first)


def _escaped(text: str, special: str) -> str:
    return "".join(f"\\{letter}" if letter in special else letter for letter in text)


def _bound(config: Mapping[str, Any]) -> list[str]:
    """The host's folders that the machine sees, at the same place: those that hold a program for it, as few of the
    host's files as do, and environments. What has its own place in any Debian is the machine's own."""
    own = ("/", *(f"/{name}" for name in _LAYERS))
    wanted = set(config["environments"].values())
    for tool in config["tools"].values():
        holding = [path for path in config["readable"] if tool.startswith(path + "/") and path not in own]
        if holding:
            wanted.add(max(holding, key=len))
    found = {form(path) for path in wanted for form in (str, os.path.realpath)}
    return sorted(path for path in found if os.path.isdir(path))


def _furnish(config: Mapping[str, Any], bound: Iterable[str]) -> None:
    """What a boot finds on the machine's disk, which is the working directory. The machine may have put links there:
    none is followed."""
    for path in bound:
        _passable(path)
    for name, text in disk.etc_files(config).items():
        if name in ("pip.conf", "uv/uv.toml") or (config["first_boot"] and name in ("machine-id", "hostname", "hosts")):
            _write(f"etc/{name}", text.encode())
    if not config["first_boot"]:
        return
    for name, target in config["tools"].items():
        if name == "python3" or target.startswith(("/usr/bin/", "/bin/", "/usr/local/bin/")):
            continue  # the system's own, or where it would be put
        if name.startswith("python"):
            _write(f"usr/local/bin/{name}", f'#!/bin/sh\nexec {target} "$@"\n'.encode(), 0o755)  # see disk.py
        else:
            os.symlink(target, f"usr/local/bin/{name}")
    # for the login user, whom cloud-init makes: /etc/skel is what a new home holds
    for fingerprint, path in config["environments"].items():
        disk.folder(f"etc/skel/{BASE}/envs")
        os.symlink(path, f"etc/skel/{BASE}/envs/{fingerprint}")


def _passable(path: str) -> None:
    """A place to mount it on, that every user of the machine can get to."""
    parts = path.strip("/").split("/")
    for depth in range(1, len(parts) + 1):
        handle = disk.open_folder("/".join(parts[:depth]))
        try:
            place = f"/proc/self/fd/{handle}"  # O_PATH descriptors know no fchmod
            os.chmod(place, os.stat(place).st_mode & 0o7777 | 0o011)  # noqa: S103 (to be walked through, not read)
        finally:
            os.close(handle)


def _write(path: str, content: bytes, mode: int = 0o644) -> None:
    above, _, name = path.rpartition("/")
    handle = disk.open_folder(above)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=handle)
        file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, mode, dir_fd=handle)
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
    finally:
        os.close(handle)


def _plug_in(config: Mapping[str, Any], host: str, port: int) -> tuple[int, socket.socket, socket.socket]:
    """The machine's network namespace, on the bridge with its address; and two sockets that listen on its loopback:
    where the metadata service is, and where the region is outside."""
    outside = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.unshare(kernel.CLONE_NEWNET)
    inside = os.open("/proc/self/ns/net", os.O_RDONLY)
    kernel.enter_namespace(outside)
    plug, path = config["plug"], f"/proc/{os.getpid()}/fd/{inside}"
    address = int(ipaddress.IPv4Address(config["address"]))
    cable = f"m{address:08x}"
    # the hardware address goes with the other one: whoever talked to this machine before a reboot still can
    hardware = ":".join(f"{byte:02x}" for byte in (0x02, 0xC1, *address.to_bytes(4, "big")))
    bridge.inside(
        plug["namespace"],
        f"link add {cable} type veth peer name eth0 address {hardware} netns {path}",
        f"link set {cable} master {plug['bridge']} up",
    )
    bridge.inside(
        path,
        "link set lo up",
        f"address add {relay.METADATA_ADDRESS}/32 dev lo",
        f"address add {config['address']}/{plug['prefix']} dev eth0",
        "link set eth0 up",
    )
    kernel.enter_namespace(inside)
    metadata, endpoint = _listen(relay.METADATA_ADDRESS, 80), _listen(host, port)
    kernel.enter_namespace(outside)
    os.close(outside)
    return inside, metadata, endpoint


def _listen(host: str, port: int) -> socket.socket:
    """Where it was made is where a socket listens, also once this process is in another network namespace."""
    return socket.create_server((host, port), backlog=64)


def _first_process(config: Mapping[str, Any], bound: Iterable[str], network: int, lifeline: int) -> int:
    """PID 1 of the unit's namespace: starts systemd-nspawn and stays, to take everything with it when it ends."""
    try:
        kernel.die_with_parent(signal.SIGKILL)
        os.set_blocking(lifeline, False)
        with contextlib.suppress(BlockingIOError):
            if os.read(lifeline, 1) == b"":
                return DIED  # the keeper was gone before its death could be a signal
        kernel.unshare(kernel.CLONE_NEWNS)
        kernel.mount("proc", "/proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        with open(os.devnull, "rb") as null:
            os.dup2(null.fileno(), 0)  # the daemon's word is the keeper's to hear
        guest = subprocess.Popen(
            _command(config, bound, network),
            pass_fds=(network,),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
            | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_TMPFS_TMP": "0"},
        )
        while True:
            pid, status = os.wait()  # orphans of the machine's helpers too
            if pid == guest.pid:
                break
        code = os.waitstatus_to_exitcode(status)
        return {0: POWERED_OFF, _REBOOT_STATUS: REBOOTED}.get(code, DIED)
    except BaseException as error:  # noqa: BLE001 (whatever it is, the log gets it and the unit does not run)
        print(f"the machine could not be booted: {error!r}", file=sys.stderr, flush=True)
        return DIED


def _command(config: Mapping[str, Any], bound: Iterable[str], network: int) -> list[str]:
    return [
        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
        f"--directory={config['root']}",
        f"--machine={config['hostname']}",
        f"--network-namespace-path=/proc/self/fd/{network}",
        "--capability=CAP_NET_ADMIN",
        "--kill-signal=SIGRTMIN+3",
        *("--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=read-only"),
        *(f"--bind-ro={_escaped(path, chr(92) + ':')}" for path in bound),
    ]


# -- cgroups -----------------------------------------------------------------------------------------------------------


def _cgroup(directory: str) -> Path:
    """The unit's own, in a folder of its sandbox's."""
    units, name = os.path.split(directory)
    return _cgroups(units) / name


def _mounted() -> Path:
    """Where version 2 is: in systemd's hybrid layout beside the others."""
    whole = Path("/sys/fs/cgroup")
    return whole if (whole / "cgroup.procs").exists() else whole / "unified"


def _cgroups(units: str) -> Path:
    return _mounted() / f"cloudrun-{hashlib.sha256(units.encode()).hexdigest()[:12]}"


def _enter_cgroup(group: Path) -> Path:
    """Go there, and say where this process was. systemd in a machine manages what is below the cgroup that it finds
    itself in."""
    with open("/proc/self/cgroup", encoding="utf-8") as stream:
        before = next(line[3:].strip() for line in stream if line.startswith("0::"))
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return _mounted() / before.lstrip("/")


def sweep(directory: Path) -> None:
    """End whatever is left of the unit, and remove its cgroup."""
    _remove_group(_cgroup(str(directory)))


def sweep_all(units: Path) -> None:
    """The same for every unit that the sandbox of that directory ever had."""
    _remove_group(_cgroups(str(units)))


def _remove_group(group: Path) -> None:
    """Kill what is in a cgroup and below it, and remove them all. Raises OSError where a process cannot die.

    In systemd's hybrid layout systemd-nspawn makes the same folders in version 1's hierarchy.
    """
    give_up = time.monotonic() + _KILL_TIMEOUT_S
    shadow = Path("/sys/fs/cgroup/systemd") / group.relative_to(_mounted())
    for each in (group, shadow):
        while each.exists():
            try:
                if each is group:
                    (group / "cgroup.kill").write_text("1")  # Linux 5.14
                for folder, _, _ in os.walk(each, topdown=False):
                    os.rmdir(folder)
            except FileNotFoundError:
                continue
            except OSError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(0.02)
