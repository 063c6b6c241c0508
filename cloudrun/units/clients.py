"""Which process acts on units: a record that tells later, on the same computer, whether that process still lives."""

from __future__ import annotations

import functools
import getpass
import os
import socket
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

from cloudrun.core.ids import new_id
from cloudrun.core.records import ClientRecord

HEARTBEAT_S = 30.0
# A client on another computer is presumed dead after this silence: ten missed heartbeats.
SILENCE = timedelta(seconds=10 * HEARTBEAT_S)


def this_client(now: datetime) -> ClientRecord:
    pid = os.getpid()
    return ClientRecord(new_id("c"), socket.gethostname(), _boot_id(), pid, _started(pid), now)


def owner() -> str:
    """Who launches, for people who see the tag: user@computer."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def is_alive(client: ClientRecord | None, now: datetime) -> bool:
    """Same computer and boot: whether that very process runs. Elsewhere: whether it was heard of lately."""
    if client is None:
        return False
    if client.host != socket.gethostname():
        return now - client.heartbeat_at < SILENCE
    boot, _, namespace = client.boot_id.partition(" ")
    here, _, our_namespace = _boot_id().partition(" ")
    if boot != here:
        return False
    if namespace != our_namespace:  # a container that shares our name: its pids are not ours to look up
        return now - client.heartbeat_at < SILENCE
    return bool(client.pid_started) and _started(client.pid) == client.pid_started


@functools.cache
def _boot_id() -> str:
    """The boot, and on Linux the pid namespace, in one text."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # macOS
        found = subprocess.run(["sysctl", "-n", "kern.boottime"], capture_output=True, text=True, check=False)
        return found.stdout.strip()


def _started(pid: int) -> str:
    """When that pid was started, in the kernel's own words; "" where there is no such process (or only its corpse)."""
    try:
        # Field 22 of proc(5) stat; the command name may hold spaces and parentheses, so count from the last ")".
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()
