"""Machines that were stopped, used again; and machines that are somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from cloudrun import process_unit
from cloudrun.core.errors import NotFound
from tests.sandbox.conftest import Aws, Project, wait_for


@pytest.mark.slow
def test_a_stopped_unit_whose_deadline_has_passed_starts_again_with_a_new_one(
    project: Project, nothing_left: Callable[[Project], None]
) -> None:
    with process_unit(project=project.root, on_exit="stop", deadline="20s", observe=lambda event: None) as unit:
        unit.run("echo kept > file")
    (before,) = project.ledger.units()
    assert before.state == "stopped"
    wait_for(lambda: datetime.now(UTC) > before.deadline, "the deadline to pass")
    assert project.json("reap")["actions"] == [], "one that is stopped on purpose has no end"

    with process_unit(
        project=project.root, instance_id=before.instance_id, deadline="1h", observe=lambda event: None
    ) as unit:
        assert unit.run("cat file").stdout == "kept\n"
        (now,) = project.ledger.units()
        assert now.host_key == before.host_key, "the same machine, known by its own key"
        assert timedelta(minutes=50) < unit.deadline - datetime.now(UTC) < timedelta(hours=1)
        timer = unit.run("cat /etc/systemd/system/cloudrun-deadline.timer").stdout
        assert f"OnCalendar={unit.deadline:%Y-%m-%d %H:%M:%S} UTC" in timer
    nothing_left(project)


def test_a_machine_that_is_not_ours_is_refused_and_left_alone(project: Project, aws: Aws) -> None:
    image = aws("ec2", "describe-images", "--filters", "Name=architecture,Values=x86_64")["Images"][0]["ImageId"]
    launched = aws("ec2", "run-instances", "--image-id", image, "--instance-type", "m7i.large", "--count", "1")
    theirs = launched["Instances"][0]["InstanceId"]
    try:
        project.write("hello.py", "print('n: 1')")
        done = project.cloudrun("submit", "hello.py", "--instance-id", theirs)
        assert done.returncode == 2
        assert "is no machine that this project's ledger has launched" in done.stderr
        with pytest.raises(NotFound, match=theirs), process_unit(project=project.root, instance_id=theirs):
            raise AssertionError("it may not be used")
        state = aws("ec2", "describe-instances", "--instance-ids", theirs)["Reservations"][0]["Instances"][0]["State"]
        assert state["Name"] in ("pending", "running")
    finally:
        aws("ec2", "terminate-instances", "--instance-ids", theirs)
