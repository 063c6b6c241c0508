"""An environment that goes from one booted machine to another, by OpenSSH on both sides."""

from __future__ import annotations

from tests.sandbox.conftest import Project

CELL = """
# /// script
# dependencies = ['six==1.17.0']
# ///
import json, os, time, six
time.sleep(3)
lines = open(os.path.expanduser("~/.ssh/authorized_keys")).read().splitlines()
print(json.dumps({"accuracy": json.loads(os.environ["CLOUDRUN_PARAMS"])["n"], "keys": len(lines)}))
"""


def test_ansible_runs_on_one_machine_of_three(project: Project) -> None:
    project.write("cell.py", CELL)
    words = ["submit", "cell.py", "--set", "n=0,1,2,3,4,5,6,7,8", "--slots", "1", "--units", "3", "-v"]
    done = project.cloudrun(*words, timeout_s=280)
    assert done.returncode == 0, done.stderr
    assert "did not get the environment" not in done.stderr
    assert done.stderr.count("TASK [Build the environment]") == 1
    runs = project.ledger.runs()
    assert len({run.instance_id for run in runs}) == 3
    assert all(run.scores["keys"] == 1 for run in runs[:3]), "the last ones: no copy is under way any more"
    assert project.ledger.units() == []
