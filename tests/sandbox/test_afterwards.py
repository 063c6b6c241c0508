"""A run and its machine as one meets them afterwards: costs that add up, a shell, comparing, removing, freeing."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.sandbox.conftest import Project, wait_for

WAITS = """
import pathlib, time
print("begun", flush=True)
while not pathlib.Path.home().joinpath("go").exists():
    time.sleep(0.05)
print("accuracy: 0.5")
"""


@pytest.fixture(autouse=True)
def no_unit_is_left_alone(project: Project) -> Iterator[None]:
    yield
    for unit in project.ledger.units():
        project.cloudrun("reap", unit.instance_id)


def test_what_a_machine_does_and_costs_a_shell_on_it_and_what_is_left_of_it(project: Project) -> None:
    project.write("waits.py", WAITS)
    run_id = project.json("submit", "waits.py", "--detach", "--name", "first")["run_id"]
    (unit,) = project.json_here("units")["units"]
    assert unit["run_ids"] == [run_id]
    assert unit["age_s"] > 0
    assert unit["cost"]["is_charged"] is False
    assert unit["cost"]["usd"] > 0
    listed = project.cloudrun_here("units")
    assert f"run {run_id}" in listed.stdout
    assert "sandbox: what EC2 would have charged" in listed.stderr

    done = project.cloudrun("ssh", "first", "--", "touch go; echo $HOME; exit 7")
    assert (done.returncode, done.stdout) == (7, "/home/ubuntu\n"), done.stderr
    assert project.cloudrun("ssh", unit["instance_id"][:-1], "--", "cat", "a  b").returncode == 1
    assert "did you mean first?" in project.cloudrun("ssh", "frist").stderr

    refused = project.cloudrun_here("rm", "first", "--yes")
    assert refused.returncode == 2
    assert "not over" in refused.stderr
    attached = project.cloudrun("attach", "first")
    assert attached.returncode == 0, attached.stderr
    assert "overhead" in attached.stderr

    whole = project.json_here("show", "first")
    cost = whole["cost"]
    assert cost["is_over"]
    assert 0 < whole["cost_usd"] == pytest.approx(cost["runs_usd"], abs=1e-8)
    assert cost["runs_usd"] + cost["overhead_usd"] == pytest.approx(cost["usd"])
    assert "went" not in project.cloudrun("ssh", "first").stdout
    assert "is terminated" in project.cloudrun("ssh", "first").stderr

    project.write("waits.py", "print('accuracy: 0.75')\n")
    second = project.json("submit", "waits.py", "--name", "second", "--set", "alpha=1")
    assert second["cost_usd"] > 0
    compared = project.json_here("compare", "first", "second")
    assert compared["differences"]["scores"] == {"accuracy": [0.5, 0.75]}
    assert compared["differences"]["params"] == {"alpha": [None, 1]}
    assert "+print('accuracy: 0.75')" in compared["code"][0]["diff"]

    assert project.cloudrun_here("rm", "first", "--yes").returncode == 0
    hours_ago = time.time() - 7200
    for path in project.ledger.home.rglob("*"):
        if path.parts[-2] != "keys":
            os.utime(path, (hours_ago, hours_ago))
    freed = project.json_here("gc", "--yes")
    assert {each["kind"] for each in freed["garbage"]} >= {"artifact", "code", "log"}
    assert freed["freed_bytes"] > 0
    assert project.json_here("gc", "--dry-run")["garbage"] == []
    assert project.json_here("show", "second")["run_id"] == second["run_id"]
    assert project.cloudrun("logs", "second").stdout == "accuracy: 0.75\n"


def test_a_grid_has_one_cost_wherever_it_is_shown(project: Project) -> None:
    project.write("quick.py", "print('accuracy: 0.5')\n")
    said = project.json("submit", "quick.py", "--set", "n=1,2,3", "--units", "2")
    cost = said["summary"]["cost"]
    shares = [run["cost_usd"] for run in project.json_here("results")["runs"]]
    assert sum(shares) == pytest.approx(cost["runs_usd"], abs=1e-8)
    assert cost["usd"] == pytest.approx(cost["runs_usd"] + cost["overhead_usd"])
    assert cost["usd"] == pytest.approx(said["summary"]["spent_usd"], abs=1e-6)
    done = project.cloudrun_here("report", said["grid_id"])
    assert done.returncode == 0
    assert "runs $" in (project.root / "report.html").read_text()
    wait_for(lambda: project.json_here("units")["units"] == [], "its machines' end")
