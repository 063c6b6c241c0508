"""What somebody types first, in the sandbox: is all well, what would happen; and what neither may change."""

from __future__ import annotations

import pytest

from tests.sandbox.conftest import Aws, Project


def test_a_computer_where_all_is_well(project: Project) -> None:
    document = project.json_here("doctor")
    checks = {check["name"]: check for checks in document["groups"].values() for check in checks}
    assert checks["sandbox"]["verdict"] == "ok"
    assert checks["machines"]["verdict"] in ("ok", "warning")
    assert "AWS" not in document["groups"]
    assert all(check["next_step"] for check in checks.values() if check["verdict"] in ("warning", "problem"))
    assert document["well"] is not any(check["verdict"] == "problem" for check in checks.values())
    assert not (project.root / ".cloudrun").exists()


def test_without_an_ssh_client_doctor_says_what_to_type(project: Project) -> None:
    project.env["PATH"] = str(project.root)  # nothing is found there
    done = project.cloudrun_here("doctor")
    assert done.returncode == 1
    assert "PROBLEM  ssh client" in done.stdout
    assert "next: sudo apt install openssh-client" in done.stdout


def test_a_dry_run_launches_nothing_and_makes_nothing(project: Project, aws: Aws) -> None:
    project.write("train.py", "print('n: 1')")
    one = project.json_here("submit", "train.py", "--dry-run", "--bucket", "never-made-by-a-dry-run")
    assert one["bucket"] == {"name": "never-made-by-a-dry-run", "is_there": False}
    assert one["launch"]["provider"] == "sandbox"
    assert one["launch"]["most_usd"] > 0, "what the same would cost on AWS"
    grid = project.json_here("submit", "train.py", "--dry-run", "--set", "a=1,2,3")
    assert grid["grid"]["left"] == 3
    ledger = project.ledger
    assert (ledger.launches(), ledger.runs(), ledger.find_grid("")) == ([], [], None)
    buckets = [each["Name"] for each in aws("s3api", "list-buckets")["Buckets"]]
    assert "never-made-by-a-dry-run" not in buckets


def test_a_dry_run_knows_what_has_been_done_before(project: Project) -> None:
    project.write("train.py", "print('n: 1')")
    assert project.cloudrun("submit", "train.py", "--set", "a=1,2").returncode == 0
    document = project.json_here("submit", "train.py", "--set", "a=1,2,3", "--dry-run")
    assert (document["grid"]["succeeded"], document["grid"]["left"]) == (2, 1)
    assert document["environment"]["known"] is True
    assert document["grid"]["expected_s"] > 0


@pytest.mark.slow
def test_a_budget_of_the_project_s_holds_for_one_run_for_a_grid_and_for_a_pool(project: Project) -> None:
    project.write("train.py", "print('n: 1')")
    project.write("cloudrun.toml", "budget = 0.0001\n")
    project.write(
        "pool.py", "from cloudrun import process_pool\nwith process_pool() as pool: pool.submit(abs, -1).result()"
    )
    for done in (
        project.cloudrun("submit", "train.py"),
        project.cloudrun("submit", "train.py", "--dry-run"),
        project.cloudrun("submit", "train.py", "--set", "a=1,2"),
        project.python("pool.py"),
    ):
        assert done.returncode != 0
        assert "budget" in done.stderr
    assert project.ledger.launches() == []
    assert project.cloudrun("submit", "train.py", "--budget", "5").returncode == 0, "a flag beats the file"
