"""`cloudrun doctor --provider aws` against EC2's own answers, an account that allows little, and no network at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.command import Cli, CliHere
from tests.contract.test_aws.conftest import Endpoint
from tests.contract.test_aws.test_prices import product

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture
def cli(tmp_path: Path, endpoint: Endpoint) -> Cli:
    endpoint.documents["GetServiceQuota"] = {"Quota": {"QuotaName": "Standard", "Value": 32.0}}
    endpoint.documents["GetProducts"] = {"PriceList": [product("0.1008")]}
    return CliHere(
        tmp_path,
        {
            "AWS_ENDPOINT_URL": endpoint.url,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "CLOUDRUN_CACHE_DIR": str(tmp_path / "cache"),
            "HTTPS_PROXY": "http://127.0.0.1:9",  # what is not the endpoint cannot be reached, wherever this runs
        },
    )


def examined(cli: Cli, *words: str, code: int) -> dict[str, dict[str, Any]]:
    done = cli("doctor", "--provider", "aws", "--json", *words)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert SECRET not in done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["well"] is (code == 0)
    return {check["name"]: check for checks in document["groups"].values() for check in checks}


def test_an_account_where_all_is_well(cli: Cli, endpoint: Endpoint) -> None:
    checks = examined(cli, code=0)
    verdicts = {name: check["verdict"] for name, check in checks.items()}
    assert verdicts.pop("address") == "warning", "there is no network here"
    assert verdicts.pop("home") in ("ok", "problem")
    assert set(verdicts.values()) == {"ok"}
    assert "AWS_* variables" in checks["credentials"]["found"]
    assert "32 vCPUs" in checks["quota"]["found"]
    assert "$0.1008" in checks["price"]["found"]
    carried_out = [call["Action"] for call in endpoint.calls if call.get("DryRun") != "true"]
    assert all(re.match(r"(Describe|Get)\w+", action) for action in carried_out), carried_out
    assert not (cli.folder / ".cloudrun").exists(), "nothing is made"


def test_an_account_that_allows_little_is_told_what_to_allow(cli: Cli, endpoint: Endpoint) -> None:
    endpoint.denied |= {"RunInstances", "CreateSecurityGroup", "TerminateInstances", "GetServiceQuota", "GetProducts"}
    checks = examined(cli, code=4)
    for action in ("ec2:RunInstances", "ec2:CreateSecurityGroup"):
        assert checks[action]["verdict"] == "problem"
        assert "--iam-policy" in checks[action]["next_step"]
    assert checks["quota"]["verdict"] == "unknown"
    assert "servicequotas:GetServiceQuota" in checks["quota"]["next_step"]
    assert "console.aws.amazon.com/servicequotas" in checks["quota"]["next_step"]
    assert checks["price"]["verdict"] == "ok", "the snapshot knows it"
    assert "AccessDenied" in checks["price"]["found"]


def test_a_quota_that_is_too_small_is_told_with_what_asks_for_more(cli: Cli, endpoint: Endpoint) -> None:
    endpoint.documents["GetServiceQuota"] = {"Quota": {"QuotaName": "Standard", "Value": 1.0}}
    step = examined(cli, code=1)["quota"]["next_step"]
    assert step.startswith("aws service-quotas request-service-quota-increase --service-code ec2")
    assert "--desired-value 2" in step


def test_a_clock_that_is_wrong_is_told(cli: Cli, endpoint: Endpoint) -> None:
    endpoint.ahead_s = 1230
    clock = examined(cli, code=1)["clock"]
    assert re.search(r"20 min .*behind AWS's", clock["found"])
    assert "set-ntp" in clock["next_step"]


def test_a_network_of_ones_own_is_looked_at(cli: Cli, endpoint: Endpoint) -> None:
    found = examined(cli, code=0)["network"]["found"]
    assert found.startswith("the default VPC, vpc-")
    (cli.folder / "cloudrun.toml").write_text('zone = "us-east-1b"\n')
    found = examined(cli, code=0)["network"]["found"]
    assert "in us-east-1b, at public addresses" in found
    (cli.folder / "cloudrun.toml").write_text('subnet = "subnet-00000000000000000"\n')
    assert examined(cli, code=1)["network"]["verdict"] == "problem"


def test_keys_that_aws_does_not_know_end_it_there(cli: Cli, endpoint: Endpoint) -> None:
    endpoint.denied.add("GetCallerIdentity")
    checks = examined(cli, code=4)
    assert checks["identity"]["verdict"] == "problem"
    assert checks["clock"]["verdict"] == "ok", "the refusal has a date too"
    assert "permissions" not in checks


def test_without_credentials_it_says_so_in_a_second(cli: Cli) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del cli.environ[name]
    cli.environ |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    checks = examined(cli, code=4)
    assert checks["credentials"]["verdict"] == "problem"
    assert "aws configure" in checks["credentials"]["next_step"]


def test_without_a_network_it_says_so(cli: Cli) -> None:
    cli.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    checks = examined(cli, code=1)
    assert checks["credentials"]["verdict"] == "ok"
    assert checks["identity"]["verdict"] == "problem"
    assert "check the network" in checks["identity"]["next_step"]


def test_it_is_read_on_a_screen_of_any_width(cli: Cli) -> None:
    done = cli("doctor", "--provider", "aws")
    assert done.returncode == 0, done.stdout
    assert "all is well" in done.stdout
    assert "\x1b" not in done.stdout
