"""Whatever boto3 can raise, and every error code that EC2 documents, becomes one error of ours with a next step."""

from __future__ import annotations

import inspect

import boto3.exceptions
import botocore.exceptions
import pytest
from botocore.parsers import ResponseParserError

from cloudrun.aws.error_codes import DOCUMENTED
from cloudrun.aws.error_table import library_classes, rule_of_code, table
from cloudrun.aws.errors import LIBRARY_ERRORS, answer_lost, refused, rule_of, translate, translated
from cloudrun.core.errors import (
    CapacityError,
    CloudrunError,
    ConfigError,
    CredentialsError,
    LaunchError,
    QuotaError,
    UsageError,
)

CODES = sorted({code for codes in DOCUMENTED.values() for code in codes})


def refusal(code: str, status: int = 400, message: str = "because") -> botocore.exceptions.ClientError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "RunInstances")  # type: ignore[arg-type]


# -- the table


def test_every_exception_of_the_two_libraries_is_in_the_table() -> None:
    known = {member for _, member in library_classes()}
    for module in (botocore.exceptions, boto3.exceptions):
        for _, member in inspect.getmembers(module, inspect.isclass):
            if issubclass(member, Exception) and member.__module__ == module.__name__ and member not in known:
                by_code = issubclass(member, botocore.exceptions.ClientError)
                assert by_code or issubclass(member, Warning) or member is botocore.exceptions.BotoCoreError, member


@pytest.mark.parametrize("member", [each for _, each in library_classes()], ids=lambda member: member.__name__)
def test_every_exception_of_boto_has_a_rule(member: type[Exception]) -> None:
    error = member.__new__(member)  # each wants other arguments, and the rule asks for the class only
    assert isinstance(error, LIBRARY_ERRORS)
    rule = rule_of(error)
    assert rule is not None
    assert rule.next_step


@pytest.mark.parametrize("code", CODES)
def test_every_documented_error_code_has_a_rule(code: str) -> None:
    rule = rule_of(refusal(code))
    assert rule is not None
    assert rule.next_step


def test_every_error_that_the_models_of_our_calls_name_is_in_the_table() -> None:
    """EC2's and STS's models name hardly any; the others' do."""
    session = boto3.Session(region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x")
    calls = {
        "s3": ("CreateBucket", "DeleteObjects", "GetObject", "HeadBucket", "HeadObject", "ListObjectsV2", "PutObject"),
        "ssm": ("GetParameter",),
        "sts": ("GetCallerIdentity",),
        "pricing": ("GetProducts",),
        "service-quotas": ("GetServiceQuota",),
    }
    found = set()
    for service, names in calls.items():
        model = session.client(service).meta.service_model
        for name in names:
            for shape in model.operation_model(name).error_shapes:
                found.add(shape.error_code)
                assert rule_of_code(shape.error_code) is not None, (service, name, shape.error_code)
    assert len(found) > 15, "the models say something"


def test_each_line_of_the_table_says_what_to_do_and_with_which_exit_code() -> None:
    lines = list(table())
    assert len(lines) > 400
    assert {line.exit_code for line in lines} == {1, 2, 4, 6}
    assert all(line.next_step for line in lines)
    assert len({(line.source, line.name) for line in lines}) == len(lines), "each once"


def test_a_code_that_nobody_documents_has_a_next_step_too() -> None:
    assert translate(refusal("ACodeThatIsNewToUs"), "launch").next_step


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("AuthFailure", CredentialsError),
        ("UnauthorizedOperation", CredentialsError),
        ("Client.UnauthorizedOperation", CredentialsError),
        ("ExpiredToken", CredentialsError),
        ("RequestExpired", CredentialsError),
        ("OptInRequired", CredentialsError),
        ("InvalidSecurity.RequestHasExpired", CredentialsError),
        ("InsufficientInstanceCapacity", CapacityError),
        ("SpotMaxPriceTooLow", CapacityError),
        ("InsufficientFreeAddressesInSubnet", CapacityError),
        ("VcpuLimitExceeded", QuotaError),
        ("InstanceLimitExceeded", QuotaError),
        ("MaxSpotInstanceCountExceeded", QuotaError),
        ("VolumeLimitExceeded", QuotaError),
        ("InvalidAMIID.NotFound", UsageError),
        ("InvalidParameterValue", UsageError),
        ("Unsupported", UsageError),
        ("VPCIdNotSpecified", UsageError),
        ("RequestLimitExceeded", LaunchError),
        ("InternalError", LaunchError),
        ("ACodeThatIsNewToUs", LaunchError),
    ],
)
def test_an_error_code_becomes_the_class_that_says_what_to_do(code: str, expected: type[CloudrunError]) -> None:
    error = translate(refusal(code), "launch", otherwise=LaunchError)
    assert type(error) is expected
    assert error.next_step


def test_exceptions_keep_their_family() -> None:
    families: dict[type[CloudrunError], Exception] = {
        CredentialsError: botocore.exceptions.NoCredentialsError(),
        ConfigError: botocore.exceptions.ProfileNotFound(profile="nobody"),
        UsageError: botocore.exceptions.NoRegionError(),
        LaunchError: botocore.exceptions.EndpointConnectionError(endpoint_url="https://ec2"),
    }
    for expected, error in families.items():
        assert type(translate(error, "launch", otherwise=LaunchError)) is expected


def test_the_message_says_what_could_not_be_done_and_why_in_one_line() -> None:
    cause = refusal(
        "UnauthorizedOperation", message="Not allowed.\n Encoded authorization failure message: abcDEF-_123"
    )
    with pytest.raises(CredentialsError) as caught, translated("launch 2 x m7i.large"):
        raise cause
    assert str(caught.value) == "could not launch 2 x m7i.large: Not allowed (UnauthorizedOperation)"
    assert caught.value.__cause__ is cause


def test_a_missing_permission_is_named_with_what_allows_it() -> None:
    said = refusal(
        "UnauthorizedOperation",
        message="You are not authorized to perform this operation. User: arn:aws:iam::1:user/x is not authorized to"
        " perform: ec2:RunInstances on resource: * because no identity-based policy allows it."
        " Encoded authorization failure message: abc",
    )
    step = translate(said, "launch").next_step
    assert step.startswith("allow ec2:RunInstances (cloudrun init --iam-policy")
    assert "--debug" in step
    assert "decode-authorization-message" in step


@pytest.mark.parametrize(
    ("operation", "action"), [("HeadBucket", "s3:ListBucket"), ("StopInstances", "ec2:StopInstances")]
)
def test_a_permission_that_aws_does_not_name_is_known_by_the_call(operation: str, action: str) -> None:
    response = {"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}
    error = botocore.exceptions.ClientError(response, operation)  # type: ignore[arg-type]
    step = translate(error, "look").next_step
    assert step.startswith(f"allow {action} (")
    assert "decode" not in step


def test_errors_that_are_not_botos_pass_unchanged() -> None:
    with pytest.raises(KeyboardInterrupt), translated("launch"):
        raise KeyboardInterrupt


LOST = [
    botocore.exceptions.ReadTimeoutError(endpoint_url="x"),
    botocore.exceptions.ConnectionClosedError(endpoint_url="x"),
    botocore.exceptions.HTTPClientError(error="reset"),
    botocore.exceptions.ResponseStreamingError(error="reset"),
    botocore.exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    botocore.exceptions.SSLError(endpoint_url="x", error="decryption failed or bad record mac"),
    ResponseParserError("not XML"),
    KeyError("Instances"),
    refusal("InternalError", 500),
    refusal("ServiceUnavailable", 503),
    refusal("Unavailable", 503),
    refusal("502", 502),  # the answer of something in between
    refusal("ACodeThatIsNewToUs", 500),
]
NOTHING_HAPPENED = [
    botocore.exceptions.ConnectTimeoutError(endpoint_url="x"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="x"),
    botocore.exceptions.ProxyConnectionError(proxy_url="x"),
    botocore.exceptions.SSLError(endpoint_url="x", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
    botocore.exceptions.NoCredentialsError(),
    botocore.exceptions.ParamValidationError(report="x"),
    refusal("InsufficientInstanceCapacity", 500),
    refusal("InsufficientAddressCapacity", 500),
    refusal("RequestLimitExceeded", 503),
    refusal("InvalidParameterValue"),
    refusal("UnauthorizedOperation", 403),
    refusal("ACodeThatIsNewToUs", 400),
]


@pytest.mark.parametrize("error", LOST, ids=repr)
def test_an_answer_that_never_came_whole_is_lost(error: Exception) -> None:
    assert answer_lost(error)
    assert not refused(error)


@pytest.mark.parametrize("error", NOTHING_HAPPENED, ids=repr)
def test_no_connection_and_a_plain_no_are_not_lost(error: Exception) -> None:
    assert not answer_lost(error)


@pytest.mark.parametrize(
    "code", ["AuthFailure", "ExpiredToken", "UnauthorizedOperation", "OptInRequired", "RequestLimitExceeded", "403"]
)
def test_a_no_to_who_asks_or_how_often_says_nothing_about_the_launch(code: str) -> None:
    assert not refused(refusal(code))


@pytest.mark.parametrize("code", ["InsufficientInstanceCapacity", "VcpuLimitExceeded", "InvalidAMIID.NotFound"])
def test_a_no_to_what_is_asked_for_is_a_refusal(code: str) -> None:
    assert refused(refusal(code))
