"""The least IAM policy that cloudrun works with; `actions` says which permission each of its calls needs.

What EC2 lets a policy scope by tag is scoped so: machines, key pairs, groups and volumes are made only with a ledger's
tag, and only what carries one is changed or ended. Sources: the Service Authorization Reference ("Actions, resources,
and condition keys" for Amazon EC2, S3, Systems Manager, Price List and Service Quotas), and "Grant permission to tag
Amazon EC2 resources during creation" in the Amazon EC2 User Guide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cloudrun.aws.network import LEDGER_TAG

_READ = (
    "DescribeImages", "DescribeInstances", "DescribeInstanceTypeOfferings", "DescribeInstanceTypes", "DescribeKeyPairs",
    "DescribeSecurityGroups", "DescribeSpotPriceHistory", "DescribeSubnets", "DescribeVolumes", "DescribeVpcs",
)  # fmt: skip
_OUR_MACHINES = ("StartInstances", "StopInstances", "TerminateInstances")
_OUR_REST = (
    "AuthorizeSecurityGroupIngress", "DeleteKeyPair", "DeleteSecurityGroup", "DeleteVolume",
    "RevokeSecurityGroupIngress",
)  # fmt: skip
_MADE_BY = ("RunInstances", "ImportKeyPair", "CreateSecurityGroup")


def policy(
    *, bucket: str | None = None, region: str | None = None, instance_profile: str | None = None
) -> dict[str, Any]:
    """An IAM policy document. `bucket` adds what `--bucket` and `--data` need there; `region` confines EC2 to one;
    `instance_profile` names the role that jobs may be given."""
    partition = _partition(region)
    statements = [
        _allow("Look", _ec2(*_READ), ["*"]),
        _allow(
            "Ask",  # none of the three says anything of the account's resources
            ["pricing:GetProducts", "servicequotas:GetServiceQuota", "sts:GetCallerIdentity"],
            ["*"],
        ),
        _allow(
            "CurrentImage",
            ["ssm:GetParameter"],
            [f"arn:{partition}:ssm:*::parameter/aws/service/{maker}/*" for maker in ("canonical", "deeplearning")],
        ),
        _allow(
            "LaunchWithOurTag",
            _ec2("RunInstances"),
            _arns(partition, "instance", "volume", "spot-instances-request"),
            _has("aws:RequestTag"),
        ),
        _allow(
            "LaunchFrom",
            _ec2("RunInstances"),
            [
                *(f"arn:{partition}:ec2:*::{kind}/*" for kind in ("image", "snapshot")),
                *_arns(partition, "subnet", "network-interface", "security-group", "key-pair"),
            ],
        ),
        _allow(
            "MakeWithOurTag",
            _ec2("ImportKeyPair", "CreateSecurityGroup"),
            _arns(partition, "key-pair", "security-group"),
            _has("aws:RequestTag"),
        ),
        _allow("GroupInVpc", _ec2("CreateSecurityGroup"), _arns(partition, "vpc")),
        _allow(
            "TagWhatIsMade",
            _ec2("CreateTags"),
            _arns(partition, "instance", "volume", "spot-instances-request", "key-pair", "security-group"),
            {"StringEquals": {"ec2:CreateAction": list(_MADE_BY)}},
        ),
        _allow("TagOurs", _ec2("CreateTags"), _arns(partition, "instance"), _has("aws:ResourceTag")),
        _allow("EndOurs", _ec2(*_OUR_MACHINES), _arns(partition, "instance"), _has("aws:ResourceTag")),
        _allow(
            "TidyOurs",
            _ec2(*_OUR_REST),
            _arns(partition, "security-group", "key-pair", "volume"),
            _has("aws:ResourceTag"),
        ),
        _allow(
            "SpotRole",  # EC2 asks for it at an account's very first spot machine
            ["iam:CreateServiceLinkedRole"],
            [f"arn:{partition}:iam::*:role/aws-service-role/spot.amazonaws.com/*"],
            {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
        ),
    ]
    if region:
        statements = [_in_region(each, region) for each in statements]
    if instance_profile:
        role = instance_profile.rpartition("/")[2]  # a profile is called as its role where the console has made it
        to_machines = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
        statements.append(_allow("JobsRole", ["iam:PassRole"], [f"arn:{partition}:iam::*:role/{role}"], to_machines))
    if bucket:
        whole = f"arn:{partition}:s3:::{bucket}"
        statements.append(_allow("Bucket", ["s3:CreateBucket", "s3:ListBucket"], [whole]))
        statements.append(_allow("BucketObjects", ["s3:DeleteObject", "s3:GetObject", "s3:PutObject"], [f"{whole}/*"]))
    return {"Version": "2012-10-17", "Statement": statements}


def _allow(
    name: str, actions: Sequence[str], resources: Sequence[str], condition: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    statement = {"Sid": f"Cloudrun{name}", "Effect": "Allow", "Action": list(actions), "Resource": list(resources)}
    return {**statement, "Condition": dict(condition)} if condition else statement


def _has(kind: str) -> dict[str, Any]:
    """With a ledger's tag, whichever ledger it is: "Null false" is IAM's word for "is there"."""
    return {"Null": {f"{kind}/{LEDGER_TAG}": "false"}}


def _in_region(statement: dict[str, Any], region: str) -> dict[str, Any]:
    if not all(action.startswith("ec2:") for action in statement["Action"]):
        return statement
    condition = dict(statement.get("Condition", {}))
    condition["StringEquals"] = {**condition.get("StringEquals", {}), "aws:RequestedRegion": region}
    return {**statement, "Condition": condition}


def _ec2(*operations: str) -> list[str]:
    return [f"ec2:{operation}" for operation in operations]


def _arns(partition: str, *kinds: str) -> list[str]:
    return [f"arn:{partition}:ec2:*:*:{kind}/*" for kind in kinds]


def _partition(region: str | None) -> str:
    """Which part of AWS ("aws", "aws-cn", "aws-us-gov") a region belongs to: ARNs begin with it."""
    for prefix, partition in (("cn-", "aws-cn"), ("us-gov-", "aws-us-gov")):
        if region and region.startswith(prefix):
            return partition
    return "aws"
