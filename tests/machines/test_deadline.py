"""The deadline on a real systemd: armed first, kept over a reboot, carried out with nobody there."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cloudrun.plan.userdata import TIMER
from tests.machines.conftest import BOOT_S, GRACE_S, Ec2, Host, timers
from tests.sandbox.conftest import Project, wait_for


def in_s(seconds: float) -> datetime:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)


def fires_at(host: Host) -> float:
    """When the deadline's timer does, in seconds since 1970."""
    return float(timers(host)[TIMER]["next"]) / 1e6


def test_the_timer_is_armed_before_anybody_can_log_in_and_survives_a_reboot(ec2: Ec2) -> None:
    deadline = in_s(3600)
    (machine,) = ec2.launch(deadline)
    host = ec2.host(machine)
    assert fires_at(host) == deadline.timestamp()
    armed, ssh = (
        int(host.out(f"systemctl show {unit} --value --property ActiveEnterTimestampMonotonic"))
        for unit in (TIMER, "network-online.target")
    )
    assert 0 < armed < ssh
    address, boot = host.address, host.boot()

    host.ssh("sudo systemctl reboot")
    wait_for(lambda: host.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip() not in ("", boot), "a boot", BOOT_S)
    assert fires_at(host) == deadline.timestamp()
    assert ec2.state(machine) == "running"
    assert ec2.describe(machine)["PublicIpAddress"] == address


def test_the_machine_ends_at_its_deadline_and_not_before(ec2: Ec2) -> None:
    deadline = in_s(30)
    (machine,) = ec2.launch(deadline)
    host = ec2.host(machine)
    assert fires_at(host) == deadline.timestamp()
    ec2.wait_for_state(machine, "terminated")
    now = datetime.now(UTC)
    assert timedelta() <= now - deadline < timedelta(seconds=30)  # it took 1 to 3 s
    assert ec2.describe(machine)["StateReason"]["Code"] == "Client.InstanceInitiatedShutdown"


def test_a_machine_started_after_its_deadline_waits_some_minutes_for_its_owner(ec2: Ec2) -> None:
    deadline = in_s(25)
    (machine,) = ec2.launch(deadline, shutdown="stop")
    ec2.host(machine)
    ec2.wait_for_state(machine, "stopped")
    assert datetime.now(UTC) >= deadline
    before = datetime.now(UTC).timestamp()
    ec2.api.start_instances(InstanceIds=[machine])
    host = ec2.host(machine)
    assert before + GRACE_S - 5 <= fires_at(host) <= datetime.now(UTC).timestamp() + GRACE_S + 5


def test_no_client_and_no_agent_are_needed_for_the_deadline(
    project: Project, ec2: Ec2, unit_of: Callable[[Project], tuple[str, Host]]
) -> None:
    project.write("long.py", "import time; time.sleep(3600)")
    done = project.cloudrun("submit", "long.py", "--detach", "--deadline", "60s")
    assert done.returncode == 0, done.stderr
    machine, host = unit_of(project)
    deadline = project.ledger.units()[0].deadline
    host.ssh("sudo pkill -9 -f '[.]cloudrun/agent/'")
    ec2.wait_for_state(machine, "terminated")
    assert datetime.now(UTC) >= deadline


def test_cloud_init_is_done_without_errors(ec2: Ec2) -> None:
    (machine,) = ec2.launch(in_s(3600))
    host = ec2.host(machine)
    host.ssh("cloud-init status --wait")
    result = json.loads(host.out("cat /run/cloud-init/result.json"))["v1"]
    assert result["errors"] == []
    assert result["datasource"].startswith("DataSourceEc2")
    assert host.out("systemctl --failed --no-legend") == ""
    assert host.out("sudo -n id -u") == "0"
    assert host.out("cloud-init query instance_id") == machine
