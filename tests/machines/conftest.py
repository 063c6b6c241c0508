"""Real booted machines: a sandbox whose instances are Debian under systemd-nspawn. Linux, root, `-m machines`.

The root file system is built once a session; $TEST_MACHINES_CACHE names a folder that keeps it from one to the next.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from cloudrun.plan.userdata import user_data
from cloudrun.sandbox import client
from tests.sandbox.conftest import Project, aws, project, start, wait_for

__all__ = ["Project", "aws", "project", "start"]

HERE = Path(__file__).parent
BOOT_S = 120  # 16 that boot at once on two processors take 16 s; other tests may be running


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Not without being asked for: they need root, and packages from Debian."""
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.machines)
    if "machines" not in config.option.markexpr:
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)


@pytest.fixture(scope="session")
def region() -> client.Region:
    cache = Path(os.environ["CLOUDRUN_SANDBOX_DIR"]) / "cache"
    share_image(cache)
    return client.ensure("nspawn")


def share_image(cache: Path) -> None:
    """Let a sandbox use the root file system that is kept for tests."""
    kept = os.environ.get("TEST_MACHINES_CACHE")
    if kept and not (cache / "machines").exists():
        Path(kept).mkdir(parents=True, exist_ok=True)
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):  # another worker's
            (cache / "machines").symlink_to(Path(kept).absolute())


@pytest.fixture(autouse=True)
def _booted(region: client.Region) -> None:
    """Whatever a test does in the sandbox, it does on booted machines."""
    assert region.driver == "nspawn"


@dataclass(frozen=True)
class Host:
    """A machine as OpenSSH reaches it, believing only the host key that user-data gave it."""

    address: str
    key: Path
    known_hosts: Path

    def ssh(self, command: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
        options = {"BatchMode": "yes", "IdentitiesOnly": "yes", "ConnectTimeout": "3", "StrictHostKeyChecking": "yes"}
        options |= {"UserKnownHostsFile": str(self.known_hosts), "ServerAliveInterval": "5"}
        flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return subprocess.run(
            ["ssh", "-F", "none", "-i", str(self.key), *flags, f"ubuntu@{self.address}", command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def out(self, command: str) -> str:
        for _ in range(10):
            done = self.ssh(command)
            if done.returncode != 255 or "reset by peer" not in done.stderr:
                break
            time.sleep(1)  # cloud-init starts sshd anew when it has put its keys in place
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout.strip()

    def answers(self) -> bool:
        return self.ssh("true").returncode == 0

    def boot(self) -> str:
        return self.out("cat /proc/sys/kernel/random/boot_id")


GRACE_S = 300.0  # of a machine that is started after its deadline


class Ec2:
    """Instances launched without cloudrun, as any program launches them; terminated after the test."""

    def __init__(self, region: client.Region, folder: Path) -> None:
        self.api = api(region)
        self._folder = folder
        self._key = folder / "id"
        self._host_key = folder / "host"
        for path in (self._key, self._host_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
        self._name = f"key-{folder.name}-{os.getpid()}"
        self.api.import_key_pair(KeyName=self._name, PublicKeyMaterial=self._key.with_suffix(".pub").read_bytes())
        self.launched: list[str] = []

    @functools.cached_property
    def image(self) -> str:
        images = self.api.describe_images(Filters=[{"Name": "architecture", "Values": ["x86_64"]}])["Images"]
        return str(images[0]["ImageId"])

    def launch(self, deadline: datetime, *, count: int = 1, shutdown: str = "terminate") -> list[str]:
        answer = self.api.run_instances(
            ImageId=self.image,
            InstanceType="m7i.large",
            MinCount=count,
            MaxCount=count,
            KeyName=self._name,
            InstanceInitiatedShutdownBehavior=shutdown,
            MetadataOptions={"HttpTokens": "required"},
            UserData=user_data(
                deadline=deadline,
                host_private_key=self._host_key.read_text(),
                host_public_key=self._host_key.with_suffix(".pub").read_text(),
                overdue_grace_s=GRACE_S,
            ),
        )
        ids = [instance["InstanceId"] for instance in answer["Instances"]]
        self.launched += ids
        return ids

    def describe(self, instance_id: str) -> dict[str, Any]:
        return dict(self.api.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0])

    def state(self, instance_id: str) -> str:
        return str(self.describe(instance_id)["State"]["Name"])

    def wait_for_state(self, instance_id: str, state: str) -> None:
        wait_for(lambda: self.state(instance_id) == state, f"{instance_id} to be {state}", BOOT_S)

    def host(self, instance_id: str) -> Host:
        """The machine, once it lets us in."""
        self.wait_for_state(instance_id, "running")
        address = self.describe(instance_id)["PublicIpAddress"]
        known = self._folder / f"known_hosts.{address}"
        known.write_text(f"{address} {self._host_key.with_suffix('.pub').read_text()}")
        host = Host(address, self._key, known)
        wait_for(host.answers, f"a login on {address}", BOOT_S)
        return host

    def close(self) -> None:
        if self.launched:
            self.api.terminate_instances(InstanceIds=self.launched)
            for instance_id in self.launched:
                self.wait_for_state(instance_id, "terminated")
        self.api.delete_key_pair(KeyName=self._name)


def api(region: client.Region) -> Any:
    return boto3.client(
        "ec2",
        endpoint_url=region.endpoint_url,
        region_name=region.region,
        aws_access_key_id=region.access_key,
        aws_secret_access_key=region.secret_key,
    )


@pytest.fixture
def ec2(region: client.Region, tmp_path: Path) -> Iterator[Ec2]:
    folder = tmp_path / "ec2"
    folder.mkdir()
    ours = Ec2(region, folder)
    yield ours
    ours.close()


@pytest.fixture
def unit_of(region: client.Region) -> Callable[[Project], tuple[str, Host]]:
    """The machine of a project's one live unit, and a way in beside the client's: with its key, its pinned host key."""

    def find(of: Project) -> tuple[str, Host]:
        (unit,) = of.ledger.units()
        (key,) = [path for path in of.ledger.keys_dir.iterdir() if path.is_file() and path.suffix == ""]
        known = of.root.parent / "known_hosts"
        known.write_text(f"{unit.address} {unit.host_key}\n")
        assert unit.address is not None
        return unit.instance_id, Host(unit.address, key, known)

    return find


def timers(host: Host) -> dict[str, dict[str, Any]]:
    """systemd's own list, by unit; times in microseconds since 1970."""
    listed = json.loads(host.out("systemctl list-timers --all --output=json"))
    return {timer["unit"]: timer for timer in listed}
