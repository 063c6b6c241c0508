"""EC2 that has none: the next zone, the next type, fewer at once, and plain words where there is nothing at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloudrun.core.states import LaunchState, RunState, UnitState
from cloudrun.ledger import Ledger
from cloudrun.sandbox import client
from tests.sandbox.conftest import Aws, Project

Nothing = Callable[[Project], None]
CELL = "import json, os, time\ntime.sleep(1)\nprint(json.dumps(json.loads(os.environ['CLOUDRUN_PARAMS'])))\n"
OTHER = "m6i.large"


@pytest.fixture
def rare(region: client.Region, request: pytest.FixtureRequest) -> Iterator[str]:
    """A type that only this test launches: the region is every test's."""
    yield request.param
    client.shortage(request.param, "", None)


def asked_for(ledger: Ledger) -> list[tuple[str, str, bool]]:
    """(type, zone, whether EC2 had it) of each launch."""
    return [
        (launch.request.instance_type, launch.request.zone, launch.state is LaunchState.RESOLVED)
        for launch in ledger.launches()
    ]


@pytest.mark.parametrize("rare", ["c5.large"], indirect=True)
def test_the_next_zone_may_have_one(project: Project, region: client.Region, rare: str, nothing_left: Nothing) -> None:
    client.shortage(rare, f"{region.region}a", 0)
    project.write("cell.py", "print('{\"accuracy\": 1}')")
    done = project.cloudrun("submit", "cell.py", "--instance-type", rare)
    assert done.returncode == 0, done.stderr
    zone = f"{region.region}b"
    assert asked_for(project.ledger)[0] == (rare, "", False)
    assert asked_for(project.ledger)[-1] == (rare, zone, True)
    assert "trying" not in done.stderr, "zones are nobody's business while one has it"
    nothing_left(project)


@pytest.mark.parametrize("rare", ["c6i.large"], indirect=True)
def test_nothing_anywhere_is_said_with_what_to_type_and_leaves_nothing(
    project: Project, region: client.Region, rare: str, aws: Aws
) -> None:
    client.shortage(rare, "", 0)
    project.write("cell.py", "print('{\"accuracy\": 1}')")
    refused = project.cloudrun("submit", "cell.py", "--instance-type", rare)
    assert refused.returncode == 6, refused.stderr
    assert f"EC2 has no {rare} in {region.region}a, b" in refused.stderr
    assert "--fallback-types" in refused.stderr
    assert project.ledger.units() == []
    ours = ("--filters", f"Name=tag:cloudrun:ledger,Values={project.ledger.ledger_id}")
    assert aws("ec2", "describe-key-pairs", *ours)["KeyPairs"] == []
    assert aws("ec2", "describe-security-groups", *ours)["SecurityGroups"] == []


@pytest.mark.parametrize("rare", ["c7i.large"], indirect=True)
def test_a_grid_takes_what_there_is_of_each_type_that_is_allowed(
    project: Project, region: client.Region, rare: str, nothing_left: Nothing
) -> None:
    client.shortage(rare, "", 0)
    client.shortage(rare, f"{region.region}b", 1)
    project.write("cell.py", CELL)
    said = project.cloudrun(
        "submit", "cell.py", "--set", "n=1,2,3,4,5,6,7,8", "--units", "3", "--slots", "1",
        "--instance-type", rare, "--fallback-types", OTHER,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    ledger = project.ledger
    assert Counter(run.state for run in ledger.runs()) == {RunState.SUCCEEDED: 8}
    assert Counter(unit.instance_type for unit in ledger.units(live=False)) == {rare: 1, OTHER: 2}
    nothing_left(project)


def test_a_quota_leaves_the_grid_with_what_runs_and_says_what_to_ask_for(project: Project, tmp_path: Path) -> None:
    project.env["CLOUDRUN_SANDBOX_DIR"] = str(tmp_path / "own")  # a quota is for everything in a region
    try:
        assert "at most 2 instances" in project.cloudrun("sandbox", "shortage", "--most", "2").stderr
        project.write("cell.py", CELL)
        words = ("submit", "cell.py", "--set", "n=1,2,3,4,5,6", "--units", "4", "--slots", "1")
        said = project.cloudrun(*words)
    finally:
        project.cloudrun("sandbox", "stop", "--force")
    assert said.returncode == 0, said.stderr
    assert "Service Quotas" in said.stderr
    ledger = project.ledger
    assert len(ledger.units(live=False)) == 2
    assert all(unit.state is UnitState.TERMINATED for unit in ledger.units(live=False))
    assert Counter(run.state for run in ledger.runs()) == {RunState.SUCCEEDED: 6}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--max-price", "0.05"), "spot"),
        (("--spot", "--max-price", "0"), "price"),
        (("--fallback-types", "m7g.large"), "m7g.large"),
        (("--fallback-types", "m7x.large"), "m7x.large"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_launched(
    project: Project, words: tuple[str, ...], problem: str
) -> None:
    project.write("cell.py", "pass")
    refused = project.cloudrun("submit", "cell.py", *words)
    assert refused.returncode == 2, refused.stderr
    assert problem in refused.stderr
    assert project.ledger.launches() == []
