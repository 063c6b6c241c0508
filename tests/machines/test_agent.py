"""The agent on a real machine: killed and back, cut off by a reboot, and its host key pinned."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from cloudrun import process_unit
from cloudrun.core.errors import HostKeyMismatch
from cloudrun.ssh.session import Session
from tests.machines.conftest import BOOT_S, Ec2, Host
from tests.sandbox.conftest import Project, wait_for

UnitOf = Callable[[Project], tuple[str, Host]]
COUNTING = """
import time
for number in range({lines}):
    print(number, flush=True)
    time.sleep(0.1)
open("done.txt", "w").write("whole")
print("accuracy: 0.5")
"""
LINES = 100


AGENT = "pgrep -f '[.]cloudrun/agent/'"  # everything of it: warden, supervisor, parent
WARDEN = 'python3 -c \'import json; print(json.load(open(".cloudrun/news.json"))["warden_pid"])\''
KILLED = {
    "warden": f"kill -9 $({WARDEN})",
    "supervisor": f"kill -9 $({AGENT} | grep -vx $({WARDEN}))",
    "both": f"kill -9 $({AGENT})",
}


@pytest.mark.parametrize("killed", KILLED)
def test_a_job_goes_on_while_its_agent_is_killed_and_is_taken_up_again(
    project: Project, unit_of: UnitOf, killed: str
) -> None:
    project.write("count.py", COUNTING.format(lines=LINES))
    done = project.cloudrun("submit", "count.py", "--detach")
    assert done.returncode == 0, done.stderr
    (record,) = project.ledger.runs()
    _, host = unit_of(project)
    wait_for(lambda: host.ssh("cat .cloudrun/runs/*/stdout.log").stdout.count("\n") >= 5, "the first lines", BOOT_S)
    job = host.out("pgrep -f '[c]ount.py'")
    host.out(KILLED[killed])
    assert host.out("pgrep -f '[c]ount.py'") == job
    done = project.cloudrun("attach", record.run_id, timeout_s=200)
    run = project.ledger.get(record.run_id)
    assert run.path("done.txt").read_text() == "whole"
    assert run.log().splitlines()[:LINES] == [str(number) for number in range(LINES)]
    assert run.attempts == 1
    assert run.scores == {"accuracy": 0.5}
    if killed == "both" and run.exit_code is None:  # init, whose child it was, was quicker than who took it up again
        assert (done.returncode, run.state) == (5, "failed"), done.stderr
        assert "nobody saw how" in done.stderr
    else:
        assert (done.returncode, run.state, run.exit_code) == (0, "succeeded", 0), done.stderr


def test_a_reboot_in_the_middle_of_a_job_has_a_clear_end(project: Project, unit_of: UnitOf) -> None:
    project.write("count.py", "open('early.txt', 'w').write('kept')\n" + COUNTING.format(lines=100_000))
    done = project.cloudrun("submit", "count.py", "--detach")
    assert done.returncode == 0, done.stderr
    (record,) = project.ledger.runs()
    _, host = unit_of(project)
    wait_for(lambda: host.ssh("cat .cloudrun/runs/*/stdout.log").stdout.count("\n") >= 5, "the first lines", BOOT_S)
    boot = host.boot()
    host.ssh("sudo systemctl reboot")
    wait_for(lambda: host.ssh("cat /proc/sys/kernel/random/boot_id").stdout.strip() not in ("", boot), "a boot", BOOT_S)
    done = project.cloudrun("attach", record.run_id, timeout_s=200)
    assert done.returncode == 5, done.stderr
    run = project.ledger.get(record.run_id)
    assert run.state in ("failed", "lost")
    assert run.exit_code is None
    assert "the machine was rebooted under it" in done.stderr
    assert run.path("early.txt").read_text() == "kept"


def test_a_changed_host_key_is_refused(project: Project, unit_of: UnitOf, ec2: Ec2) -> None:
    project.write("noop.py", "print('n: 1')")
    with process_unit(project=project.root, observe=lambda event: None) as unit:
        (record,) = project.ledger.units()
        handed_over = unit.run("sudo cat /var/lib/cloud/instance/user-data.txt").stdout
        assert "ssh-ed25519" in handed_over
        assert record.host_key not in handed_over, "each machine makes a key of its own at the first login"
        theirs = unit.run("cat /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[:2]
        assert record.host_key.split()[:2] == theirs
        target = unit._unit.target()
        Session.open(target, timeout_s=30).close()
        key = "/etc/ssh/ssh_host_ed25519_key"
        unit.run(f"sudo rm {key} && sudo ssh-keygen -q -t ed25519 -N '' -f {key} && sudo systemctl restart ssh")
        with pytest.raises(HostKeyMismatch):
            Session.open(target, timeout_s=30)


def test_another_machine_at_the_address_is_refused_by_openssh_too(ec2: Ec2, project: Project) -> None:
    from tests.machines.test_deadline import in_s

    (machine,) = ec2.launch(in_s(3600))
    host = ec2.host(machine)
    other = project.root / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)], check=True)
    host.known_hosts.write_text(f"{host.address} {other.with_suffix('.pub').read_text()}")
    refused = host.ssh("true")
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr
