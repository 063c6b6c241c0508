"""`submit --dry-run` for AWS by somebody who has no credentials: what can be said without them is said first."""

from __future__ import annotations

import json
import os
import re
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from cloudrun.core.events import nobody
from cloudrun.core.settings import Settings
from cloudrun.grids.grid import Wishes
from cloudrun.grids.machines import GRID_TAG
from cloudrun.grids.rows import begin, fill
from cloudrun.ledger import Ledger
from cloudrun.plan.grid_sets import parse_sets
from cloudrun.runs.dispatch import new_run
from cloudrun.runs.prepared import Job, prepare
from tests.command import CliHere
from tests.fakes import Ec2, ManualClock, ended_well, launch_one


@pytest.fixture
def cli(tmp_path: Path) -> CliHere:
    (tmp_path / "train.py").write_text("print(1)")
    (tmp_path / "cloudrun.toml").write_text('provider = "aws"\n')
    made = CliHere(tmp_path)
    made.environ = {name: value for name, value in made.environ.items() if not name.startswith("AWS_")}
    made.environ |= {
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    return made


@pytest.mark.parametrize(
    ("more", "first"),
    [([], "would run      python train.py"), (["--set", "a=1,2"], "would run      2 cells: 2 to run")],
)
def test_what_would_be_shipped_and_built_is_said_then_what_to_type(cli: CliHere, more: list[str], first: str) -> None:
    done = cli("submit", "train.py", "--dry-run", *more)
    assert done.returncode == 4, done.stderr
    assert done.stdout.startswith(first)
    for said in (
        "would launch   one machine of m7i.large in us-east-1: $0.1008 an hour (list price of ",
        "in which zone and from which image: only AWS can say",
        "at most $0.4049 for a machine until its deadline, 4 h from its launch\n",
        "would ship     2 files",
        "would build",
    ):
        assert said in done.stdout
    assert "no AWS credentials were found" in done.stderr
    assert "next: run `aws configure`" in done.stderr
    ledger = Ledger(cli.folder)
    assert (ledger.launches(), ledger.runs()) == ([], [])
    ledger.close()


@pytest.mark.parametrize("more", [[], ["--set", "a=1,2"]])
def test_for_programs_it_is_one_document_with_the_reason(cli: CliHere, more: list[str]) -> None:
    done = cli("submit", "train.py", "--dry-run", "--json", "--instance-type", "m7g.large", *more)
    document = json.loads(done.stdout)
    assert done.returncode == 4
    assert document["problem"].startswith("no AWS credentials")
    assert document["launch"]["image"] is None
    (rent,) = document["launch"]["types"]
    assert (rent["instance_type"], rent["usd_per_hour"], rent["zones"]) == ("m7g.large", 0.0816, [])
    assert [each["path"] for each in document["ship"]["largest"]] == ["cloudrun.toml", "train.py"]
    assert document["environment"]["python"]


def test_the_price_is_that_of_the_region_that_would_be_taken_and_none_is_guessed(cli: CliHere) -> None:
    cli.environ["AWS_REGION"] = "eu-west-1"
    said = cli("submit", "train.py", "--dry-run").stdout
    assert "m7i.large in eu-west-1: $0.11235 an hour (list price of 2025-" in said
    cli.environ["AWS_REGION"] = "ap-south-2"
    for more in ([], ["--set", "a=1,2", "--budget", "1"]):
        done = cli("submit", "train.py", "--dry-run", *more)
        assert done.returncode == 4, "the budget may fit the price that AWS knows"
        assert "m7i.large in ap-south-2: only AWS can say at what price" in done.stdout
        assert "at most nobody knows what" in done.stdout


def dry(cli: CliHere, *words: str) -> str:
    done = cli("submit", "train.py", "--dry-run", *words)
    assert done.returncode == 4, done.stderr
    return done.stdout


def test_as_many_machines_are_named_as_would_be_launched(cli: CliHere) -> None:
    said = dry(cli, "--set", "a=1,2,3,4,5,6,7", "--units", "3")
    assert said.startswith("would run      7 cells: 7 to run\n               7 cells to run on 3 units, 2 at a time")
    assert "would launch   3 machines of m7i.large in us-east-1: $0.1008 an hour each (list price" in said
    assert "at most $0.4049 for each until its deadline, 4 h from its launch\n" in said
    assert "would launch   4 spot machines of" in dry(cli, "--set", "a=1,2,3,4,5,6,7", "--max-units", "9", "--spot")


def test_one_cell_is_one_and_its_machine_has_the_deadline_that_the_budget_pays_for(cli: CliHere) -> None:
    said = dry(cli, "--set", "a=1", "--budget", "0.1")
    assert said.startswith("would run      1 cell: 1 to run\n")
    assert "would launch   one machine of" in said
    assert re.search(
        r"at most \$0\.1000 for a machine until its deadline, 58 min 3\d s from its launch, by the bud", said
    )
    assert "at most $0.4049 for a machine until its deadline, 4 h from its launch\n" in dry(
        cli, "--set", "a=1", "--budget", "0.5"
    )


def test_a_budget_that_pays_for_fewer_machines_names_those(cli: CliHere) -> None:
    said = dry(cli, "--set", "a=1,2,3,4,5,6,7,8", "--units", "4", "--budget", "0.02")
    assert "would launch   one machine of" in said
    assert "8 cells to run on 1 unit," in said
    assert "the budget pays for no more units" in said


def succeed(folder: Path, *values: int) -> None:
    """Cells of the script's, each with one of the values."""
    with closing(Ledger(folder)) as ledger:
        unit = launch_one(ledger, ManualClock(), Ec2())
        for value in values:
            job = Job(folder / "train.py", params={"a": value}, cwd=folder)
            run = new_run(prepare(job, Settings(), ledger, "x86_64", nobody), ManualClock().now())
            ledger.add_run(run)
            ended_well(ledger, run.run_id, unit.instance_id)


def test_where_nothing_is_left_nothing_would_be_launched(cli: CliHere) -> None:
    succeed(cli.folder, 1, 2)
    said = dry(cli, "--set", "a=1,2")
    assert said == (
        "would run      2 cells: none of them is left to run, 2 succeeded before\n"
        "would launch   nothing (--again runs them once more)\n"
        "nothing was launched, and nothing was changed\n"
    )
    again = dry(cli, "--set", "a=1,2", "--again")
    assert "would launch   one machine" in again
    assert "the first      python train.py --a 1," in again
    more = dry(cli, "--set", "a=1,2,3,4")
    assert "4 cells: 2 to run, 2 succeeded before" in more
    assert "the first      python train.py --a 3," in more
    assert json.loads(dry(cli, "--set", "a=1,2,3,4", "--json"))["command"][-2:] == ["--a", "3"]


def test_what_is_under_way_is_gone_on_with(cli: CliHere) -> None:
    with closing(Ledger(cli.folder)) as ledger:
        grid = parse_sets(["a=1,2,3"])
        plan = prepare(Job(cli.folder / "train.py", cwd=cli.folder), Settings(), ledger, "x86_64", nobody)
        record, _ = begin(plan, grid, asdict(Wishes()), ledger, "", again=False, budget_usd=None, only=None)
        fill(record, plan, grid, ledger, again=False)
        unit = launch_one(ledger, ManualClock(), Ec2(), **{GRID_TAG: record.grid_id})
        begun = ledger.cells(record.grid_id)[0].run_id
        ledger.begin_attempt(begun, unit.instance_id, ManualClock().now())
    said = dry(cli, "--set", "a=1,2,3")
    assert said.startswith(
        "would run      3 cells: 3 to run (1 of them under way, on 1 machine)\n"
        f"               it goes on with {record.grid_id}\n"
        "               2 cells to run on 1 unit,"
    )
    assert "would launch   nothing more: its machines go on with it\n" in said
    assert "the first      python train.py --a 2," in said
    assert "would launch   one machine of" in dry(cli, "--set", "a=1,2,3", "--units", "2")
