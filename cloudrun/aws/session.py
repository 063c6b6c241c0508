"""The way into AWS: which account, which region, with what patience. What a user can set of boto3 ends here."""

from __future__ import annotations

import difflib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import boto3
import botocore.session
from botocore.config import Config
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConstantProvider

from cloudrun.aws.errors import translated
from cloudrun.core.errors import ConfigError, CredentialsError, UsageError

if TYPE_CHECKING:
    from mypy_boto3_ec2 import EC2Client
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_ssm import SSMClient
    from mypy_boto3_sts import STSClient

DEFAULT_REGION = "us-east-1"
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 30  # RunInstances of many units takes ten seconds and more
ATTEMPTS = 4  # the first one included
FIRST_ATTEMPTS = 2  # the very first call, to STS, says that there is no network, and soon
FIRST_READ_TIMEOUT_S = 10
_ASKED_ASIDE = ("sts", "pricing", "service-quotas")  # as soon: nothing waits long for what is only good to know
_CHECK_SETTINGS = "correct ~/.aws/config or the AWS_* variable behind this; `aws configure list` shows what is set"


class Aws:
    """One account in one region. Clients are made once and may be shared between threads.

    `region_guessed` says that nobody named a region and `DEFAULT_REGION` was taken.
    """

    def __init__(
        self, session: boto3.Session, region: str, *, region_guessed: bool = False, endpoint_url: str | None = None
    ) -> None:
        self.region = region
        self.region_guessed = region_guessed
        self.endpoint_url = endpoint_url
        self._session = session
        self._core = session._session  # noqa: SLF001  # botocore's own, which knows the profiles
        self._clients: dict[tuple[str, str], Any] = {}
        self._lock = threading.Lock()  # making a client is not thread-safe in boto3, using one is

    @overload
    def client(self, service: Literal["ec2"]) -> EC2Client: ...
    @overload
    def client(self, service: Literal["s3"], region: str | None = None) -> S3Client: ...
    @overload
    def client(self, service: Literal["ssm"]) -> SSMClient: ...
    @overload
    def client(self, service: Literal["sts"]) -> STSClient: ...
    @overload
    def client(self, service: Literal["pricing", "service-quotas"], region: str | None = None) -> Any: ...
    def client(self, service: str, region: str | None = None) -> Any:
        """A boto3 client. Only modules of this package call it: no boto3 object leaves them."""
        region = region or self.region
        with self._lock, _configured(f"use {service} in {region}"):
            if (service, region) not in self._clients:
                config = _patience(first=service in _ASKED_ASIDE, direct=self.endpoint_url is not None)
                if service == "s3":
                    config = config.merge(self._addressing())
                self._clients[service, region] = self._session.client(
                    cast("Any", service), region_name=region, endpoint_url=self.endpoint_url, config=config
                )
            return self._clients[service, region]

    def _addressing(self) -> Config:
        """How S3's addresses are written: a bucket's own name on AWS, so that presigned ones are the region's and need
        no redirect; a path elsewhere, since an endpoint of one's own rarely has a name for every bucket.
        """
        elsewhere = self.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        return Config(signature_version="s3v4", s3={"addressing_style": "path" if elsewhere else "virtual"})

    def credentials_expire_at(self) -> datetime | None:
        """When the credentials that requests are signed with now expire, and with them all that they have signed.

        None for keys that do not, and for a session token of which nobody said how long it is good. May ask a login
        service or a helper program. Raises CredentialsError where that does not work.
        """
        with _naming_the_login(self._core), _configured("find out how long the AWS credentials are good"):
            credentials = self._session.get_credentials()
            if credentials is None:
                return None
            credentials.get_frozen_credentials()  # fetches them where that was put off, renews them where it is time
        expires_at = getattr(credentials, "_expiry_time", None)  # botocore has no public word for it
        return expires_at.astimezone(UTC) if expires_at is not None else None

    def credentials_source(self) -> tuple[str, str]:
        """The profile, and where it had its keys from in botocore's word, as in ("research", "sso"). No secrets."""
        credentials = self._session.get_credentials()
        return self._session.profile_name, str(credentials.method) if credentials is not None else ""

    def account_id(self) -> str:
        """The account the credentials belong to: the cheap check that they work and that AWS can be reached.

        Raises CredentialsError, or CloudrunError where there is no connection.
        """
        with _naming_the_login(self._core), translated(f"reach AWS in {self.region}"):
            return self.client("sts").get_caller_identity()["Account"]


def connect(
    *,
    region: str | None,
    profile: str | None = None,
    endpoint_url: str | None = None,
    access_key: str | None = None,
    secret_key: str | None = None,
) -> Aws:
    """Resolve region and credentials; no request is made, except where an instance's own role has to be asked.

    With an `endpoint_url` the region and both keys are the endpoint's, and nothing that the user set for AWS
    (variables, profiles, proxies) has a say. Raises UsageError (region, profile) and CredentialsError.
    """
    if endpoint_url is not None:
        session = _blind_session()
        own = boto3.Session(
            aws_access_key_id=access_key, aws_secret_access_key=secret_key, region_name=region, botocore_session=session
        )
        return Aws(own, region or DEFAULT_REGION, endpoint_url=endpoint_url)
    with _configured("read the AWS configuration"):
        session = botocore.session.Session(profile=profile)
        # one second and one try for the instance metadata address, which is a black hole outside EC2
        session.set_config_variable("metadata_service_timeout", 1)
        session.set_config_variable("metadata_service_num_attempts", 1)
        # also for the clients that botocore makes itself, to assume a role or to ask a login service
        session.set_default_client_config(_patience(first=True, direct=False))
        found = _find_region(session, region)
        with _naming_the_login(session):
            _require_credentials(session)
        aws = boto3.Session(botocore_session=session, region_name=found or DEFAULT_REGION)
    return Aws(aws, found or DEFAULT_REGION, region_guessed=found is None)


def region_of(region: str | None, profile: str | None = None) -> tuple[str, bool]:
    """The region that `connect` would take, and whether it would be a guess: for whoever has no credentials. Asks
    nobody; raises UsageError."""
    with _configured("read the AWS configuration"):
        found = _find_region(botocore.session.Session(profile=profile), region)
    return found or DEFAULT_REGION, found is None


@contextmanager
def _configured(action: str) -> Iterator[None]:
    """`translated`, and the bare errors that botocore lets pass where a setting or a helper program is wrong."""
    try:
        with translated(action):
            yield
    except ValueError as error:
        raise ConfigError(f"could not {action}: {error}", next_step=_CHECK_SETTINGS) from error
    except OSError as error:
        raise CredentialsError(f"could not {action}: {error}", next_step=_CHECK_SETTINGS) from error


@contextmanager
def _naming_the_login(session: botocore.session.Session) -> Iterator[None]:
    """Credentials that come from a login and are of no use need that login again, whatever it is that has ended."""
    try:
        yield
    except CredentialsError as error:
        if command := _login_command(session):
            error.next_step = f"log in again: run `{command}`, then repeat the command"
        raise


def _login_command(session: botocore.session.Session) -> str:
    """What renews the credentials of the session's profile, or of the one that its role is assumed from; "" where they
    do not come from a login."""
    if "profile" not in session.instance_variables() and "AWS_ACCESS_KEY_ID" in os.environ:
        return ""  # those come first
    profiles = session.full_config.get("profiles", {})
    name = session.profile or "default"
    seen: set[str] = set()
    while name in profiles and name not in seen:
        seen.add(name)
        profile = profiles[name]
        for key, login in (("sso_session", "sso login"), ("sso_start_url", "sso login"), ("login_session", "login")):
            if key in profile:
                return f"aws {login} --profile {name}" if name != "default" else f"aws {login}"
        name = profile.get("source_profile", "")
    return ""


def _patience(*, first: bool, direct: bool) -> Config:
    """How long a client waits, in so many words: botocore's own defaults add up to minutes."""
    settings: dict[str, Any] = {"proxies": {}} if direct else {}
    return Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=FIRST_READ_TIMEOUT_S if first else READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": FIRST_ATTEMPTS if first else ATTEMPTS},
        max_pool_connections=20,
        **settings,
    )


def _blind_session() -> botocore.session.Session:
    """A session that looks at no AWS_* variable and no file of the user's."""
    session = botocore.session.Session()
    store = session.get_component("config_store")
    for name, (_key, _variable, default, _convert) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        store.set_config_provider(name, ConstantProvider(default))
    for name in ("config_file", "credentials_file"):
        store.set_config_provider(name, ConstantProvider(os.devnull))
    for section in ("s3", "proxies_config"):
        store.set_config_provider(section, ConstantProvider(None))
    return session


def _find_region(session: botocore.session.Session, region: str | None) -> str | None:
    """The region that was named: here, in AWS_REGION (botocore does not read it), AWS_DEFAULT_REGION, the profile."""
    named = region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    if not named:
        return None
    known = [name for part in session.get_available_partitions() for name in session.get_available_regions("ec2", part)]
    if named not in known:
        near = difflib.get_close_matches(named, known, n=3)
        raise UsageError(
            f"no AWS region is called {named!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""),
            next_step="name another with --region or AWS_REGION; for a region newer than boto3, upgrade boto3",
            instead=(named, near[0]) if near else None,
        )
    return str(named)


def _require_credentials(session: botocore.session.Session) -> None:
    credentials = session.get_credentials()
    if credentials is None:
        raise CredentialsError(
            "no AWS credentials were found: not in AWS_* variables, not in ~/.aws, no role on this machine",
            next_step="run `aws configure`, or leave out `--provider aws` to use the sandbox, which needs none",
        )
    # keys pasted with a line break end in an exception deep inside the HTTP library; ask those that are at hand
    if type(credentials).__name__ == "Credentials":
        for name, value in (("access key id", credentials.access_key), ("secret access key", credentials.secret_key)):
            if not value or not value.isascii() or any(letter.isspace() for letter in value):
                raise CredentialsError(
                    f"the AWS {name} is empty or has a space, line break or special letter in it",
                    next_step="copy the keys again with `aws configure`, or set the AWS_* variables anew",
                )
