"""The one place where boto's errors become cloudrun's: every exception class and error code, each with a next step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import boto3.exceptions
import botocore.exceptions as boto
from botocore.parsers import ResponseParserError

from cloudrun.aws.actions import actions_of
from cloudrun.aws.error_table import (
    ACCOUNT,
    ADDRESSES,
    CAPACITY,
    CLOCK,
    DEFAULT,
    EXPIRED,
    GARBLED,
    KEYS,
    PERMISSION,
    QUOTA,
    SERVER,
    SPOT_PRICE,
    THROTTLED,
    Rule,
    rule_of_class,
    rule_of_code,
)
from cloudrun.core.errors import CloudrunError

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


_ENCODED = re.compile(r"\s*Encoded authorization failure message: \S+")
_REFUSALS = (CAPACITY, ADDRESSES, SPOT_PRICE, QUOTA)


@contextmanager
def translated(action: str, *, otherwise: type[CloudrunError] = CloudrunError) -> Iterator[None]:
    """Raise boto's errors as cloudrun's. `action` completes "could not ..."; `otherwise` is for what has no class."""
    try:
        yield
    except LIBRARY_ERRORS as error:
        raise translate(error, action, otherwise=otherwise) from error


def translate(error: Exception, action: str, *, otherwise: type[CloudrunError] = CloudrunError) -> CloudrunError:
    """The error of ours that says what one of `LIBRARY_ERRORS` said."""
    rule = rule_of(error) or DEFAULT
    next_step = _how_to_allow(error) if is_denial(error) else rule.next_step
    return (rule.error or otherwise)(f"could not {action}: {_words(error)}", next_step=next_step)


def is_denial(error: Exception) -> bool:
    """Whether AWS knows who asks, and does not allow it."""
    return isinstance(error, boto.ClientError) and rule_of(error) is PERMISSION


def _how_to_allow(error: Exception) -> str:
    """The permission that is missing, by IAM's name for it: as AWS says it, or else as the call implies it."""
    said = str(error)
    named = re.search(r"(?:perform: |allows the )([a-z0-9-]+:[A-Za-z]+)", said)
    action = named[1] if named else " and ".join(actions_of(getattr(error, "operation_name", "")))
    step = f"allow {action} (cloudrun init --iam-policy prints all that cloudrun needs), or use another AWS_PROFILE"
    if _ENCODED.search(said):
        step += "; with --debug AWS's encoded reason is shown, for `aws sts decode-authorization-message`"
    return step


def rule_of(error: Exception) -> Rule | None:
    """The rule for an error, or None where no table knows it."""
    if isinstance(error, boto.ClientError) and code_of(error):
        return rule_of_code(code_of(error))
    return rule_of_class(error)


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
    rule = rule_of_code(code)
    return rule is SERVER or (status >= 500 and rule not in (*_REFUSALS, THROTTLED))


def refused(error: Exception) -> bool:
    """Whether AWS has looked at what was asked for and said no, rather than at who asked or how often."""
    return (
        isinstance(error, boto.ClientError)
        and not answer_lost(error)
        and rule_of(error) not in (KEYS, EXPIRED, CLOCK, PERMISSION, ACCOUNT, THROTTLED, GARBLED)
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
    message = _ENCODED.sub("", message)
    return f"{message.rstrip('.')} ({code})" if message else code
