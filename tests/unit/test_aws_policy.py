"""The policy that `init --iam-policy` prints allows every call that cloudrun makes, and no more than it must."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import xform_name

from cloudrun.aws.actions import actions_of
from cloudrun.aws.policy import policy

AWS = Path(__file__).parents[2] / "cloudrun" / "aws"
SERVICES = ("ec2", "s3", "ssm", "sts", "pricing", "service-quotas")
# what is said to AWS in other words than a method's name
NAMED = {"generate_presigned_post": "PutObject"}
# API calls that need no permission, or that are asked about under another name
NEVER_RESTRICTABLE = {"iam:CreateServiceLinkedRole"}


@pytest.fixture(scope="module")
def operations() -> dict[str, str]:
    """API operations by the name of boto3's method."""
    session = boto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    known = {}
    for service in SERVICES:
        client = session.client(service)
        known |= {xform_name(name): name for name in client.meta.service_model.operation_names}
    return known


def calls(operations: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(where, API operation) for each call in the adapters: methods of clients, and what paginators and presigned
    addresses name."""
    for path in sorted(AWS.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.name}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self":
                continue  # a method of ours
            if isinstance(node, ast.Attribute) and node.attr in {**operations, **NAMED}:
                yield where, NAMED.get(node.attr) or operations[node.attr]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                first = node.args[0] if node.args else None
                if node.func.attr in ("get_paginator", "generate_presigned_url"):
                    assert isinstance(first, ast.Constant), where
                    yield where, operations[str(first.value)]


def statements(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for statement in document["Statement"]:
        for action in statement["Action"]:
            yield action, statement


def test_every_call_that_is_made_is_allowed(operations: dict[str, str]) -> None:
    allowed = {action for action, _ in statements(policy(bucket="my-results"))}
    made = list(calls(operations))
    assert {"RunInstances", "TerminateInstances", "GetParameter", "PutObject", "GetCallerIdentity"} <= {
        name for _, name in made
    }, "the walk finds them"
    for where, operation in made:
        for action in actions_of(operation):
            assert action in allowed, f"{where} calls {operation}: cloudrun/aws/policy.py lacks {action}"


def test_nothing_is_allowed_that_is_never_called(operations: dict[str, str]) -> None:
    needed = {action for _, operation in calls(operations) for action in actions_of(operation)}
    allowed = {action for action, _ in statements(policy(bucket="my-results"))}
    assert allowed - needed == NEVER_RESTRICTABLE
    assert not any("*" in action for action in allowed)


@pytest.mark.parametrize(
    "action",
    [
        "ec2:TerminateInstances",
        "ec2:StopInstances",
        "ec2:StartInstances",
        "ec2:DeleteVolume",
        "ec2:DeleteKeyPair",
        "ec2:DeleteSecurityGroup",
        "ec2:AuthorizeSecurityGroupIngress",
        "ec2:RevokeSecurityGroupIngress",
    ],
)
def test_only_what_carries_a_ledger_s_tag_can_be_changed_or_ended(action: str) -> None:
    for name, statement in statements(policy()):
        if name == action:
            assert statement["Condition"] == {"Null": {"aws:ResourceTag/cloudrun:ledger": "false"}}


def test_machines_and_what_they_need_are_made_only_with_the_tag() -> None:
    for kind, action in (
        ("instance", "ec2:RunInstances"),
        ("volume", "ec2:RunInstances"),
        ("key-pair", "ec2:ImportKeyPair"),
        ("security-group", "ec2:CreateSecurityGroup"),
    ):
        about = [
            statement
            for name, statement in statements(policy())
            if name == action and any(fnmatchcase(f"arn:aws:ec2:x:y:{kind}/z", arn) for arn in statement["Resource"])
        ]
        assert [each["Condition"] for each in about] == [{"Null": {"aws:RequestTag/cloudrun:ledger": "false"}}], kind


def test_s3_is_in_it_only_for_a_bucket_that_is_named() -> None:
    assert not any(action.startswith("s3:") for action, _ in statements(policy()))
    assert {
        arn
        for action, statement in statements(policy(bucket="b-1"))
        if action.startswith("s3:")
        for arn in statement["Resource"]
    } == {"arn:aws:s3:::b-1", "arn:aws:s3:::b-1/*"}


def test_a_role_for_jobs_may_be_passed_to_machines_only_where_it_is_named() -> None:
    assert not any(action == "iam:PassRole" for action, _ in statements(policy()))
    profile = "arn:aws:iam::123456789012:instance-profile/team/trainer"
    (statement,) = [each for action, each in statements(policy(instance_profile=profile)) if action == "iam:PassRole"]
    assert statement["Resource"] == ["arn:aws:iam::*:role/trainer"]
    assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


def test_a_region_confines_ec2_to_it_and_names_its_part_of_aws() -> None:
    for action, statement in statements(policy(region="cn-north-1")):
        if action.startswith("ec2:"):
            assert statement["Condition"]["StringEquals"]["aws:RequestedRegion"] == "cn-north-1"
        for arn in statement["Resource"]:
            assert arn == "*" or arn.startswith("arn:aws-cn:")


def test_it_is_small_enough_for_a_policy_of_ones_own() -> None:
    """6,144 characters without white space is what a managed policy may have (IAM quotas)."""
    assert (
        len(
            json.dumps(
                policy(bucket="b" * 63, region="ap-southeast-1", instance_profile="trainer"), separators=(",", ":")
            )
        )
        < 6144
    )
