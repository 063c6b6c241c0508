"""One unit without namespaces (macOS, or a Linux that allows none): a supervised tree of ordinary processes.

Same SSH server, own home and configuration below the unit's folder, `shutdown` and its kin on PATH. Nothing for root is
run: not `sudo`, not user-data's commands. The process started here is the unit's init; when its standard input closes,
because the daemon says so or has died, it ends the unit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from cloudrun.sandbox.container import DIED, POWERED_OFF, REBOOTED, read_line
from cloudrun.sandbox.guest import commands, disk, init, processes, sshd

_SUDO_SCRIPT = """#!/bin/sh
echo "sudo: refused: without user namespaces a unit of the sandbox has no root" >&2
exit 1
"""
_FOLDERS = (
    "etc/ssh", "etc/systemd/system", "var/lib/cloud/instance", "var/lib/systemd/timers", "var/log", "usr/local/bin",
)  # fmt: skip
_FRESH = ("run", "tmp")  # emptied at every boot


class PlainInit(init.Init):
    """PID 1's work without being PID 1: the unit's processes are those that descend from this one."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.watched[0] = lambda: self.end("failure")  # the daemon closed it, or is gone

    def signal_all(self, number: int) -> None:
        for pid in processes.descendants(os.getpid()):
            with contextlib.suppress(OSError):
                os.kill(pid, number)


def main() -> int:
    config = json.loads(read_line(0))
    root = config["root"]
    config |= {"prefix": root, "roots_tasks": False, "environment": _environment(config)}
    os.umask(0o022)
    processes.be_first_to_go()
    sshd.load()  # while all of it can still be read
    if os.geteuid() == 0:
        _give_up_root(config)
    processes.adopt_orphans()
    _prepare(config)
    ending = PlainInit(config).run()
    return {"poweroff": POWERED_OFF, "reboot": REBOOTED, "failure": DIED}[ending]


def _environment(config: Mapping[str, Any]) -> dict[str, str]:
    root = config["root"]
    found = {
        "PATH": f"{root}/usr/local/bin:{sshd.PATH}",
        "TMPDIR": f"{root}/tmp",  # noqa: S108 - the unit's own
        processes.MARK: config["directory"],
    }
    if config["index_url"]:
        found |= {"UV_DEFAULT_INDEX": config["index_url"], "PIP_INDEX_URL": config["index_url"]}
    return found


def _give_up_root(config: Mapping[str, Any]) -> None:
    """Nothing of a unit's may run as this computer's root."""
    uid = config["uid"]
    if not uid:
        sys.exit("the daemon is root and gave no other user for the unit")
    os.chown(config["root"], uid, uid)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if not os.access(config["python"], os.X_OK):
        sys.exit(
            f"only root may run {config['python']}: without user namespaces a unit needs a Python that every user may "
            "run. Use cloudrun as an ordinary user, or with such a Python."
        )


def _prepare(config: Mapping[str, Any]) -> None:
    """The unit's folder as a boot finds it."""
    root, home = config["root"], sshd.home(config)
    for name in _FRESH:
        shutil.rmtree(f"{root}/{name}", ignore_errors=True)
        os.makedirs(f"{root}/{name}")
    os.mkdir(root + commands.FOLDER)
    if config["first_boot"]:
        for name in _FOLDERS:
            os.makedirs(f"{root}/{name}")
        os.makedirs(f"{home}/.ssh", 0o700)
        keys = "".join(f"{key.strip()}\n" for key in config["authorized_keys"])
        disk.write(f"{home}/.ssh/authorized_keys", keys.encode(), 0o600)
        for name, target in config["tools"].items():
            os.symlink(target, f"{root}/usr/local/bin/{name}")
    commands.write(root, config["python"], _SUDO_SCRIPT)
