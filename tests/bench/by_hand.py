"""What a careful user would write instead of `cloudrun submit`: boto3, ansible-playbook, scp and ssh, cleaned up after.

    python -m tests.bench.by_hand SCRIPT REQUIREMENTS RESULTS

AWS is found as boto3 finds it. It is not hampered: uv makes the environment where the machine has it (pip is some
twenty times slower), EC2 is asked every second where boto3's own pause is 15 s, and one connection serves scp and ssh.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import boto3

IMAGE = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
PATIENCE = {"Delay": 1, "MaxAttempts": 300}
USER = "ubuntu"
SSH_S = 300.0
PLAYBOOK = """\
- hosts: all
  gather_facts: false
  tasks:
    - name: Look for uv
      ansible.builtin.command: uv --version
      register: uv
      failed_when: false
      changed_when: false
    - name: Send the requirements
      ansible.builtin.copy:
        src: "{{ requirements }}"
        dest: requirements.txt
        mode: "0644"
    - name: Make the environment with uv
      ansible.builtin.shell: uv venv -q env && uv pip install -q --python env/bin/python -r requirements.txt
      when: uv.rc == 0
    - name: Install what makes virtual environments
      become: true
      ansible.builtin.apt:
        name: python3-venv
        update_cache: true
      when: uv.rc != 0
    - name: Make the environment with pip
      ansible.builtin.pip:
        requirements: requirements.txt
        virtualenv: env
        virtualenv_command: python3 -m venv
      when: uv.rc != 0
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ec2: Any = boto3.client("ec2")
        self.name = f"by-hand-{uuid.uuid4().hex[:12]}"
        self.group = ""
        self.instance_id = ""
        self.address = ""
        self.port = 22

    def launch(self) -> None:
        key = self.ec2.create_key_pair(KeyName=self.name, KeyType="ed25519")
        (self.folder / "key").touch(0o600)
        (self.folder / "key").write_text(key["KeyMaterial"])
        self.group = self.ec2.create_security_group(GroupName=self.name, Description=self.name)["GroupId"]
        ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "127.0.0.1/32"}]}
        self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[ssh])
        image = boto3.client("ssm").get_parameter(Name=IMAGE)["Parameter"]["Value"]
        answer = self.ec2.run_instances(
            ImageId=image,
            InstanceType="m7i.large",
            MinCount=1,
            MaxCount=1,
            KeyName=self.name,
            SecurityGroupIds=[self.group],
            InstanceInitiatedShutdownBehavior="terminate",
            UserData="#cloud-config\nruncmd:\n  - [systemctl, restart, ssh]\n",
        )
        self.instance_id = answer["Instances"][0]["InstanceId"]

    def wait(self) -> None:
        """Until it runs and lets us in."""
        self.ec2.get_waiter("instance_running").wait(InstanceIds=[self.instance_id], WaiterConfig=PATIENCE)
        found = self.ec2.describe_instances(InstanceIds=[self.instance_id])["Reservations"][0]["Instances"][0]
        self.address = found["PublicIpAddress"]
        tags = {tag["Key"]: tag["Value"] for tag in found.get("Tags", [])}
        self.port = int(tags.get("cloudrun:ssh-port", 22))  # a sandbox's machines share one computer
        end = time.monotonic() + SSH_S
        while subprocess.run(self.ssh("true"), capture_output=True, check=False).returncode != 0:
            if time.monotonic() > end:
                raise SystemExit("the machine never let us in")
            time.sleep(0.5)

    def options(self) -> list[str]:
        settings = [
            f"Port={self.port}", f"IdentityFile={self.folder}/key", "IdentitiesOnly=yes", "IdentityAgent=none",
            f"UserKnownHostsFile={self.folder}/known_hosts", "StrictHostKeyChecking=accept-new", "BatchMode=yes",
            "LogLevel=ERROR", "ControlMaster=auto", f"ControlPath={self.folder}/c", "ControlPersist=60",
        ]  # fmt: skip
        return ["-F", "/dev/null", *(word for setting in settings for word in ("-o", setting))]

    def ssh(self, command: str) -> list[str]:
        return ["ssh", *self.options(), f"{USER}@{self.address}", command]

    def end(self) -> None:
        subprocess.run(["ssh", *self.options(), "-O", "exit", "x@x"], capture_output=True, check=False)
        if self.instance_id:
            self.ec2.terminate_instances(InstanceIds=[self.instance_id])
            self.ec2.get_waiter("instance_terminated").wait(InstanceIds=[self.instance_id], WaiterConfig=PATIENCE)
        if self.group:
            self.ec2.delete_security_group(GroupId=self.group)
        self.ec2.delete_key_pair(KeyName=self.name)


def provision(machine: Machine, requirements: Path) -> None:
    folder = machine.folder
    (folder / "playbook.yml").write_text(PLAYBOOK)
    host: dict[str, Any] = {
        "ansible_host": machine.address,
        "ansible_port": machine.port,
        "ansible_user": USER,
        "ansible_ssh_private_key_file": f"{folder}/key",
        "ansible_ssh_common_args": " ".join(machine.options()),
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_pipelining": True,
        "requirements": str(requirements),
    }
    (folder / "inventory.json").write_text(json.dumps({"all": {"hosts": {"machine": host}}}))
    playbook = str(Path(sys.executable).with_name("ansible-playbook"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ANSIBLE_HOME": str(folder / "ansible"), "ANSIBLE_NOCOLOR": "1"}
    subprocess.run(
        [playbook, "-i", f"{folder}/inventory.json", f"{folder}/playbook.yml"],
        check=True, env=environment, stdout=sys.stderr,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=Path, help="its folder is the project")
    parser.add_argument("requirements", type=Path)
    parser.add_argument("results", type=Path, help="a folder for what comes home; must not exist")
    arguments = parser.parse_args()
    timings: dict[str, float] = {}

    def step(name: str, *work: Any) -> None:
        began = time.monotonic()
        work[0](*work[1:])
        timings[name] = time.monotonic() - began

    def run(*command: str) -> None:
        subprocess.run(command, check=True, stdout=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="hand") as name:
        machine = Machine(Path(name))
        try:
            step("launch", machine.launch)
            step("boot", machine.wait)
            step("provision", provision, machine, arguments.requirements.absolute())
            there = f"{USER}@{machine.address}"
            step("ship", run, "scp", "-q", "-r", *machine.options(), str(arguments.script.parent), f"{there}:project")
            step("run", run, *machine.ssh(f"cd project && ../env/bin/python {arguments.script.name} > stdout.log"))
            step("pull", run, "scp", "-q", "-r", *machine.options(), f"{there}:project", str(arguments.results))
        finally:
            step("terminate", machine.end)
    print(json.dumps(timings))


if __name__ == "__main__":
    main()
