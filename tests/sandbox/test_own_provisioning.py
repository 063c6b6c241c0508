"""What a project brings along for its machines: a wheel, a playbook, system packages, tags."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sandbox.conftest import Aws, Project

PLAYBOOK = """
- hosts: all
  gather_facts: true
  tasks:
    - ansible.builtin.copy:
        content: "on {{ ansible_system }}"
        dest: ~/greeting
"""
JOB = """
import json, pathlib, mine
print(pathlib.Path("~/greeting").expanduser().read_text())
print(json.dumps({"n": mine.n}))
"""


def write_wheel(folder: Path) -> None:
    folder.mkdir()
    files = {
        "mine.py": "n = 7\n",
        "mine-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n",
        "mine-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files["mine-1.0.dist-info/RECORD"] = "".join(f"{name},,\n" for name in [*files, "mine-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(folder / "mine-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.mark.slow
def test_a_wheel_a_playbook_and_tags_are_where_they_should_be(
    project: Project, aws: Aws, nothing_left: Callable[[Project], None]
) -> None:
    write_wheel(project.root / "wheels")
    project.write("requirements.txt", "./wheels/mine-1.0-py3-none-any.whl\n")
    project.write("setup/extra.yml", PLAYBOOK)
    project.write("cloudrun.toml", 'playbook = "setup/extra.yml"\ntags = { team = "ml" }\napt = ["libc6"]\n')
    project.write("below/job.py", JOB)
    run = project.json("submit", "below/job.py", "--tag", "cost=42", "--tag", "team=ops")
    assert run["scores"] == {"n": 7}
    (record,) = project.ledger.runs()
    assert "on Linux" in project.cloudrun("show", record.run_id, "--log").stdout
    (instance,) = aws("ec2", "describe-instances", "--instance-ids", record.instance_id)["Reservations"][0]["Instances"]
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert (tags["team"], tags["cost"]) == ("ops", "42"), "flags come before the file"
    assert tags["cloudrun:ledger"] == project.ledger.ledger_id
    nothing_left(project)


def test_a_setting_that_the_sandbox_cannot_honour_is_said(project: Project) -> None:
    project.write("hello.py", "print('n: 1')")
    refused = project.cloudrun("submit", "hello.py", "--instance-profile", "trainer")
    assert refused.returncode == 2
    assert "instance_profile: the sandbox has no IAM" in refused.stderr
    assert project.ledger.launches() == []
