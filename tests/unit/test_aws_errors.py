"""Whatever boto3 can raise, and every error code that EC2 documents, becomes one error of ours with a next step."""

from __future__ import annotations

import inspect

import boto3.exceptions
import botocore.exceptions
import pytest
from botocore.parsers import ResponseParserError

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

EXCEPTIONS = sorted(
    {
        member
        for module in (botocore.exceptions, boto3.exceptions)
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Exception) and not issubclass(member, Warning) and member.__module__ == module.__name__
        if not issubclass(member, botocore.exceptions.ClientError)  # of these the code decides, see below
    }
    - {botocore.exceptions.BotoCoreError},
    key=lambda member: member.__name__,
)

# "Error codes for the Amazon EC2 API": common ones, then those of single actions that cloudrun calls or that a launch
# can meet, then the server's; and the common ones of SSM and STS
CODES = """
AuthFailure Blocked DryRunOperation IdempotentParameterMismatch IncompleteSignature InvalidAction InvalidCharacter
InvalidClientTokenId InvalidPaginationToken InvalidParameter InvalidParameterCombination InvalidParameterDependency
InvalidParameterValue InvalidQueryParameter MalformedQueryString MissingAction MissingAuthenticationToken
MissingParameter OptInRequired PendingVerification RequestExpired UnauthorizedOperation UnknownParameter
UnsupportedInstanceAttribute UnsupportedOperation UnsupportedProtocol ValidationError

AttachmentLimitExceeded BootForVolumeTypeUnsupported CannotDelete ConcurrentTagAccess CustomerKeyHasBeenRevoked
DefaultVpcDoesNotExist DependencyViolation DiskImageSizeTooLarge EncryptedVolumesNotSupported FilterLimitExceeded
HostLimitExceeded IdempotentInstanceTerminated InaccessibleStorageLocation IncompatibleHostRequirements
IncorrectInstanceState IncorrectModificationState IncorrectState InstanceCreditSpecification.NotSupported
InstanceLimitExceeded InsufficientCapacityOnHost InsufficientFreeAddressesInSubnet
InsufficientReservedInstancesCapacity InvalidAMIID.Malformed InvalidAMIID.NotFound InvalidAMIID.Unavailable
InvalidAvailabilityZone InvalidBlockDeviceMapping InvalidClientToken InvalidDevice.InUse InvalidFilter InvalidFormat
InvalidGroup.Duplicate InvalidGroup.InUse InvalidGroup.NotFound InvalidGroup.Reserved InvalidGroupId.Malformed
InvalidID InvalidInput InvalidInstanceAttributeValue InvalidInstanceFamily InvalidInstanceID
InvalidInstanceID.Malformed InvalidInstanceID.NotFound InvalidInstanceState InvalidInstanceType
InvalidInterface.IpAddressLimitExceeded InvalidKey.Format InvalidKeyPair.Duplicate InvalidKeyPair.Format
InvalidKeyPair.NotFound InvalidMaxResults InvalidNetworkInterface.InUse InvalidNextToken InvalidPermission.Duplicate
InvalidPermission.Malformed InvalidPermission.NotFound InvalidPlacementGroup.Unknown InvalidRegion InvalidRequest
InvalidReservationID.NotFound InvalidSecurity.RequestHasExpired InvalidSecurityGroupID.NotFound
InvalidSecurityGroupId.Malformed InvalidSnapshot.NotFound InvalidSpotInstanceRequestID.NotFound InvalidState
InvalidSubnet InvalidSubnetID.NotFound InvalidTagKey.Malformed InvalidTenancy InvalidTime InvalidUserID.Malformed
InvalidVolume.NotFound InvalidVolume.ZoneMismatch InvalidVpcID.NotFound InvalidVpcState InvalidZone.NotFound
KeyPairLimitExceeded MaxIOPSLimitExceeded MaxScheduledInstanceCapacityExceeded MaxSpotInstanceCountExceeded
MissingInput NetworkInterfaceLimitExceeded NonEBSInstance NoSuchVersion OperationNotPermitted
PrivateIpAddressLimitExceeded RequestResourceCountExceeded ReservationCapacityExceeded ReservedInstancesUnavailable
Resource.AlreadyAssigned Resource.AlreadyAssociated ResourceCountExceeded ResourceCountLimitExceeded
ResourceLimitExceeded RulesPerSecurityGroupLimitExceeded ScheduledInstanceSlotUnavailable
SecurityGroupLimitExceeded SecurityGroupsPerInstanceLimitExceeded SecurityGroupsPerInterfaceLimitExceeded
SignatureDoesNotMatch SnapshotCopyUnsupported.InterRegion SnapshotCreationPerVolumeRateExceeded SpotMaxPriceTooLow
TagLimitExceeded UnavailableHostRequirements UnknownPrincipalType.Unsupported UnknownVolumeType Unsupported
UnsupportedException UnsupportedHibernationConfiguration UnsupportedTenancy VPCIdNotSpecified
VPCResourceNotSpecified VcpuLimitExceeded VolumeIOPSLimit VolumeInUse VolumeLimitExceeded
VolumeTypeNotAvailableInZone ZonesMismatched

InsufficientAddressCapacity InsufficientCapacity InsufficientHostCapacity InsufficientInstanceCapacity
InsufficientReservedInstanceCapacity InsufficientVolumeCapacity InternalError InternalFailure RequestLimitExceeded
ServiceUnavailable Unavailable

AccessDenied AccessDeniedException ExpiredToken ExpiredTokenException IncompleteSignatureException
InternalServerError InvalidSignatureException MissingAuthenticationTokenException ParameterNotFound
ParameterVersionNotFound RequestTimeout RequestTimeoutException Throttling ThrottlingException
TooManyRequestsException UnrecognizedClientException ValidationException
""".split()  # noqa: SIM905 - as a list it would be two hundred lines


def refusal(code: str, status: int = 400, message: str = "because") -> botocore.exceptions.ClientError:
    response = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return botocore.exceptions.ClientError(response, "RunInstances")  # type: ignore[arg-type]


@pytest.mark.parametrize("member", EXCEPTIONS, ids=lambda member: member.__name__)
def test_every_exception_of_boto_has_a_rule(member: type[Exception]) -> None:
    error = member.__new__(member)  # each wants other arguments, and the rule asks for the class only
    assert isinstance(error, LIBRARY_ERRORS)
    rule = rule_of(error)
    assert rule is not None
    assert rule.next_step


@pytest.mark.parametrize("code", [code for code in CODES if code != "DryRunOperation"])
def test_every_error_code_has_a_rule(code: str) -> None:
    rule = rule_of(refusal(code))
    assert rule is not None
    assert rule.next_step


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
