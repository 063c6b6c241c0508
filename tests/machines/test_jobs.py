"""The main job on a booted Debian, provisioned as any image is, apt included."""

from __future__ import annotations

from pathlib import Path

from cloudrun import process_unit
from cloudrun.sandbox import client
from tests.machines.conftest import Ec2, Host
from tests.machines.test_deadline import in_s
from tests.sandbox.conftest import Project, wait_for

JOBS = Path(__file__).parents[2] / "jobs"


def test_one_command_brings_the_digits_model_home(project: Project, ec2: Ec2) -> None:
    project.write("digits.py", (JOBS / "digits.py").read_text())
    done = project.cloudrun("submit", "digits.py", "--set", "C=0.05", timeout_s=280)
    assert done.returncode == 0, done.stderr
    (run,) = project.ledger.ranking("accuracy")
    assert run.scores["accuracy"] > 0.95
    assert run.model().predict([[0.0] * 64]).shape == (1,)
    assert project.ledger.units() == []


def test_a_bare_image_is_provisioned_with_apt(project: Project) -> None:
    project.write("requirements.txt", "six==1.17.0\n")
    script = project.write("uses.py", "import six, sys; print('n: 1'); print(sys.prefix)")
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        bare = unit.run("sudo rm /usr/local/bin/uv; command -v uv; python3 -c 'import ensurepip'")
        assert bare.exit_code != 0
        assert bare.stdout == ""
        run = unit.send_run(script)
        assert unit.run("dpkg-query -W -f '${Status}' python3-venv").stdout == "install ok installed"
        assert unit.run("ls .cloudrun/uv/bin/uv").exit_code == 0
    assert run.state == "succeeded"


def test_a_machine_reaches_the_region_and_nothing_else(ec2: Ec2, region: client.Region) -> None:
    (machine,) = ec2.launch(in_s(3600))
    host = ec2.host(machine)
    ask = "import sys, urllib.request, urllib.error\ntry: urllib.request.urlopen(sys.argv[1], timeout=5)\nexcept "
    ask += "urllib.error.HTTPError as error: print(error.code)"
    assert host.out(f'python3 -c "{ask}" {region.endpoint_url}') == "403"
    assert host.out(f'python3 -c "{ask}" http://169.254.169.254/latest/meta-data/instance-id') == "401"
    assert host.out("ip route show default") == ""


def test_sixteen_machines_run_at_once(ec2: Ec2) -> None:
    machines = ec2.launch(in_s(3600), count=16)
    hosts: list[Host] = [ec2.host(machine) for machine in machines]
    names: set[str] = {host.out("hostname") for host in hosts}
    assert len(names) == 16
    for host in hosts:
        host.ssh("sudo systemctl poweroff")
    wait_for(
        lambda: {ec2.state(machine) for machine in machines} == {"terminated"},
        "all of them to have powered themselves off",
        120,
    )
