"""One unit as the hypervisor sees it: start it, wait for its end, kill it with all its processes, remove its disk.

Three drivers. `namespaces` (Linux) makes a container without any privilege: see container.py. `plain` is for everything
else: see plain.py. `nspawn` (Linux and root, where it is asked for) boots a real Debian: see nspawn.py. What a driver
cannot promise is what `weaker` says.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from cloudrun.core.errors import SandboxError
from cloudrun.sandbox import libraries
from cloudrun.sandbox.bridge import Plug
from cloudrun.sandbox.guest import processes
from cloudrun.sandbox.state import Driver

Ending = Literal["powered_off", "rebooted", "died"]
_ENDINGS: Mapping[int, Ending] = {0: "powered_off", 10: "rebooted"}
_MODULES: Mapping[Driver, str] = {
    "namespaces": "cloudrun.sandbox.container",
    "plain": "cloudrun.sandbox.plain",
    "nspawn": "cloudrun.sandbox.nspawn",
}
_BOOT = "import importlib, sys; sys.path[:] = sys.argv[2:]; sys.exit(importlib.import_module(sys.argv[1]).main())"
_KILL_TIMEOUT_S = 15.0
_PROBE_TIMEOUT_S = 10.0
_PROBE_UID = 65534  # nobody
CONSOLE = "console.log"


@dataclass(frozen=True)
class MachineSpec:
    """What a unit is. `directory` is its own: empty at first, and as it left it after a stop."""

    instance_id: str
    directory: Path
    address: str
    ssh_port: int
    hostname: str
    user: str
    authorized_keys: tuple[str, ...]
    user_data: str
    metadata_url: str
    index_url: str | None  # the package index that uv and pip of the unit use
    uid: int | None  # host uid it runs as, where the daemon is root
    readable: tuple[Path, ...]  # host folders that it sees, read-only, at the same place
    tools: Mapping[str, Path] = field(default_factory=dict)  # programs of the host by their name in /usr/local/bin
    environments: Mapping[str, Path] = field(default_factory=dict)  # kept Python environments by their fingerprint
    image: Path | None = None  # nspawn: the root file system it boots from
    plug: Plug | None = None  # nspawn: the network it is on


class Machine:
    """A unit that was started. Safe to use from several threads."""

    def __init__(self, keeper: subprocess.Popen[bytes], sweep: Callable[[], None]) -> None:
        self._keeper = keeper
        self._sweep = sweep

    @property
    def pid(self) -> int:
        return self._keeper.pid

    def wait(self, timeout_s: float | None) -> Ending | None:
        """How the unit ended, or None where it still runs after `timeout_s`. No process of it is left then."""
        try:
            code = self._keeper.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._let_go()
        self._sweep()
        return _ENDINGS.get(code, "died")

    def kill(self) -> None:
        """End it at once. Every process of it is gone when this returns. Raises SandboxError where one cannot die."""
        self._let_go()
        if self.wait(_KILL_TIMEOUT_S) is None:
            self._keeper.kill()
            self.wait(None)
            raise SandboxError(
                f"process {self.pid} did not end its unit within {_KILL_TIMEOUT_S:.0f} s",
                next_step="cloudrun sandbox stop --force",
            )

    def configure(self, config: Mapping[str, Any]) -> None:
        """Tell the keeper what to start."""
        if self._keeper.stdin is not None:
            self._keeper.stdin.write(json.dumps(config).encode() + b"\n")
            self._keeper.stdin.flush()

    def _let_go(self) -> None:
        """Close the keeper's input, which it takes as the word to end the unit."""
        if self._keeper.stdin is not None:
            with contextlib.suppress(OSError):
                self._keeper.stdin.close()


@functools.cache
def driver() -> Driver:
    """The stronger driver that works here, found out by making a container with it and throwing it away."""
    if not sys.platform.startswith("linux"):
        return "plain"
    with tempfile.TemporaryDirectory(prefix="cloudrun-probe-") as directory:
        uid = _PROBE_UID if os.geteuid() == 0 else None
        spec = MachineSpec(
            "i-0", Path(directory), "127.0.0.1", 0, "probe", "ubuntu", (), "", "", None, uid, readable=(), tools={}
        )
        try:
            trial = start(spec, "namespaces", probe=True)
            works = trial.wait(_PROBE_TIMEOUT_S) == "powered_off"
            trial.kill()
        except SandboxError:
            works = False
        return "namespaces" if works else "plain"


def weaker(driver: Driver) -> tuple[str, ...]:
    """What a driver cannot promise, in sentences for the user."""
    if driver == "nspawn":
        return (
            "Root of a machine is nearly root of this computer: run only jobs there that you trust.",
            "Machines share this computer's kernel, clock, memory and processors.",
            "They have no network beyond each other, this computer and the region.",
            f"More than about 20 at once may need a higher fs.inotify.max_user_instances; it is {_inotify()}.",
            "apt in a machine finds what provisioning installs and nothing else.",
        )
    network = (
        "Units share this computer's network: a job can reach what listens on its loopback address and, on a Linux "
        "older than 6.12, its abstract Unix sockets."
    )
    if driver == "namespaces":
        return (network,)
    return (
        network,
        "There are no user namespaces here: a job runs with your own rights and can read and write your files.",
        "Tasks for root (sudo, become) are refused; user-data may write only to the unit's own folder.",
        "A process that leaves its parents and clears its environment can outlive its unit, unless cloudrun is root.",
        "`shutdown` ends the unit only where it is found on PATH; by an absolute path it asks this computer.",
    )


def start(spec: MachineSpec, driver: Driver, *, probe: bool = False) -> Machine:
    """Boot a unit. Returns at once; the unit answers at its SSH port some tenths of a second later.

    Raises SandboxError where it cannot be started at all; what goes wrong later ends the machine ("died"), with the
    reason in `console.log` of its directory. A `probe` powers itself off before anything of a unit's runs.
    """
    root = spec.directory / "root"
    try:
        first_boot = not root.exists()
        if first_boot:
            _make_root(root, spec.uid, driver)
        config = _config(spec, root, first_boot=first_boot) | {"probe": probe}
        with (spec.directory / CONSOLE).open("ab") as console:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, _MODULES[driver], *sys.path],
                stdin=subprocess.PIPE,
                stdout=console,
                stderr=console,
                cwd="/",
                env={"PATH": os.defpath, "LANG": "C.UTF-8", processes.MARK: str(spec.directory)},
                start_new_session=True,
            )
        machine = Machine(keeper, _sweep(driver, spec.directory, spec.uid))
        machine.configure(config)
    except OSError as error:
        raise SandboxError(f"{spec.instance_id} could not be started: {error}") from error
    return machine


def disk_of(directory: Path, driver: Driver) -> Path:
    """Where in a unit's directory its files are, as far as they are its own."""
    return directory / ("disk" if driver == "nspawn" else "root")


def _inotify() -> str:
    try:
        return Path("/proc/sys/fs/inotify/max_user_instances").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _make_root(root: Path, uid: int | None, driver: Driver) -> None:
    """The unit's disk, empty. Root's own folders are closed to the plain driver's user: there it is a link to one.

    That one lies in a folder of root's: whoever may rename a unit's disk could put a link to anywhere in its place,
    which root would follow when it removes the disk.
    """
    if driver == "plain" and os.geteuid() == 0:
        held = Path(tempfile.mkdtemp(prefix="cloudrun-unit-", dir="/var/tmp"))
        held.chmod(0o711)
        root.symlink_to(held / "root")
        (held / "root").mkdir()
    else:
        if driver == "nspawn":  # what overlayfs wants; the root is where it is mounted
            (root.parent / "work").mkdir(exist_ok=True)
            disk_of(root.parent, driver).mkdir(exist_ok=True)
        root.mkdir()
    if uid is not None:
        os.chown(root, uid, uid)


def _sweep(driver: Driver, directory: Path, uid: int | None) -> Callable[[], None]:
    """What is to be done once the keeper has ended. A namespace ends with its PID 1; a process tree may not."""
    if driver == "namespaces":
        return lambda: None
    if driver == "nspawn":
        from cloudrun.sandbox import nspawn

        return lambda: nspawn.sweep(directory)
    return lambda: processes.kill_marked(str(directory), uid)


def _config(spec: MachineSpec, root: Path, *, first_boot: bool) -> dict[str, Any]:
    return {
        "instance_id": spec.instance_id,
        "directory": str(spec.directory),
        "root": str(root.resolve()),
        "first_boot": first_boot,
        "address": spec.address,
        "ssh_port": spec.ssh_port,
        "hostname": spec.hostname,
        "user": spec.user,
        "authorized_keys": list(spec.authorized_keys),
        "user_data": spec.user_data,
        "metadata_url": spec.metadata_url,
        "index_url": spec.index_url,
        "uid": spec.uid,
        "readable": [str(path) for path in (*spec.readable, *spec.environments.values())],
        "environments": {fingerprint: str(path) for fingerprint, path in spec.environments.items()},
        "disk": str(disk_of(spec.directory, "nspawn")),
        "image": str(spec.image),
        "plug": asdict(spec.plug) if spec.plug else None,
        "tools": {name: os.path.realpath(path) for name, path in spec.tools.items()},
        "python": os.path.realpath(sys.executable),
        "import_path": libraries.folders(),
        "prefix": "",
        "roots_tasks": True,
        "environment": {},
    }


def remove(directory: Path) -> None:
    """Delete a unit's directory, if it is there. The unit must have ended."""
    if (directory / "root").is_symlink():  # made by `_make_root`; the unit may write neither it nor what it names
        remove((directory / "root").readlink().parent)
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError:  # folders that the unit had made unreadable
        for above, names, _ in os.walk(directory):
            for folder in (Path(above, name) for name in names):
                if not folder.is_symlink():
                    folder.chmod(0o700)
        shutil.rmtree(directory)
