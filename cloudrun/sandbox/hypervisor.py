"""Instances become machines: starts one per instance, watches it, ends it, and reports what became of it to EC2."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from cloudrun.sandbox import machine
from cloudrun.sandbox.bridge import Bridge
from cloudrun.sandbox.environments import Environments
from cloudrun.sandbox.state import Driver

Outcome = Literal["powered_off", "rebooted", "died"]

PENDING_S = 0.3  # how long an instance stays `pending`: long enough that a client must wait for `running`
CONSOLE_TAIL_BYTES = 16 * 1024
END_TIMEOUT_S = 20.0  # for all machines together, when the region stops
LOGIN_USER = "ubuntu"
# Host user ids for units where the daemon is root: one per unit, above those that systemd gives to containers
# (524288 to 1879048191, systemd's "Users, Groups, UIDs and GIDs") and far above people's. Each region draws a block of
# its own, so that the units of two of root's regions are not one another's.
FIRST_UID = 1_900_000_000
UID_BLOCK, UID_BLOCKS = 100_000, 2_400

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PowerOn:
    """What a machine and its metadata are made from."""

    instance_id: str
    address: str
    ssh_port: int
    hostname: str
    authorized_keys: tuple[str, ...]
    user_data: str
    instance_type: str
    image_id: str
    region: str
    zone: str
    private_address: str
    key_name: str
    tokens_required: bool


class Reports(Protocol):
    def machine_runs(self, instance_id: str) -> None: ...

    def machine_ended(self, instance_id: str, outcome: Outcome) -> None: ...


class Hypervisor:
    """Every method is quick, and safe in any thread: machines are started and awaited in threads of their own."""

    def __init__(
        self,
        units: Path,
        *,
        metadata_url: Callable[[PowerOn], str],
        forget_metadata: Callable[[str], None],
        index_url: str | None,
        environments: Path,
        driver: Callable[[], Driver],
        image: Path | None = None,
        network: Bridge | None = None,
    ) -> None:
        """`image` and `network` are what booted machines need."""
        self.driver = driver
        self._image = image
        self._network = network
        self._directories = units
        self._metadata_url = metadata_url
        self._forget_metadata = forget_metadata
        self._index_url = index_url
        self._guard = threading.Lock()
        self._units: dict[str, _Unit] = {}
        self._addresses = network.addresses() if network is not None else _addresses()
        self._first_uid = FIRST_UID + UID_BLOCK * secrets.randbelow(UID_BLOCKS)
        self._uids: dict[str, int] = {}
        self._programs: tuple[dict[str, Path], tuple[Path, ...]] | None = None
        self._environments_folder = environments
        self._environments: Environments | None = None

    def next_address(self) -> tuple[str, int]:
        """Where the next machine shall listen: an address of its own on Linux, a port of its own elsewhere."""
        with self._guard:
            return next(self._addresses)

    def power_on(self, order: PowerOn, reports: Reports) -> None:
        with self._guard:
            uid = self._uids.setdefault(order.instance_id, self._first_uid + len(self._uids))
            unit = _Unit(self, order, uid, reports)
            self._units[order.instance_id] = unit
        unit.start()

    def end(self, instance_id: str) -> None:
        """Ask for the machine's end; `machine_ended` is reported once nothing of it is left."""
        with self._guard:
            unit = self._units.get(instance_id)
        if unit is not None:
            threading.Thread(target=unit.end, name=f"end {instance_id}", daemon=True).start()

    def reboot(self, instance_id: str) -> None:
        with self._guard:
            unit = self._units.get(instance_id)
        if unit is not None:
            threading.Thread(target=unit.reboot, name=f"reboot {instance_id}", daemon=True).start()

    def remove(self, instance_id: str) -> None:
        """Forget a terminated instance: its disk, its metadata."""
        self._forget_metadata(instance_id)
        machine.remove(self._directories / instance_id)

    def end_all(self) -> None:
        """Kill every machine, all at the same time, wait for them for END_TIMEOUT_S, and remove their disks."""
        if self._environments is not None:
            self._environments.stop()
        give_up = time.monotonic() + END_TIMEOUT_S
        with self._guard:
            units = list(self._units.values())
        for unit in units:
            threading.Thread(target=unit.end, name=f"end {unit.order.instance_id}", daemon=True).start()
        for unit in units:
            unit.join(max(0.0, give_up - time.monotonic()))
            machine.remove(self._directories / unit.order.instance_id)
        if self._network is not None:
            self._network.close()

    def spec(self, order: PowerOn, uid: int) -> machine.MachineSpec:
        directory = self._directories / order.instance_id
        directory.mkdir(mode=0o700, exist_ok=True)
        tools, readable, environments = self._furnish()
        return machine.MachineSpec(
            instance_id=order.instance_id,
            directory=directory,
            address=order.address,
            ssh_port=order.ssh_port,
            hostname=order.hostname,
            user=LOGIN_USER,
            authorized_keys=order.authorized_keys,
            user_data=order.user_data,
            metadata_url=self._metadata_url(order),
            index_url=self._index_url,
            uid=uid if os.geteuid() == 0 else None,
            readable=readable,
            tools=tools,
            environments=environments.ready(),
            image=self._image,
            plug=self._network.plug if self._network else None,
        )

    def _furnish(self) -> tuple[dict[str, Path], tuple[Path, ...], Environments]:
        """What machines see of this computer. Found once, when the first one boots."""
        with self._guard:  # sysconfig, which uv's package asks, is not safe in two threads at once
            if self._programs is None or self._environments is None:
                self._programs = _programs()
                tools = self._programs[0]
                pythons = {name.removeprefix("python"): path for name, path in tools.items() if "." in name}
                uv, folder = tools.get("uv"), self._environments_folder
                self._environments = Environments(folder, uv, pythons, self._index_url)
            return *self._programs, self._environments

    def learn(self, order: PowerOn) -> None:
        """A machine has ended: what it was provisioned with is kept for the next ones."""
        if self._environments is not None and self.driver() != "plain":
            disk = machine.disk_of(self._directories / order.instance_id, self.driver())
            self._environments.learn(disk, f"home/{LOGIN_USER}")

    def console_tail(self, order: PowerOn) -> str:
        """The last lines, of a file that a machine can make as long as it likes."""
        try:
            with (self._directories / order.instance_id / machine.CONSOLE).open("rb") as console:
                console.seek(max(0, os.fstat(console.fileno()).st_size - CONSOLE_TAIL_BYTES))
                return "\n".join(console.read(CONSOLE_TAIL_BYTES).decode("utf-8", "replace").splitlines()[-20:])
        except OSError:
            return "(nothing)"

    def boot(self, order: PowerOn, uid: int) -> machine.Machine:
        return machine.start(self.spec(order, uid), self.driver())


class _Unit(threading.Thread):
    """One power-on of one instance, until its machine is gone; reboots included."""

    def __init__(self, hypervisor: Hypervisor, order: PowerOn, uid: int, reports: Reports) -> None:
        super().__init__(name=order.instance_id, daemon=True)
        self.order = order
        self._hypervisor = hypervisor
        self._uid = uid
        self._reports = reports
        self._ending = threading.Event()
        self._rebooting = threading.Event()
        self._guard = threading.Lock()
        self._machine: machine.Machine | None = None

    def run(self) -> None:
        outcome: Outcome = "powered_off"
        try:
            if not self._ending.wait(PENDING_S):
                outcome = self._live()
        except Exception:  # noqa: BLE001 (whatever it was: an instance without a machine must not stay `running`)
            _LOG.exception("%s: the machine could not be started or watched", self.order.instance_id)
            outcome = "died"
        _LOG.info("%s: ended (%s)", self.order.instance_id, "asked to" if self._ending.is_set() else outcome)
        if outcome == "died" and not self._ending.is_set():
            _LOG.error(
                "%s: its console said last:\n%s", self.order.instance_id, self._hypervisor.console_tail(self.order)
            )
        try:
            self._hypervisor.learn(self.order)
        except Exception:  # noqa: BLE001 (whatever it left on its disk: its end must be reported)
            _LOG.exception("%s: what it was provisioned with could not be read", self.order.instance_id)
        self._reports.machine_ended(self.order.instance_id, outcome)

    def end(self) -> None:
        self._ending.set()
        self._kill()

    def reboot(self) -> None:
        self._rebooting.set()
        self._kill()

    def _live(self) -> Outcome:
        while True:
            running = self._hypervisor.boot(self.order, self._uid)
            with self._guard:
                self._machine = running
            if self._ending.is_set():
                running.kill()
            else:
                _LOG.info("%s: on at %s:%d", self.order.instance_id, self.order.address, self.order.ssh_port)
                self._reports.machine_runs(self.order.instance_id)
            outcome = running.wait(None) or "died"
            running.kill()  # its first process is gone; what others it left go now
            with self._guard:
                self._machine = None
            again = outcome == "rebooted" or self._rebooting.is_set()
            self._rebooting.clear()
            if self._ending.is_set() or not again:
                return outcome

    def _kill(self) -> None:
        with self._guard:
            running = self._machine
        if running is not None:
            running.kill()


def _addresses() -> Iterator[tuple[str, int]]:
    """On Linux all of 127.0.0.0/8 is this computer, so each unit gets an address and all share a port; the block and
    the port are drawn by lot, so that two users' sandboxes do not meet. Elsewhere a free port of 127.0.0.1 each."""
    if not sys.platform.startswith("linux"):
        while True:
            yield "127.0.0.1", _free_port("127.0.0.1")
    port = _free_port("0.0.0.0")  # noqa: S104 (never listened on: it must be free on each address)
    first = (64 + secrets.randbelow(128)) << 16 | secrets.randbelow(256) << 8
    number = first
    while True:
        number += 1
        if number & 0xFF not in (0, 255):
            yield f"127.{number >> 16 & 0xFF}.{number >> 8 & 0xFF}.{number & 0xFF}", port


def _free_port(address: str) -> int:
    """A port below the range that systems hand out by themselves (from 32768 on Linux), so that it stays free."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with socket.socket() as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
            return port


def _programs() -> tuple[dict[str, Path], tuple[Path, ...]]:
    """Programs that a machine has beside the system's: uv, and every Python found here. With the host paths that they
    need to read: this process's own environment too, because the machine's SSH server runs from it."""
    import cloudrun

    tools: dict[str, Path] = {}
    readable = {Path(sys.prefix), Path(sys.base_prefix), Path(cloudrun.__file__).resolve().parent}
    if uv := find_uv():
        tools["uv"] = uv
        readable.add(uv.parent)
    for minor in range(9, 15):
        name = f"python3.{minor}"
        found = shutil.which(name)
        own = minor == sys.version_info.minor
        executable = Path(sys.base_prefix, "bin", name) if own else Path(found).resolve() if found else None
        # a pyenv shim resolves to a shell script elsewhere: only what stands beside its standard library is a Python
        if executable is not None and (executable.parent.parent / "lib" / name / "os.py").exists():
            tools[name] = executable
            readable.add(executable.parent.parent)
    if own_python := tools.get(f"python3.{sys.version_info.minor}"):
        tools["python3"] = own_python
    return tools, tuple(sorted(readable))


def find_uv() -> Path | None:
    import uv

    try:
        return Path(uv.find_uv_bin()).resolve()
    except FileNotFoundError:
        return None
