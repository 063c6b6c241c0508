"""`submit --dry-run` on AWS: all that can be known is said, and nothing is asked for that would change anything."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.command import Cli, CliHere
from tests.contract.test_aws.conftest import Endpoint, Refusal
from tests.contract.test_aws.test_prices import product
from tests.readme_command import snippet


@pytest.fixture
def cli(tmp_path: Path, endpoint: Endpoint) -> Cli:
    endpoint.documents["GetProducts"] = {"PriceList": [product("0.1111")]}
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "pyproject.toml").touch()
    (tmp_path / "project" / "train.py").write_text("import json\nprint(json.dumps({'n': 1}))\n")
    for size in range(1, 8):
        (tmp_path / "project" / f"file{size}.bin").write_bytes(bytes(size * 1000))
    return CliHere(
        tmp_path / "project",
        {
            "AWS_ENDPOINT_URL": endpoint.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "CLOUDRUN_CACHE_DIR": str(tmp_path / "cache"),
        },
    )


def told(cli: Cli, endpoint: Endpoint, *words: str) -> dict[str, Any]:
    done = cli("submit", "train.py", "--provider", "aws", "--dry-run", "--json", *words)
    assert done.returncode == 0, done.stderr
    assert endpoint.calls
    for action in endpoint.actions():
        assert re.match(r"(Describe|Get)[A-Z]", action), f"{action} may change something"
    document = json.loads(done.stdout)
    assert document["dry_run"] is True
    assert document["schema_version"] == 1
    return dict(document)


def test_a_run_is_told_whole_and_only_looked_at(cli: Cli, endpoint: Endpoint) -> None:
    document = told(cli, endpoint, "--deadline", "2h", "--fallback-types", "t3.large")
    launch = document["launch"]
    assert [each["instance_type"] for each in launch["types"]] == ["m7i.large", "t3.large"]
    assert launch["types"][0]["usd_per_hour"] == 0.1111, "as the price list says it now"
    assert launch["types"][0]["zones"]
    assert launch["image"]["image_id"] == "ami-00000000000000002"
    assert launch["most_usd"] == pytest.approx(0.1111 * (7200 + 60) / 3600)
    assert document["ship"]["files"] == 9
    assert [each["path"] for each in document["ship"]["largest"]] == [f"file{size}.bin" for size in (7, 6, 5, 4, 3)]
    assert document["ship"]["bytes"] > 28_000
    assert any(line.startswith("joblib==") for line in document["environment"]["requirements"])
    assert document["environment"]["known"] is False
    assert document["command"][1:] == ["train.py"]


def test_a_grid_is_told_with_its_cells_and_what_it_may_cost(cli: Cli, endpoint: Endpoint) -> None:
    document = told(cli, endpoint, "--set", "a=1,2,3,4,5,6", "--units", "2", "--spot", "--budget", "0.5")
    grid = document["grid"]
    assert (grid["cells"], grid["left"], grid["succeeded"], grid["under_way"]) == (6, 6, 0, 0)
    assert (grid["units"], grid["slots"], grid["goes_on_with"]) == (2, 2, None)
    assert grid["most_usd"] == 0.5
    assert document["launch"]["spot"] is True
    assert document["command"][1:] == ["train.py", "--a", "1"]


def test_for_people_it_says_the_same(cli: Cli, endpoint: Endpoint) -> None:
    done = cli("submit", "train.py", "--provider", "aws", "--dry-run", "--set", "a=1")
    assert done.returncode == 0, done.stderr
    for words in (
        "python train.py --a 1",
        "m7i.large in us-east-1: $0.1111 an hour",
        "9 files",
        "file7.bin (7.0 kB)",
        "fingerprint",
        "nothing was launched",
    ):
        assert words in done.stdout
    assert "the sandbox" not in done.stdout


def test_what_the_machine_gets_beside_python_is_told(cli: Cli, endpoint: Endpoint) -> None:
    (cli.folder / "setup.yml").write_text("- hosts: all\n  tasks: []\n")
    words = ("--apt", "libgomp1", "--playbook", "setup.yml", "--zone", "us-east-1a")
    launch = told(cli, endpoint, *words)["launch"]
    assert (launch["apt"], launch["types"][0]["zones"]) == (["libgomp1"], ["us-east-1a"])
    assert launch["playbook"].endswith("setup.yml")
    done = cli("submit", "train.py", "--provider", "aws", "--dry-run", *words)
    assert "would install  libgomp1" in done.stdout
    assert "in us-east-1a\n" in done.stdout


def test_what_would_be_refused_is_refused(cli: Cli, endpoint: Endpoint) -> None:
    done = cli("submit", "train.py", "--provider", "aws", "--dry-run", "--instance-type", "m7i.lrage")
    assert done.returncode == 2
    assert "m7i.large" in done.stderr
    done = cli("submit", "train.py", "--provider", "aws", "--dry-run", "--set", "a=1,2", "--budget", "0.0001")
    assert done.returncode == 2
    assert "--budget" in done.stderr


@pytest.mark.parametrize(
    ("code", "step"),
    [
        ("ExpiredToken", "aws sso login"),
        ("InvalidClientTokenId", "aws configure"),
        ("AccessDenied", "allow sts:GetCallerIdentity"),
        ("SignatureDoesNotMatch", "aws configure"),
    ],
)
def test_credentials_that_do_not_do_are_exit_code_4_with_the_command_to_type(
    cli: Cli, endpoint: Endpoint, code: str, step: str
) -> None:
    endpoint.refused["GetCallerIdentity"] = Refusal(code, 403)
    done = cli("submit", "train.py", "--provider", "aws")
    assert done.returncode == 4
    message, next_step = done.stderr.strip().splitlines()
    assert code in message
    assert step in next_step
    assert "RunInstances" not in endpoint.actions()


def test_a_permission_that_is_missing_in_the_middle_is_named_and_leaves_nothing(cli: Cli, endpoint: Endpoint) -> None:
    endpoint.denied.add("ImportKeyPair")
    done = cli("submit", "train.py", "--provider", "aws")
    assert done.returncode == 4, done.stderr
    assert "next: allow ec2:ImportKeyPair (cloudrun init --iam-policy" in done.stderr
    assert "RunInstances" not in endpoint.actions()


def test_what_the_readme_types_on_the_way_to_aws_can_be_typed(cli: Cli, endpoint: Endpoint) -> None:
    endpoint.documents["GetServiceQuota"] = {"Quota": {"QuotaName": "Standard", "Value": 32.0}}
    typed = [line.partition("#")[0].strip() for line in snippet("aws").splitlines()]
    looked = [line for line in typed if (line.startswith("cloudrun ") and "submit" not in line) or "--dry-run" in line]
    assert [line.split()[1] for line in looked] == ["init", "doctor", "submit"]
    for line in looked:
        done = cli(*shlex.split(line.partition(">")[0])[1:])
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    (launching,) = [line for line in typed if "submit" in line and line not in looked]
    assert cli(*shlex.split(launching)[1:], "--dry-run").returncode == 0
