"""The network of booted machines: a bridge with a private subnet, which this computer has an address on.

The bridge is in a network namespace that nothing but a descriptor of the daemon's keeps alive, and so is one end of the
cable to it: when the daemon is gone, however it ended, the kernel takes all of it down.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from cloudrun.core.errors import SandboxError

SSH_PORT = 22
PREFIX = 20  # 4,093 addresses: one is used again only after as many power-ons
_TIMEOUT_S = 20.0
_TRIES = 50


@dataclass(frozen=True)
class Plug:
    """What a machine needs to be on the bridge."""

    namespace: str  # a path that opens the bridge's network namespace
    bridge: str
    prefix: int


class Bridge:
    def __init__(self) -> None:
        """Raises SandboxError where it cannot be made."""
        network = _free_subnet()
        hosts = network.hosts()
        self.address = str(next(hosts))  # this computer's
        self._hosts = itertools.cycle(list(hosts))
        self._cable = f"cr{secrets.token_hex(5)}"
        self._namespace = _new_namespace()
        path = f"/proc/{os.getpid()}/fd/{self._namespace}"
        self.plug = Plug(path, "bridge", PREFIX)
        try:
            inside(path, "link set lo up", "link add bridge type bridge", "link set bridge up")
            run_ip(
                f"link add {self._cable} type veth peer name uplink netns {path}",
                f"address add {self.address}/{PREFIX} dev {self._cable}",
                f"link set {self._cable} up",
            )
            inside(path, "link set uplink master bridge up")
        except BaseException:
            self.close()
            raise

    def addresses(self) -> Iterator[tuple[str, int]]:
        """Where machines listen, one after the other."""
        for host in self._hosts:
            yield str(host), SSH_PORT

    def close(self) -> None:
        """Take it down. The machines must have ended."""
        subprocess.run(["ip", "link", "delete", self._cable], capture_output=True, timeout=_TIMEOUT_S, check=False)
        os.close(self._namespace)


def inside(namespace: str, *commands: str) -> None:
    """Run commands of ip(8) in the network namespace that the path opens. Raises SandboxError."""
    _batch(["nsenter", f"--net={namespace}", "ip", "-batch", "-"], commands)


def run_ip(*commands: str) -> None:
    """Run commands of ip(8) here. Raises SandboxError."""
    _batch(["ip", "-batch", "-"], commands)


def _batch(program: list[str], commands: tuple[str, ...]) -> None:
    try:
        subprocess.run(
            program, input="\n".join(commands), capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except subprocess.CalledProcessError as error:
        raise SandboxError(f"the machines' network could not be made: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"the machines' network could not be made: {error}") from error


def _new_namespace() -> int:
    """A descriptor of a new network namespace. Made by a process of its own: this one has threads."""
    words = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        if not maker.stdout or not maker.stdout.read(1):
            raise SandboxError("this computer lets nobody make a network namespace, which booted machines need")
        try:
            return os.open(f"/proc/{maker.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            maker.kill()


def _free_subnet() -> ipaddress.IPv4Network:
    """A private subnet that no route of this computer leads into, drawn by lot."""
    told = subprocess.run(
        ["ip", "-json", "-4", "route", "show", "table", "all"],
        capture_output=True, text=True, timeout=_TIMEOUT_S, check=True,
    )  # fmt: skip
    routes = [each["dst"] for each in json.loads(told.stdout or "[]") if each.get("dst", "default") != "default"]
    taken = [ipaddress.IPv4Network(route, strict=False) for route in routes]
    for _ in range(_TRIES):
        drawn = ipaddress.IPv4Network((0x0A000000 | secrets.randbelow(1 << (PREFIX - 8)) << (32 - PREFIX), PREFIX))
        if not any(drawn.overlaps(other) for other in taken):
            return drawn
    raise SandboxError("this computer has routes into every private subnet that the machines could have")
