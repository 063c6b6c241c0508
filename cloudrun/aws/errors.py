"""The one place where boto's errors become cloudrun's: every exception class and error code, each with a next step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import boto3.exceptions
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

from cloudrun.core.errors import (
    CapacityError,
    CloudrunError,
    ConfigError,
    CredentialsError,
    QuotaError,
    UsageError,
)

# what boto3 may raise: three roots, two that botocore left without one, and the KeyError of an answer that is somebody
# else's (a login page) or lacks what every answer has
LIBRARY_ERRORS = (
    boto.BotoCoreError,
    boto.ClientError,
    boto3.exceptions.Boto3Error,
    boto.UndefinedModelAttributeError,
    ResponseParserError,
    KeyError,
)


@dataclass(frozen=True)
class Rule:
    """What an error of the library means to a user. `error` None leaves the class to the caller."""

    error: type[CloudrunError] | None
    next_step: str


_CREDENTIALS = Rule(CredentialsError, "run `aws configure` or set AWS_PROFILE, then try `aws sts get-caller-identity`")
_KEYS = Rule(
    CredentialsError,
    "try `aws sts get-caller-identity`, then `aws configure` or another AWS_PROFILE; "
    "a region that the account has not enabled looks like this too",
)
_EXPIRED = Rule(CredentialsError, "log in again (`aws sso login`, or get new temporary keys), then repeat the command")
_PERMISSION = Rule(CredentialsError, "ask for the permission that is named here, or use another AWS_PROFILE")
_ACCOUNT = Rule(CredentialsError, "finish the account's sign-up or enable the region in the AWS console, then repeat")
_CLOCK = Rule(CredentialsError, "set this computer's clock right: AWS refuses requests that look old")
_CONFIG = Rule(ConfigError, "correct the setting in ~/.aws/config or in the AWS_* variable it names")
_REGION = Rule(UsageError, "name a region with --region or AWS_REGION, for example us-east-1")
_NETWORK = Rule(None, "check the network (and HTTPS_PROXY if there is one), then repeat; the sandbox needs neither")
_PROXY = Rule(None, "check HTTPS_PROXY and NO_PROXY, then repeat")
_TLS = Rule(None, "if a proxy inspects TLS here, point AWS_CA_BUNDLE at its certificate; then repeat")
_GARBLED = Rule(
    None, "something between here and AWS changed the answer: check for a proxy or a login page, then repeat"
)
_CAPACITY = Rule(CapacityError, "try another --instance-type or --region, or the same again in some minutes")
_ADDRESSES = Rule(CapacityError, "use a larger subnet or another region: this one has no free address left")
_SPOT_PRICE = Rule(CapacityError, "leave out --spot, or try another --instance-type or --region")
_QUOTA = Rule(QuotaError, "see `cloudrun units`, or ask for more in the Service Quotas console")
_THROTTLED = Rule(None, "wait a minute and repeat: the account makes too many requests at once")
_INPUT = Rule(UsageError, "correct the value that is named here, then repeat")
_UNSUPPORTED = Rule(UsageError, "try another --instance-type, --image or --region: they do not go together here")
_NO_VPC = Rule(UsageError, "run `aws ec2 create-default-vpc`, or name another --region")
_ARCHIVED = Rule(UsageError, "restore it from its archive storage class with `aws s3api restore-object`, then repeat")
_TOKEN = Rule(None, "repeat the command: it launches under a token of its own")
_STATE = Rule(None, "look with `cloudrun units`, then repeat: it may be on its way to another state")
_SERVER = Rule(None, "repeat in a minute; https://health.aws.amazon.com says whether the region has trouble")
_DEPENDENCY = Rule(None, "install what is named here beside cloudrun, or use other credentials")
_BUG = Rule(None, "this should not happen: please report it with the output of `pip list`")

# the first class that matches decides, so the particular come before the general
_CLASSES: tuple[tuple[tuple[type[BaseException], ...], Rule], ...] = (
    ((boto.UnauthorizedSSOTokenError, boto.SSOTokenLoadError, boto.LoginRefreshRequired), _EXPIRED),
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
        _CREDENTIALS,
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
        _REGION,
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
        _CONFIG,
    ),
    ((boto.ProxyConnectionError,), _PROXY),
    ((boto.SSLError,), _TLS),
    ((boto.ConnectionError, boto.HTTPClientError), _NETWORK),
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
        _GARBLED,
    ),
    ((boto.CapacityNotAvailableError,), _THROTTLED),  # botocore's own brake after too many retries
    ((boto.MissingDependencyException, boto.MD5UnavailableError), _DEPENDENCY),
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
        _INPUT,
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
        _BUG,
    ),
)

# Error codes, from "Error codes for the Amazon EC2 API" and the common ones of S3, SSM and STS. The first line with a
# pattern for the whole code decides, so the particular come before the general. A lack of capacity is an HTTP 500
# there: the code is asked before the status.
_CODES: tuple[tuple[Rule, re.Pattern[str]], ...] = tuple(
    (rule, re.compile("|".join(patterns)))
    for rule, *patterns in (
        (_EXPIRED, r"ExpiredToken(Exception)?", "RequestExpired", "TokenRefreshRequired"),
        (_CLOCK, "RequestTimeTooSkewed", "RequestInTheFuture", r"InvalidSecurity\.RequestHasExpired"),
        (_KEYS, "AuthFailure", "InvalidClientTokenId", "InvalidAccessKeyId", "InvalidToken", "NotAuthorized"),
        (_KEYS, r"UnrecognizedClient(Exception)?", r"MissingAuthenticationToken(Exception)?"),
        (_KEYS, r"IncompleteSignature(Exception)?", "SignatureDoesNotMatch", r"InvalidSignature(Exception)?"),
        (_PERMISSION, r"UnauthorizedOperation(\..+)?", r"AccessDenied(Exception)?", "OperationNotPermitted"),
        (
            _PERMISSION,
            "AllAccessDisabled",
            "AccountProblem",
            "CustomerKeyHasBeenRevoked",
            "InaccessibleStorageLocation",
            ".*PermissionIssue",
        ),
        (_PERMISSION, "AllAccessDisabled", "AccountProblem"),
        (_ACCOUNT, "OptInRequired", "PendingVerification", "Blocked", r"SubscriptionRequired(Exception)?"),
        (_THROTTLED, "RequestLimitExceeded", "Throttl.*", r"TooManyRequests(Exception)?", "SlowDown"),
        (_THROTTLED, "BandwidthLimitExceeded", "RequestThrottled.*", "PriorRequestNotComplete", "ConcurrentTagAccess"),
        (_THROTTLED, ".*RateExceeded", "Concurrent.*LimitExceeded"),
        (_ADDRESSES, "InsufficientFreeAddressesInSubnet", "InsufficientAddressCapacity"),
        (_SPOT_PRICE, "SpotMaxPriceTooLow"),
        (_CAPACITY, "Insufficient.*Capacity.*", "ReservationCapacityExceeded", "ReservedInstancesUnavailable"),
        (_CAPACITY, "UnfulfillableCapacity", "(Unavailable|Incompatible)HostRequirements", ".*SlotUnavailable"),
        (_QUOTA, r".*LimitExceeded(Exception)?", ".*CountExceeded", ".*CapacityExceeded", "VolumeIOPSLimit"),
        (_NO_VPC, "DefaultVpcDoesNotExist", "VPCIdNotSpecified", "VPCResourceNotSpecified"),
        (_UNSUPPORTED, r"(.*\.)?Unsupported.*", r".*Unsupported(\..+)?", r".*NotSupported(Exception)?"),
        (_UNSUPPORTED, "NonEBSInstance", "VolumeTypeNotAvailableInZone", "ZonesMismatched", "InvalidInstanceFamily"),
        (_ARCHIVED, "InvalidObjectState"),
        (_REGION, "PermanentRedirect", "IllegalLocationConstraintException", "AuthorizationHeaderMalformed"),
        (_STATE, "DependencyViolation", r".*InUse(Exception)?", "InUse.*", "Incorrect.*", ".*State", ".*InProgress"),
        (_STATE, ".*AlreadyExists.*", ".*Conflict", r".*\.Duplicate", "CannotDelete", r"Resource\.Already.*"),
        (_GARBLED, r"[34]\d\d"),  # botocore's word for an answer that is not in AWS's form
        (
            _SERVER,
            "Internal(Error|Failure|ServerError)",
            "(Service)?Unavailable(Exception)?",
            r"RequestTimeout.*|5\d\d",
        ),
        (_TOKEN, "Idempotent.*"),
        (_INPUT, "Invalid.*", "Missing.*", "Malformed.*", "Unknown.*", r"Validation(Error|Exception)"),
        (_INPUT, r".*NotFound(Exception)?", ".*Malformed", ".*Mismatch", ".*TooLarge", "NoSuch.*"),
    )
)
_REFUSALS = (_CAPACITY, _ADDRESSES, _SPOT_PRICE, _QUOTA)
_DEFAULT = Rule(None, "see what AWS says here; `aws ec2 help` and the EC2 documentation explain its words")


@contextmanager
def translated(action: str, *, otherwise: type[CloudrunError] = CloudrunError) -> Iterator[None]:
    """Raise boto's errors as cloudrun's. `action` completes "could not ..."; `otherwise` is for what has no class."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        raise translate(error, action, otherwise=otherwise) from error


def translate(error: Exception, action: str, *, otherwise: type[CloudrunError] = CloudrunError) -> CloudrunError:
    """The error of ours that says what one of `LIBRARY_ERRORS` said."""
    rule = rule_of(error) or _DEFAULT
    return (rule.error or otherwise)(f"could not {action}: {_words(error)}", next_step=rule.next_step)


def rule_of(error: Exception) -> Rule | None:
    """The rule for an error, or None where no table knows it."""
    if isinstance(error, boto.ClientError) and code_of(error):
        return _rule_of_code(code_of(error))
    return next((rule for classes, rule in _CLASSES if isinstance(error, classes)), None)


def _rule_of_code(code: str) -> Rule | None:
    return next((rule for rule, pattern in _CODES if pattern.fullmatch(code.removeprefix("Client."))), None)


def code_of(error: BaseException) -> str:
    """AWS's error code, "" where the error is not an answer of AWS."""
    if not isinstance(error, boto.ClientError):
        return ""
    return str(error.response.get("Error", {}).get("Code", ""))


def answer_lost(error: Exception) -> bool:
    """Whether a request that ended like this may have been carried out all the same.

    It was not where no connection came about or where AWS says a plain no. In every other case (no answer, half an
    answer, the answer of something in between, a server error) nobody knows.
    """
    if isinstance(error, boto.ClientError):
        return outcome_unknown(code_of(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if isinstance(error, boto.SSLError):
        return "CERTIFICATE_VERIFY_FAILED" not in str(error)
    return isinstance(error, (boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError, KeyError))


def outcome_unknown(code: str, status: int) -> bool:
    """Whether an error answer leaves open what has happened: a server error that is not one of EC2's refusals."""
    rule = _rule_of_code(code)
    return rule is _SERVER or (status >= 500 and rule not in (*_REFUSALS, _THROTTLED))


def refused(error: Exception) -> bool:
    """Whether AWS has looked at what was asked for and said no, rather than at who asked or how often."""
    return (
        isinstance(error, boto.ClientError)
        and not answer_lost(error)
        and rule_of(error) not in (_KEYS, _EXPIRED, _CLOCK, _PERMISSION, _ACCOUNT, _THROTTLED, _GARBLED)
    )


def _words(error: Exception) -> str:
    """What the library said, in one line."""
    if isinstance(error, (ResponseParserError, KeyError)):
        return "the answer is not in AWS's form"  # their own words hold the whole answer, or one of its words
    if not isinstance(error, boto.ClientError) or not code_of(error):
        return " ".join(str(error).split())
    code = code_of(error)
    message = " ".join(str(error.response["Error"].get("Message", "")).split())
    # kilobytes of base64 that say nothing to a reader
    message = re.sub(r"\s*Encoded authorization failure message: \S+", "", message)
    return f"{message.rstrip('.')} ({code})" if message else code
