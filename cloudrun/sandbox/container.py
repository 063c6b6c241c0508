"""One unit as a Linux container without any privilege. Runs in a process of its own, started by machine.py.

The process started is the unit's *keeper*. It reads the configuration (one JSON line) from its standard input and
stays until the unit ends; when that input closes, because the daemon says so or has died, it ends the unit.

Who is who, where the daemon runs as root: the keeper makes the user namespace, in which user 0 is the unit's own high
uid on the host, and its first child becomes the unit's PID 1. Until both give up the real uid for that one they can
still open the host paths that the unit is to see, below a private home as well; they run nothing of the unit's by then.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
from typing import Any

from cloudrun.sandbox.guest import commands, disk, init, kernel, processes

# The keeper's exit status: how the unit ended. Anything else means it died.
POWERED_OFF = 0
REBOOTED = 10
DIED = 1
# reboot(2) in a PID namespace ends its PID 1 with one of these signals
_BY_REBOOT: dict[int, int] = {signal.SIGINT: POWERED_OFF, signal.SIGHUP: REBOOTED}

_NAMESPACES = (
    kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWPID | kernel.CLONE_NEWUTS | kernel.CLONE_NEWIPC
)
_GUARDED = kernel.ATTR_NOSUID | kernel.ATTR_NODEV
_READ_ONLY = _GUARDED | kernel.ATTR_RDONLY


def main() -> int:
    config = json.loads(read_line(0))
    if os.geteuid() == 0 and not config["uid"]:
        sys.exit("the daemon is root and gave no other user for the unit")
    os.umask(0o022)
    processes.be_first_to_go()
    _enter_namespaces(config["uid"])
    lifeline, held = os.pipe()  # reads as ended once the keeper, which alone keeps the other end, is gone
    unit = os.fork()
    if unit == 0:
        os.close(held)
        try:
            _become_the_unit(config, lifeline)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the log gets it and the unit never runs
            print(f"the unit could not be set up: {error!r}", file=sys.stderr, flush=True)
        os._exit(DIED)
    _take_uid()
    return keep(unit)


def read_line(handle: int) -> bytes:
    """One line, not a byte more: what follows is the daemon's to close."""
    line = bytearray()
    while not line.endswith(b"\n"):
        letter = os.read(handle, 1)
        if not letter:
            raise EOFError("the daemon went away before it said what to start")
        line += letter
    return bytes(line)


def _enter_namespaces(uid: int | None) -> None:
    """Unshare, with user and group 0 mapped to `uid`; only a process outside the new namespace may write that map."""
    outside_uid = os.geteuid() if uid is None else uid
    outside_gid = os.getegid() if uid is None else uid
    if os.geteuid() == 0:
        os.setgroups([])
    keeper = os.getpid()
    ready_read, ready_write = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(ready_write)
        status = 1
        try:
            if os.read(ready_read, 1):
                for name, content in (
                    ("setgroups", "deny"),
                    ("uid_map", f"0 {outside_uid} 1\n"),
                    ("gid_map", f"0 {outside_gid} 1\n"),
                ):
                    with open(f"/proc/{keeper}/{name}", "w", encoding="ascii") as stream:
                        stream.write(content)
                status = 0
        except OSError as error:
            print(f"the unit's user could not be mapped: {error}", file=sys.stderr, flush=True)
        os._exit(status)
    kernel.unshare(_NAMESPACES)
    os.write(ready_write, b".")
    os.close(ready_read)
    os.close(ready_write)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError("the unit's user could not be mapped")


def _take_uid() -> None:
    """Give up whatever uid this process had on the host for the unit's own."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def keep(unit: int) -> int:
    """Wait for the unit's end, or for the daemon's: then end the unit, and with its PID 1 the kernel ends the rest."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(unit, signal.SIGKILL))
    handle = os.pidfd_open(unit)
    ready, _, _ = select.select([handle, 0], [], [])
    if handle not in ready:
        os.kill(unit, signal.SIGKILL)
    _, status = os.waitpid(unit, 0)
    if os.WIFSIGNALED(status):
        return _BY_REBOOT.get(os.WTERMSIG(status), DIED)
    return os.waitstatus_to_exitcode(status)


def _become_the_unit(config: dict[str, Any], lifeline: int) -> None:
    """As PID 1 of the new namespace: build the unit's root from host paths, enter it for good, and run it."""
    visible = disk.outermost([*config["readable"], sys.prefix, sys.base_prefix, *config["import_path"]])
    host_etc = disk.read_host_etc() if config["first_boot"] else {}
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    place = os.open(config["root"], os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    root = kernel.clone_tree(place)
    kernel.restrict_tree(root, _GUARDED)
    folders, links = _system_folders()
    trees = {name: _read_only(f"/{name}") for name in (*folders, "sys")}
    trees |= {f"etc/{name}": _read_only(f"/etc/{name}") for name in disk.SHARED_ETC if os.path.isdir(f"/etc/{name}")}
    trees |= {path[1:]: _read_only(path) for path in visible if os.path.isdir(path)}
    trees[disk.HOST_LOCAL_BIN[1:]] = _read_only("/usr/local/bin")
    devices = {path: _clone(f"/{path}") for path in disk.DEVICES}
    kernel.attach_tree(root, place)
    os.fchdir(root)
    _take_uid()
    kernel.die_with_parent(signal.SIGKILL)
    if select.select([lifeline], [], [], 0)[0]:
        raise OSError("the keeper is gone")  # before its death could be a signal

    disk.prepare(config, host_etc)
    for path, target in links.items():
        if not os.path.lexists(path):
            os.symlink(target, path)
    for path, tree in trees.items():
        _attach(tree, disk.open_folder(path))
    own_bin = disk.open_folder(disk.LOCAL_BIN)
    _attach(kernel.clone_tree(own_bin), disk.open_folder("usr/local/bin"))
    _mount_kernel_files(devices)
    kernel.pivot_root_here()
    socket.sethostname(config["hostname"])
    commands.install(config["python"])
    kernel.keep_capabilities(kernel.KEPT_CAPABILITIES)
    kernel.forbid_new_privileges()
    kernel.leave_abstract_sockets()
    kernel.leave_session_keyring()
    for handle in (place, root, own_bin, lifeline):
        os.close(handle)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)  # the daemon's word is the keeper's to hear
    os.close(null)
    if config["probe"]:
        os._exit(POWERED_OFF)
    os._exit({"poweroff": POWERED_OFF, "reboot": REBOOTED, "failure": DIED}[init.Init(config).run()])


def _system_folders() -> tuple[list[str], dict[str, str]]:
    folders: list[str] = []
    links: dict[str, str] = {}
    for name in disk.SYSTEM:
        if os.path.islink(f"/{name}"):
            links[name] = os.readlink(f"/{name}")
        elif os.path.isdir(f"/{name}"):
            folders.append(name)
    return folders, links


def _clone(path: str) -> int:
    handle = os.open(path, os.O_PATH)
    try:
        return kernel.clone_tree(handle)
    finally:
        os.close(handle)


def _read_only(path: str) -> int:
    tree = _clone(path)
    kernel.restrict_tree(tree, _READ_ONLY)
    return tree


def _attach(tree: int, target: int) -> None:
    kernel.attach_tree(tree, target)
    os.close(tree)
    os.close(target)


def _mount_kernel_files(devices: dict[str, int]) -> None:
    """/dev with the harmless devices, and the /proc of this PID namespace. Both while the host's /proc is in sight:
    the kernel lets a user namespace mount a fresh one only then."""
    kernel.mount("tmpfs", "dev", "tmpfs", kernel.MS_NOSUID | kernel.MS_NOEXEC, "mode=755,size=64k,nr_inodes=1k")
    for path, tree in devices.items():
        _attach(tree, disk.open_file(path))
    for name in ("dev/pts", "dev/shm"):
        disk.folder(name)
    flags = kernel.MS_NOSUID | kernel.MS_NOEXEC
    kernel.mount("devpts", "dev/pts", "devpts", flags, "newinstance,ptmxmode=0666,mode=620")
    kernel.mount("tmpfs", "dev/shm", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=1777")
    for link, target in (
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        os.symlink(target, f"dev/{link}")
    kernel.mount("proc", "proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
