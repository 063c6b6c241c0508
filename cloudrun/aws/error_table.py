"""What every error of boto3 and botocore, and every error code that AWS documents for our calls, means to a user.

`cloudrun doctor --errors` prints it. The rules are read from the top: the particular come before the general.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import boto3.exceptions
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

from cloudrun.aws.error_codes import DOCUMENTED
from cloudrun.core.errors import (
    CapacityError,
    CloudrunError,
    ConfigError,
    CredentialsError,
    QuotaError,
    UsageError,
)


@dataclass(frozen=True)
class Rule:
    """What an error of the library means to a user. `error` None leaves the class to the caller."""

    error: type[CloudrunError] | None
    next_step: str


CREDENTIALS = Rule(CredentialsError, "run `aws configure` or set AWS_PROFILE, then try `aws sts get-caller-identity`")
KEYS = Rule(
    CredentialsError,
    "try `aws sts get-caller-identity`, then `aws configure` or another AWS_PROFILE; "
    "a region that the account has not enabled looks like this too",
)
SSO = Rule(
    CredentialsError, "type `aws sso login` (with --profile NAME where it is another's), then repeat the command"
)
EXPIRED = Rule(CredentialsError, "get new temporary keys (`aws sso login` where they come from there), then repeat")
PERMISSION = Rule(
    CredentialsError,
    "allow the action that is named here (cloudrun init --iam-policy prints all that cloudrun needs), or use another "
    "AWS_PROFILE",
)
ACCOUNT = Rule(CredentialsError, "finish the account's sign-up or enable the region in the AWS console, then repeat")
CLOCK = Rule(CredentialsError, "set this computer's clock right: AWS refuses requests that look old")
CONFIG = Rule(ConfigError, "correct the setting in ~/.aws/config or in the AWS_* variable it names")
REGION = Rule(UsageError, "name a region with --region or AWS_REGION, for example us-east-1")
NETWORK = Rule(None, "check the network (and HTTPS_PROXY if there is one), then repeat; the sandbox needs neither")
PROXY = Rule(None, "check HTTPS_PROXY and NO_PROXY, then repeat")
TLS = Rule(None, "if a proxy inspects TLS here, point AWS_CA_BUNDLE at its certificate; then repeat")
GARBLED = Rule(
    None, "something between here and AWS changed the answer: check for a proxy or a login page, then repeat"
)
CAPACITY = Rule(CapacityError, "try another --instance-type or --region, or the same again in some minutes")
ADDRESSES = Rule(CapacityError, "use a larger subnet or another region: this one has no free address left")
SPOT_PRICE = Rule(CapacityError, "leave out --spot, or try another --instance-type or --region")
QUOTA = Rule(QuotaError, "see `cloudrun units`, or ask for more in the Service Quotas console")
THROTTLED = Rule(None, "wait a minute and repeat: the account makes too many requests at once")
INPUT = Rule(UsageError, "correct the value that is named here, then repeat")
UNSUPPORTED = Rule(UsageError, "try another --instance-type, --image or --region: they do not go together here")
NO_VPC = Rule(UsageError, "run `aws ec2 create-default-vpc`, or name another --region")
ARCHIVED = Rule(UsageError, "restore it from its archive storage class with `aws s3api restore-object`, then repeat")
TOKEN = Rule(None, "repeat the command: it launches under a token of its own")
STATE = Rule(None, "look with `cloudrun units`, then repeat: it may be on its way to another state")
SERVER = Rule(None, "repeat in a minute; https://health.aws.amazon.com says whether the region has trouble")
CHANGED = Rule(None, "repeat the command: what is in the bucket has changed meanwhile")
DEPENDENCY = Rule(None, "install what is named here beside cloudrun, or use other credentials")
BUG = Rule(None, "this should not happen: please report it with the output of `pip list`")

# the first class that matches decides, so the particular come before the general
CLASSES: tuple[tuple[tuple[type[BaseException], ...], Rule], ...] = (
    ((boto.UnauthorizedSSOTokenError, boto.SSOTokenLoadError), SSO),
    ((boto.LoginRefreshRequired,), EXPIRED),
    (
        (
            boto.NoCredentialsError,
            boto.PartialCredentialsError,
            boto.CredentialRetrievalError,
            boto.TokenRetrievalError,
            boto.NoAuthTokenError,
            boto.SSOError,
            boto.LoginError,
            boto.RefreshWithMFAUnsupportedError,
            boto.UnknownCredentialError,
            boto.UnknownTokenProviderError,
            boto.MetadataRetrievalError,
        ),
        CREDENTIALS,
    ),
    (
        (
            boto.NoRegionError,
            boto.InvalidRegionError,
            boto.UnknownRegionError,
            boto.UnknownEndpointError,
            boto.ServiceNotInRegionError,
            boto.UnknownFIPSEndpointError,
            boto.EndpointVariantError,
            boto.BaseEndpointResolverError,
            boto.EndpointProviderError,
        ),
        REGION,
    ),
    (
        (
            boto.ProfileNotFound,
            boto.ConfigNotFound,
            boto.ConfigParseError,
            boto.InvalidConfigError,
            boto.InvalidRetryConfigurationError,
            boto.InvalidDefaultsMode,
            boto.InvalidChecksumConfigError,
            boto.InvalidEndpointConfigurationError,
            boto.InvalidEndpointDiscoveryConfigurationError,
            boto.InvalidIMDSEndpointError,
            boto.InvalidIMDSEndpointModeError,
            boto.InvalidProxiesConfigError,
            boto.InvalidS3AddressingStyleError,
            boto.InvalidS3UsEast1RegionalEndpointConfigError,
            boto.InvalidSTSRegionalEndpointsConfigError,
            boto.UnsupportedS3AccesspointConfigurationError,
            boto.UnsupportedS3ConfigurationError,
            boto.UnsupportedS3ControlConfigurationError,
            boto.UnknownSignatureVersionError,
            boto.UnsupportedSignatureVersionError,
        ),
        CONFIG,
    ),
    ((boto.ProxyConnectionError,), PROXY),
    ((boto.SSLError,), TLS),
    ((boto.ConnectionError, boto.HTTPClientError), NETWORK),
    (
        (
            boto.IncompleteReadError,
            boto.ChecksumError,
            boto.FlexibleChecksumError,
            boto.AwsChunkedWrapperError,
            boto.UnseekableStreamError,
            ResponseParserError,
            KeyError,
        ),
        GARBLED,
    ),
    ((boto.CapacityNotAvailableError,), THROTTLED),  # botocore's own brake after too many retries
    ((boto.MissingDependencyException, boto.MD5UnavailableError), DEPENDENCY),
    (
        (
            boto.ParamValidationError,
            boto.ValidationError,
            boto.AliasConflictParameterError,
            boto.MissingParametersError,
            boto.InvalidDNSNameError,
            boto.InvalidHostLabelError,
            boto.UnsupportedOutpostResourceError,
            boto.UnsupportedS3ArnError,
            boto.UnsupportedS3ControlArnError,
        ),
        INPUT,
    ),
    (
        (
            boto.ApiVersionNotFoundError,
            boto.DataNotFoundError,
            boto.UndefinedModelAttributeError,
            boto.UnknownClientMethodError,
            boto.UnknownServiceStyle,
            boto.UnsupportedServiceProtocolsError,
            boto.OperationNotPageableError,
            boto.InvalidExpressionError,
            boto.PaginationError,
            boto.StubResponseError,
            boto.WaiterError,
            boto.WaiterConfigError,
            boto3.exceptions.Boto3Error,
        ),
        BUG,
    ),
)

# Error codes, from "Error codes for the Amazon EC2 API" and the common ones of S3, SSM and STS. The first line with a
# pattern for the whole code decides, so the particular come before the general. A lack of capacity is an HTTP 500
# there: the code is asked before the status.
CODES: tuple[tuple[Rule, re.Pattern[str]], ...] = tuple(
    (rule, re.compile("|".join(patterns)))
    for rule, *patterns in (
        (EXPIRED, r"ExpiredToken(Exception)?", "RequestExpired", "TokenRefreshRequired"),
        (CLOCK, "RequestTimeTooSkewed", "RequestInTheFuture", r"InvalidSecurity\.RequestHasExpired"),
        (KEYS, "AuthFailure", "InvalidClientTokenId", "InvalidAccessKeyId", "InvalidToken", "NotAuthorized"),
        (KEYS, r"UnrecognizedClient(Exception)?", r"MissingAuthenticationToken(Exception)?"),
        (KEYS, r"IncompleteSignature(Exception)?", "SignatureDoesNotMatch", r"InvalidSignature(Exception)?"),
        (PERMISSION, r"UnauthorizedOperation(\..+)?", r"AccessDenied(Exception)?", "OperationNotPermitted"),
        (
            PERMISSION,
            "AllAccessDisabled",
            "AccountProblem",
            "CustomerKeyHasBeenRevoked",
            "InaccessibleStorageLocation",
            ".*PermissionIssue",
        ),
        (KEYS, "AuthorizationQueryParametersError", "TokenCodeInvalidError", "CredentialsNotSupported"),
        (PERMISSION, "UnauthorizedAccessError", "NotDeviceOwnerError"),
        (ACCOUNT, "NotSignedUp", "RegionDisabledException"),
        (ACCOUNT, "OptInRequired", "PendingVerification", "Blocked", r"SubscriptionRequired(Exception)?"),
        (THROTTLED, "RequestLimitExceeded", "Throttl.*", r"TooManyRequests(Exception)?", "SlowDown"),
        (THROTTLED, "BandwidthLimitExceeded", "RequestThrottled.*", "PriorRequestNotComplete", "ConcurrentTagAccess"),
        (THROTTLED, ".*RateExceeded", "Concurrent.*LimitExceeded"),
        (ADDRESSES, "InsufficientFreeAddressesInSubnet", "InsufficientAddressCapacity"),
        (SPOT_PRICE, "SpotMaxPriceTooLow"),
        (CAPACITY, "Insufficient.*Capacity.*", "ReservationCapacityExceeded", "ReservedInstancesUnavailable"),
        (CAPACITY, "UnfulfillableCapacity", "(Unavailable|Incompatible)HostRequirements", ".*SlotUnavailable"),
        (QUOTA, "TooManyBuckets"),
        (QUOTA, r".*LimitExceeded(Exception)?", ".*CountExceeded", ".*CapacityExceeded", "VolumeIOPSLimit"),
        (NO_VPC, "DefaultVpcDoesNotExist", "VPCIdNotSpecified", "VPCResourceNotSpecified"),
        (UNSUPPORTED, r"(.*\.)?Unsupported.*", r".*Unsupported(\..+)?", r".*NotSupported(Exception)?"),
        (UNSUPPORTED, "NonEBSInstance", "VolumeTypeNotAvailableInZone", "ZonesMismatched", "InvalidInstanceFamily"),
        (ARCHIVED, "InvalidObjectState"),
        (REGION, "PermanentRedirect", "IllegalLocationConstraintException", "AuthorizationHeaderMalformed"),
        (CHANGED, "NotModified", "PreconditionFailed", "OperationAborted", "ConditionalRequestConflict"),
        (CHANGED, "BucketNotEmpty", "ExpiredNextTokenException"),
        (STATE, "DependencyViolation", r".*InUse(Exception)?", "InUse.*", "Incorrect.*", ".*State", ".*InProgress"),
        (STATE, ".*AlreadyExists.*", ".*Conflict", r".*\.Duplicate", "CannotDelete", r"Resource\.Already.*"),
        (GARBLED, "BadDigest", "IncompleteBody", "ConnectionClosedByRequester", "RequestAbortedException"),
        (GARBLED, r"[34]\d\d"),  # botocore's word for an answer that is not in AWS's form
        (
            SERVER,
            "Internal(Error|Failure|ServerError)",
            "(Service)?Unavailable(Exception)?",
            r"RequestTimeout.*|5\d\d",
        ),
        (SERVER, "InternalErrorException", "ServiceException", "(Temporary)?Redirect"),
        (TOKEN, "Idempotent.*"),
        (BUG, "BadRequest", "IllegalArgumentException", "MethodNotAllowed", "NotImplemented", "UnexpectedContent"),
        (BUG, "Max(Message|PostPreData)LengthExceeded(Error)?", "RequestIsNotMultiPartContent"),
        (BUG, "RequestTorrentOfBucketError", "UserKeyMustBeSpecified", "TooManyParts"),
        (INPUT, "BucketAlreadyOwnedByYou", "Entity(TooSmall|TooLarge)", "KeyTooLongError"),
        (INPUT, "RequestEntityTooLargeException"),
        (INPUT, "Invalid.*", "Missing.*", "Malformed.*", "Unknown.*", r"Validation(Error|Exception)"),
        (INPUT, r".*NotFound(Exception)?", ".*Malformed", ".*Mismatch", ".*TooLarge", "NoSuch.*"),
    )
)
DEFAULT = Rule(None, "see what AWS says here; `aws ec2 help` and the EC2 documentation explain its words")


def rule_of_class(error: Exception) -> Rule | None:
    """The rule for an exception that is no answer of AWS's, or None where no line knows it."""
    return next((rule for classes, rule in CLASSES if isinstance(error, classes)), None)


def rule_of_code(code: str) -> Rule | None:
    """The rule for an error code, or None where no line knows it."""
    return next((rule for rule, pattern in CODES if pattern.fullmatch(code.removeprefix("Client."))), None)


@dataclass(frozen=True)
class Line:
    """`source`: "botocore", "boto3", or the service that documents the code. `error` is "CloudrunError" where what was
    being done decides (a launch fails with LaunchError, a transfer with TransferError)."""

    source: str
    name: str
    error: str
    exit_code: int
    next_step: str


def table() -> Iterator[Line]:
    """A line for each exception class of the two libraries, and for each documented error code."""
    for source, member in library_classes():
        yield _line(source, member.__name__, rule_of_class(member.__new__(member)))
    for source, codes in DOCUMENTED.items():
        for code in codes:
            yield _line(source, code, rule_of_code(code))


def library_classes() -> list[tuple[str, type[Exception]]]:
    """Every exception class that botocore and boto3 have, but for their two roots: of `ClientError` and its like the
    code decides."""
    return [
        (module.__name__.partition(".")[0], member)
        for module in (boto, boto3.exceptions)
        for name, member in sorted(vars(module).items())
        if isinstance(member, type)
        and name == member.__name__  # else another name for one that is there already
        and issubclass(member, Exception)
        and not issubclass(member, (Warning, boto.ClientError))
        and member.__module__ == module.__name__
        and member is not boto.BotoCoreError
    ]


def _line(source: str, name: str, rule: Rule | None) -> Line:
    rule = rule or DEFAULT
    error = rule.error or CloudrunError
    return Line(source, name, error.__name__, error.exit_code, rule.next_step)
