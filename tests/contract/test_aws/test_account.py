"""An account as `cloudrun doctor` sees it: EC2's own answers (moto), and those of one that allows little."""

from __future__ import annotations

import pytest

from cloudrun.aws.account import Account, Permission, quota_code
from cloudrun.aws.session import Aws
from cloudrun.core.errors import CredentialsError
from tests.contract.test_aws.conftest import Endpoint, Refusal

QUOTA = {"Quota": {"QuotaName": "Running On-Demand Standard instances", "Value": 32.0}}
CHANGING = {"RunInstances", "TerminateInstances", "ImportKeyPair", "CreateSecurityGroup", "CreateTags", "DeleteVolume"}


@pytest.fixture
def account(aws: Aws) -> Account:
    return Account(aws)


def permissions(account: Account, **options: str) -> dict[str, Permission]:
    vpc_id = account.default_vpc()
    assert vpc_id
    tried = account.permissions(instance_type="m7i.large", image_id="ami-00000000000000002", vpc_id=vpc_id, **options)
    return {each.action: each for each in tried}


def test_who_asks_is_told_with_the_clock(account: Account, endpoint: Endpoint) -> None:
    identity = account.identity()
    assert identity.account == "123456789012"
    assert identity.skew_s is not None
    assert abs(identity.skew_s) < 60
    endpoint.ahead_s = 3600
    skew_s = account.skew_s()
    assert skew_s is not None
    assert -3700 < skew_s < -3500


def test_every_permission_is_tried_without_carrying_anything_out(account: Account, endpoint: Endpoint) -> None:
    found = permissions(account)
    assert {each.verdict for each in found.values()} == {"allowed"}
    assert {"ec2:RunInstances", "ec2:TerminateInstances", "ec2:DescribeVolumes", "ec2:CreateTags"} <= set(found)
    tried = [call for call in endpoint.calls if call.get("DryRun") == "true"]
    assert {call["Action"] for call in tried} >= CHANGING
    assert all(call["Action"].startswith("Describe") for call in endpoint.calls if call not in tried)


def test_what_is_not_allowed_is_named(account: Account, endpoint: Endpoint) -> None:
    endpoint.denied |= {"RunInstances", "ImportKeyPair", "DescribeVolumes"}
    found = permissions(account)
    denied = {action for action, each in found.items() if each.verdict == "denied"}
    assert denied == {"ec2:RunInstances", "ec2:ImportKeyPair", "ec2:DescribeVolumes"}
    assert "UnauthorizedOperation" in found["ec2:RunInstances"].detail
    assert "Encoded" not in found["ec2:RunInstances"].detail


def test_a_no_about_a_machine_that_is_not_there_may_be_a_policy_that_is_scoped_by_tag(
    account: Account, endpoint: Endpoint
) -> None:
    endpoint.denied |= {"TerminateInstances", "DeleteVolume"}
    found = permissions(account)
    assert (found["ec2:TerminateInstances"].verdict, found["ec2:DeleteVolume"].verdict) == ("unknown", "unknown")
    found = permissions(account, instance_id="i-0123456789abcdef0")
    assert found["ec2:TerminateInstances"].verdict == "denied", "with a machine of ours it is known"


def test_what_would_be_refused_for_another_reason_is_told(account: Account, endpoint: Endpoint) -> None:
    endpoint.refused["RunInstances"] = Refusal("MissingInput")
    found = permissions(account)["ec2:RunInstances"]
    assert found.verdict == "refused"
    assert "MissingInput" in found.detail


def test_an_answer_that_says_nothing_of_permissions_is_an_error(account: Account, endpoint: Endpoint) -> None:
    endpoint.refused["RunInstances"] = Refusal("ExpiredToken", 403)
    with pytest.raises(CredentialsError, match="ExpiredToken"):
        permissions(account)


def test_a_quota_is_asked_for_by_its_code(account: Account, endpoint: Endpoint) -> None:
    endpoint.documents["GetServiceQuota"] = QUOTA
    quota = account.quota("m7i.large", spot=False)
    assert quota is not None
    assert (quota.code, quota.vcpus) == ("L-1216C47A", 32.0)
    assert account.vcpus("m7i.large") == 2
    endpoint.denied.add("GetServiceQuota")
    with pytest.raises(CredentialsError) as caught:
        account.quota("m7i.large", spot=False)
    assert "servicequotas:GetServiceQuota" in caught.value.next_step


@pytest.mark.parametrize(
    ("instance_type", "spot", "code"),
    [
        ("m7i.large", False, "L-1216C47A"),
        ("c7gn.xlarge", True, "L-34B43A08"),
        ("is4gen.large", False, "L-1216C47A"),
        ("g5.xlarge", False, "L-DB2E81BA"),
        ("g6e.xlarge", True, "L-3819A6DF"),
        ("p4d.24xlarge", True, "L-7212CCBC"),
        ("p5en.48xlarge", True, "L-C4BD4855"),
        ("inf2.xlarge", False, "L-1945791B"),
        ("trn1.2xlarge", False, "L-2C3B7624"),
        ("x2iedn.xlarge", False, "L-7295265B"),
        ("p6-b200.48xlarge", False, None),
        ("hpc7g.4xlarge", False, None),
        ("mac2.metal", False, None),
        ("dl1.24xlarge", False, None),
        ("42", False, None),
    ],
)
def test_the_quota_of_a_family_is_known_or_said_to_be_unknown(instance_type: str, spot: bool, code: str | None) -> None:
    assert quota_code(instance_type, spot=spot) == code
