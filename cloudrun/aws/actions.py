"""Which permission IAM asks about for each call that cloudrun makes."""

from __future__ import annotations

from collections.abc import Mapping

# API operation -> the actions that IAM asks about, where it is not the operation's own name. `CreateTags` comes with
# whatever is tagged as it is made.
_OTHER_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "RunInstances": ("ec2:RunInstances", "ec2:CreateTags"),
    "ImportKeyPair": ("ec2:ImportKeyPair", "ec2:CreateTags"),
    "CreateSecurityGroup": ("ec2:CreateSecurityGroup", "ec2:CreateTags"),
    "HeadBucket": ("s3:ListBucket",),
    "ListObjectsV2": ("s3:ListBucket",),
    "CreateBucket": ("s3:CreateBucket",),
    "PutObject": ("s3:PutObject",),
    "HeadObject": ("s3:GetObject",),
    "GetObject": ("s3:GetObject",),
    "DeleteObjects": ("s3:DeleteObject",),
    "GetParameter": ("ssm:GetParameter",),
    "GetProducts": ("pricing:GetProducts",),
    "GetServiceQuota": ("servicequotas:GetServiceQuota",),
    "GetCallerIdentity": ("sts:GetCallerIdentity",),
}


def actions_of(operation: str) -> tuple[str, ...]:
    """What IAM asks about for one API operation, as in ("ec2:StopInstances",)."""
    return _OTHER_ACTIONS.get(operation, (f"ec2:{operation}",))
