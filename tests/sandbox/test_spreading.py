"""A grid whose environment is nowhere yet: Ansible builds it on one machine, and the others get it from there."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cloudrun.core.states import RunState
from tests.sandbox.conftest import Aws, Project, Start, pids_of, wait_for

Nothing = Callable[[Project], None]

# Versions that no other test asks for: no machine boots with them.
CELL = """
# /// script
# dependencies = {needs}
# ///
import json, os, time, joblib
time.sleep(1)
n = json.loads(os.environ["CLOUDRUN_PARAMS"])["n"]
assert "{words}" in open(os.environ["VIRTUAL_ENV"] + "/.ready").read()
print(json.dumps({{"accuracy": n}}))
"""


def command(cells: int) -> tuple[str, ...]:
    return ("submit", "cell.py", "--set", "n=" + ",".join(map(str, range(cells))), "--slots", "1", "--units", "4")


def unit_home(instance_id: str) -> Path:
    return Path(os.environ["CLOUDRUN_SANDBOX_DIR"], "units", instance_id, "root", "home", "ubuntu")


def built_by_ansible(project: Project) -> list[str]:
    """The runs before which a playbook ran."""
    runs = project.ledger.runs()
    return [run.run_id for run in runs if any(each.path == "provision.log" for each in run.artifacts)]


def test_ansible_runs_on_one_machine_of_four(project: Project, start: Start, nothing_left: Nothing) -> None:
    project.write("cell.py", CELL.format(needs="['joblib==1.3.2']", words="joblib==1.3.2"))
    submitting = start("-m", "cloudrun", *command(12), "-v")
    ledger = project.ledger
    wait_for(lambda: sum(run.state is RunState.SUCCEEDED for run in ledger.runs()) >= 8, "eight cells", 120)
    keys = [(unit_home(unit.instance_id) / ".ssh" / "authorized_keys").read_text() for unit in ledger.units()]
    assert keys
    assert all(text.count("ssh-ed25519") == 1 and "restrict" not in text for text in keys), "one key, the client's"
    _, said = submitting.communicate(timeout=100)
    assert submitting.returncode == 0, said
    assert "did not get the environment" not in said
    assert said.count("TASK [Build the environment]") == 1
    runs = ledger.runs()
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert len({run.instance_id for run in runs}) == 4, "a machine had nothing to do: this would prove nothing of it"
    assert len(built_by_ansible(project)) == 1
    provisioned = [run for run in runs if run.timings.provision_s > 0]
    assert len(provisioned) == 4, "the others took their time over it too, and it is said of their first runs"
    nothing_left(project)


@pytest.mark.slow
def test_a_machine_that_dies_while_it_builds_is_followed_by_another(
    project: Project, start: Start, aws: Aws, nothing_left: Nothing
) -> None:
    project.write("cell.py", CELL.format(needs="['joblib==1.3.1']", words="joblib==1.3.1"))
    submitting = start("-m", "cloudrun", *command(8))
    ledger = project.ledger
    playbooks = project.root / ".cloudrun" / "runs"
    wait_for(lambda: list(playbooks.glob("*/ansible")) != [], "a machine that builds")
    (folder,) = playbooks.glob("*/ansible")
    builder = ledger.run(folder.parent.name.partition(".")[0]).instance_id
    assert builder is not None
    for pid in pids_of(builder):
        os.kill(pid, signal.SIGSTOP)
    aws("ec2", "terminate-instances", "--instance-ids", builder)
    _, said = submitting.communicate(timeout=200)
    assert submitting.returncode == 0, said
    runs = ledger.runs()
    assert {run.state for run in runs} == {RunState.SUCCEEDED}
    assert {run.params["n"] for run in runs} == set(range(8))
    assert builder not in {run.instance_id for run in runs}
    assert len(built_by_ansible(project)) >= 1
    nothing_left(project)
