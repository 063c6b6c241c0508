"""Spot instances of the region are taken back on request, with the notices that EC2 gives, seen from inside a unit."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncssh
import pytest

from cloudrun.core.errors import SandboxError, UsageError
from cloudrun.sandbox import client
from tests.sandbox.conftest import Project
from tests.sandbox.test_region_ec2 import Ec2, ec2, key, on_machine
from tests.waiting import until

__all__ = ["ec2", "key"]  # fixtures

Key = tuple[str, asyncssh.SSHKey]
SPOT: dict[str, Any] = {"InstanceMarketOptions": {"MarketType": "spot"}}
ASK = """\
import os, urllib.error, urllib.request as r
base = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "/latest/"
wish = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
own = {"X-aws-ec2-metadata-token": r.urlopen(r.Request(base + "api/token", headers=wish, method="PUT")).read().decode()}
for path in ("spot/instance-action", "spot/termination-time", "events/recommendations/rebalance"):
    try:
        print(r.urlopen(r.Request(base + "meta-data/" + path, headers=own)).read().decode())
    except urllib.error.HTTPError as error:
        print(error.code)
"""


@pytest.fixture
def spot(ec2: Ec2, key: Key) -> tuple[str, Callable[[], list[str]]]:
    """A running spot instance, and what it is told of its future by each of the three paths."""
    name, own = key
    (instance_id,) = ec2.launch(KeyName=name, **SPOT)
    running = ec2.wait(instance_id, "running")
    return instance_id, lambda: on_machine(running, own, f"python3 -c '{ASK}'").splitlines()


def at(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def test_the_market_it_came_from_is_kept(ec2: Ec2) -> None:
    (bought,) = ec2.launch(**SPOT)
    (rented,) = ec2.launch()
    assert ec2.look(bought)["InstanceLifecycle"] == "spot"
    assert "InstanceLifecycle" not in ec2.look(rented)


def test_nothing_is_announced_before_a_notice(spot: tuple[str, Callable[[], list[str]]]) -> None:
    _, told = spot
    assert told() == ["404", "404", "404"]


def test_an_instance_that_has_its_notice_ends_at_its_time(ec2: Ec2) -> None:
    (instance_id,) = ec2.launch(**SPOT)
    ec2.wait(instance_id, "running")
    asked = datetime.now(UTC)
    said = client.interrupt(instance_id, 3.0)
    assert asked + timedelta(seconds=1) < at(said["time"]) < datetime.now(UTC) + timedelta(seconds=5)
    ended = ec2.wait(instance_id, "terminated")
    assert datetime.now(UTC) >= at(said["time"])
    assert ended["StateReason"] == {
        "Code": "Server.SpotInstanceTermination",
        "Message": "Server.SpotInstanceTermination: Spot instance termination",
    }
    assert re.fullmatch(r"Service initiated \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GMT\)", ended["StateTransitionReason"])


def test_a_rebalance_recommendation_is_in_the_metadata_and_ends_nothing(
    ec2: Ec2, spot: tuple[str, Callable[[], list[str]]]
) -> None:
    instance_id, told = spot
    said = client.interrupt(instance_id, 0.001, rebalance=True)
    time.sleep(0.5)
    action, _, rebalance = told()
    assert (action, json.loads(rebalance)) == ("404", {"noticeTime": said["noticeTime"]})
    assert ec2.state(instance_id) == "running"


def test_a_notice_is_in_the_metadata_survives_a_reboot_and_comes_once(
    ec2: Ec2, key: Key, spot: tuple[str, Callable[[], list[str]]]
) -> None:
    instance_id, told = spot
    assert told()[0] == "404"  # and it has booted
    said = client.interrupt(instance_id, 600.0)
    action, its_time, rebalance = told()
    assert json.loads(action) == {"action": "terminate", "time": said["time"]}
    assert (its_time, rebalance) == (said["time"], "404")
    running = ec2.look(instance_id)
    assert running["State"]["Name"] == "running"
    assert on_machine(running, key[1], "touch /run/before && echo ok") == "ok\n"
    ec2.client.reboot_instances(InstanceIds=[instance_id])
    until(lambda: on_machine(running, key[1], "test -e /run/before || echo afresh") == "afresh\n")
    assert json.loads(told()[0])["time"] == said["time"]
    with pytest.raises(SandboxError, match="has had its notice"):
        client.interrupt(instance_id, 1.0)


def test_an_instance_that_ended_before_its_time_keeps_its_own_reason(ec2: Ec2) -> None:
    (instance_id,) = ec2.launch(**SPOT)
    ec2.wait(instance_id, "running")
    said = client.interrupt(instance_id, 4.0)
    ec2.client.terminate_instances(InstanceIds=[instance_id])
    ec2.wait(instance_id, "terminated")
    until(lambda: datetime.now(UTC) > at(said["time"]) + timedelta(seconds=1))
    ended = ec2.look(instance_id)
    assert ended["StateReason"]["Code"] == "Client.UserInitiatedShutdown"
    assert ended["StateTransitionReason"].startswith("User initiated (")


def test_only_a_spot_instance_that_runs_is_taken_back(ec2: Ec2) -> None:
    (rented,) = ec2.launch()
    ec2.wait(rented, "running")
    with pytest.raises(SandboxError, match="not a Spot Instance") as refused:
        client.interrupt(rented)
    assert "--spot" in refused.value.next_step
    with pytest.raises(UsageError, match=f"no instance 'i-0123456789abcdef0': .*{rented}"):
        client.interrupt("i-0123456789abcdef0")
    (ended,) = ec2.launch(**SPOT)
    ec2.client.terminate_instances(InstanceIds=[ended])
    ec2.wait(ended, "terminated")
    with pytest.raises(SandboxError, match="not in a state"):
        client.interrupt(ended)


def test_the_command_says_when_it_ends(ec2: Ec2, project: Project) -> None:
    (instance_id,) = ec2.launch(**SPOT)
    ec2.wait(instance_id, "running")
    recommended: dict[str, Any] = project.json("sandbox", "interrupt", instance_id, "--rebalance")
    assert recommended["instance_id"] == instance_id
    assert at(recommended["noticeTime"])
    notice = project.json("sandbox", "interrupt", instance_id, "--in", "1s")
    assert (notice["action"], notice["instance_id"]) == ("terminate", instance_id)
    reason = ec2.wait(instance_id, "terminated")["StateReason"]
    assert reason["Code"] == "Server.SpotInstanceTermination"


@pytest.mark.parametrize("in_", ["soon", "5", "-1s", ""])
def test_a_notice_of_no_duration_is_a_usage_error(project: Project, in_: str) -> None:
    done = project.cloudrun_here("sandbox", "interrupt", "i-1", f"--in={in_}")
    assert done.returncode == 2
    assert "--in" in done.stderr
