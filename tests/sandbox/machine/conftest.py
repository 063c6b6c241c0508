"""A machine without a region around it: started by `machine.start`, reached by OpenSSH's own client."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudrun.sandbox import machine
from tests.ports import free_port

UNIT_UID = 1_900_077_777
WAIT_S = 90.0


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def require(driver: str) -> None:
    """Skip a test that this computer cannot do."""
    if driver == "namespaces" and machine.driver() != "namespaces":
        pytest.skip("no user namespaces here")
    if driver == "plain" and os.geteuid() == 0 and not everybody_may_run(sys.executable):
        pytest.skip("without namespaces a unit of root's needs a Python that every user may run")


@functools.cache
def everybody_may_run(python: str) -> bool:
    try:
        done = subprocess.run([python, "-c", ""], user=65534, group=65534, extra_groups=[], check=False)
    except OSError:
        return False
    return done.returncode == 0


class Unit:
    """One unit and the keys to it."""

    def __init__(self, folder: Path, driver: str, **changes: Any) -> None:
        self.driver = driver
        self.folder = folder
        self.directory = folder / "unit"
        self.directory.mkdir()
        login_key = make_key(folder / "id")
        self.host_key = make_key(folder / "host")
        number = random.randrange(1, 1 << 22)
        address = f"127.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        self.spec = machine.MachineSpec(
            instance_id=f"i-{number:017x}",
            directory=self.directory,
            address=address,
            ssh_port=free_port(address),
            hostname="ip-127-0-0-9",
            user="ubuntu",
            authorized_keys=(login_key,),
            user_data=self.user_data(),
            metadata_url="http://127.0.0.1:9/meta",
            index_url=None,
            uid=UNIT_UID + number if os.geteuid() == 0 else None,
            readable=(Path(sys.prefix), Path(sys.base_prefix)),
            tools={"python3": Path(sys.executable).resolve()},
        )
        self.spec = dataclasses.replace(self.spec, **changes)
        self.machine: machine.Machine | None = None

    def user_data(self, **parts: Any) -> str:
        keys = {"ed25519_private": (self.folder / "host").read_text(), "ed25519_public": self.host_key}
        return "#cloud-config\n" + json.dumps({"ssh_keys": keys, **parts})

    def start(self, **parts: Any) -> Unit:
        """Boot, with these parts of user-data beside the host key, and wait for a login."""
        if parts:
            self.spec = dataclasses.replace(self.spec, user_data=self.user_data(**parts))
        self.machine = machine.start(self.spec, self.driver)
        give_up = time.monotonic() + WAIT_S
        while time.monotonic() < give_up:
            with contextlib.suppress(OSError):
                socket.create_connection((self.spec.address, self.spec.ssh_port), 1).close()
                return self
            if self.machine.wait(0.01) is not None:
                break
        raise AssertionError(f"the unit did not come up:\n{self.console}")

    @property
    def running(self) -> machine.Machine:
        assert self.machine is not None
        return self.machine

    @property
    def console(self) -> str:
        return (self.directory / machine.CONSOLE).read_text()

    def options(self, *, port_flag: str = "-p") -> list[str]:
        known = self.folder / "known_hosts"
        known.write_text(f"[{self.spec.address}]:{self.spec.ssh_port} {self.host_key}")
        settings = ("StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}", "IdentitiesOnly=yes", "BatchMode=yes")
        flags = [flag for setting in settings for flag in ("-o", setting)]
        return ["-F", "none", "-i", str(self.folder / "id"), port_flag, str(self.spec.ssh_port), *flags]

    @property
    def login(self) -> str:
        return f"{self.spec.user}@{self.spec.address}"

    def ssh(
        self, command: str | None, *flags: str, stdin: bytes = b"", login: str | None = None, timeout_s: float = 90
    ) -> subprocess.CompletedProcess[bytes]:
        words = ["ssh", *self.options(), *flags, login or self.login, *([] if command is None else [command])]
        return subprocess.run(words, input=stdin, capture_output=True, timeout=timeout_s, check=False)

    def out(self, command: str) -> str:
        """The output of a command that must succeed."""
        done = self.ssh(command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.decode().strip()

    def out_of_band_host_key(self) -> str:
        """The key that the unit made for itself, read from its disk."""
        return (self.directory / "root/etc/ssh/ssh_host_ed25519_key.pub").read_text()

    def end(self) -> None:
        if self.machine is not None:
            self.machine.kill()
        machine.remove(self.directory)


@pytest.fixture
def new_unit(tmp_path: Path) -> Iterator[Callable[..., Unit]]:
    """Makes units that are not started yet; ends those that were."""
    made: list[Unit] = []

    def make(driver: str = "namespaces", **changes: Any) -> Unit:
        require(driver)
        folder = tmp_path / f"u{len(made)}"
        folder.mkdir()
        made.append(Unit(folder, driver, **changes))
        return made[-1]

    yield make
    for unit in made:
        unit.end()


@pytest.fixture(scope="module", params=["namespaces", "plain"])
def unit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    """A unit that runs for all tests of a module, under each driver."""
    require(request.param)
    running = Unit(tmp_path_factory.mktemp("machine"), request.param)
    yield running.start()
    running.end()


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unit]:
    """A unit of the stronger driver that runs for all tests of a module."""
    require("namespaces")
    running = Unit(tmp_path_factory.mktemp("machine"), "namespaces")
    yield running.start()
    running.end()


def eventually(condition: Callable[[], Any]) -> Any:
    """What `condition` returns, as soon as that is true; fails after WAIT_S."""
    give_up = time.monotonic() + WAIT_S
    while time.monotonic() < give_up:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError("it never happened")


@pytest.fixture(name="eventually", scope="session")
def _eventually() -> Callable[[Callable[[], Any]], Any]:
    return eventually


@pytest.fixture(scope="session")
def processes() -> Callable[[str], list[int]]:
    """Pids of this computer's processes whose command line holds a text."""

    def find(text: str) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and text.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    return find
