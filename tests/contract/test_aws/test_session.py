"""Credentials, region and patience: what a user has set is used, what is wrong in it is told at once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from cloudrun.aws.session import (
    ATTEMPTS,
    CONNECT_TIMEOUT_S,
    FIRST_ATTEMPTS,
    FIRST_READ_TIMEOUT_S,
    Aws,
    connect,
)
from cloudrun.core.errors import CloudrunError, ConfigError, CredentialsError, UsageError

from .conftest import Endpoint

CONFIG = """
[default]
region = eu-west-1
[profile north]
region = eu-north-1
aws_access_key_id = AKIAI44QH8DHBEXAMPLE
aws_secret_access_key = je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY
[profile login]
region = us-east-1
sso_start_url = https://example.awsapps.com/start
sso_region = us-east-1
sso_account_id = 123456789012
sso_role_name = trainer
[profile trainer]
role_arn = arn:aws:iam::123456789012:role/trainer
source_profile = login
[profile helper]
credential_process = /nowhere/helper
[profile circle]
role_arn = arn:aws:iam::123456789012:role/trainer
source_profile = circle
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with nothing set for AWS, on a machine that is no instance of EC2."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return tmp_path


@pytest.fixture
def configured(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user with keys in the environment and some profiles."""
    folder = home / ".aws"
    folder.mkdir()
    (folder / "config").write_text(CONFIG)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    return folder / "config"


@pytest.mark.parametrize(
    ("given", "variables", "profile", "expected"),
    [
        ("ap-south-1", {"AWS_REGION": "us-west-2"}, None, "ap-south-1"),
        (None, {"AWS_REGION": "us-west-2", "AWS_DEFAULT_REGION": "us-west-1"}, None, "us-west-2"),
        (None, {"AWS_DEFAULT_REGION": "us-west-1"}, "north", "us-west-1"),
        (None, {}, "north", "eu-north-1"),
        (None, {}, None, "eu-west-1"),
    ],
)
def test_the_region_is_the_one_that_is_said_nearest(
    configured: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    variables: dict[str, str],
    profile: str | None,
    expected: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    aws = connect(region=given, profile=profile)
    assert (aws.region, aws.region_guessed) == (expected, False)


def test_a_region_that_nobody_names_is_guessed_and_says_so(configured: Path) -> None:
    configured.unlink()
    aws = connect(region=None)
    assert (aws.region, aws.region_guessed) == ("us-east-1", True)


def test_an_unknown_region_names_near_ones(configured: Path) -> None:
    with pytest.raises(UsageError, match=r"'eu-wst-1'; did you mean eu-west-1") as caught:
        connect(region="eu-wst-1")
    assert "--region" in caught.value.next_step


def test_no_credentials_is_said_before_any_request(home: Path) -> None:
    with pytest.raises(CredentialsError, match="no AWS credentials") as caught:
        connect(region="us-east-1")
    assert "aws configure" in caught.value.next_step


@pytest.mark.parametrize(
    ("variables", "expected", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": ""}, CredentialsError, "missing: AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "AKIA\nEXAMPLE"}, CredentialsError, "line break"),
        ({"AWS_SECRET_ACCESS_KEY": "schlüssel"}, CredentialsError, "special letter"),
        ({"AWS_PROFILE": "nobody"}, ConfigError, "nobody"),
        ({"AWS_PROFILE": "circle"}, ConfigError, "Infinite loop"),
        ({"AWS_PROFILE": "helper"}, CredentialsError, "/nowhere/helper"),
        ({"AWS_CONFIG_FILE": os.devnull + "/x", "AWS_PROFILE": "north"}, ConfigError, "north"),
    ],
)
def test_settings_that_are_wrong_are_named(
    configured: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    expected: type[CloudrunError],
    words: str,
) -> None:
    if "AWS_PROFILE" in variables:  # keys in the environment would win over a profile's
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(expected, match=words) as caught:
        connect(region="us-east-1")
    assert caught.value.next_step


def test_a_config_file_that_is_no_config_file_is_named(configured: Path) -> None:
    configured.write_text("region: eu-west-1\n")
    with pytest.raises(ConfigError, match="Unable to parse config file"):
        connect(region="us-east-1")


@pytest.mark.parametrize("profile", ["login", "trainer"])
def test_a_login_that_has_ended_says_how_to_log_in(
    configured: Path, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    """Also where a role is assumed with it."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CredentialsError) as caught:
        connect(region="us-east-1", profile=profile).account_id()
    assert "`aws sso login --profile login`" in caught.value.next_step
    assert caught.value.exit_code == 4


def test_an_endpoint_variable_that_is_no_address_is_a_config_error(
    configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(ConfigError, match="Invalid endpoint: nonsense"):
        connect(region="us-east-1").account_id()


@contextlib.contextmanager
def _listener(answer: bytes | None) -> Iterator[str]:
    """An address that accepts connections and then sends `answer`, or hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(65536)
                        if answer:
                            connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _portal() -> bytes:
    page = b"<html>Please log in to the hotel's network</html>"
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)


@pytest.mark.parametrize("answer", [None, _portal()], ids=["hangs up", "login page"])
def test_a_network_that_does_not_lead_to_aws_is_a_clear_error(
    configured: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    with _listener(answer) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(CloudrunError, match="could not reach AWS in us-east-1") as caught:
            connect(region="us-east-1").account_id()
    assert "network" in caught.value.next_step or "login page" in caught.value.next_step


def test_a_closed_door_is_a_clear_error(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(CloudrunError, match="Could not connect"):
            connect(region="us-east-1").account_id()


def test_a_dead_proxy_is_named(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(CloudrunError, match="proxy") as caught:
            connect(region="us-east-1").account_id()
    assert "HTTPS_PROXY" in caught.value.next_step


def test_patience_is_seconds_and_no_variable_makes_it_minutes(
    configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "50")
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    aws = connect(region="us-east-1")
    for service, attempts in (("sts", FIRST_ATTEMPTS), ("ec2", ATTEMPTS)):
        config = aws.client(service).meta.config  # type: ignore[call-overload]
        assert config.connect_timeout == CONNECT_TIMEOUT_S
        assert config.retries["mode"] == "standard"
        assert config.retries["total_max_attempts"] == attempts
    assert FIRST_ATTEMPTS * (CONNECT_TIMEOUT_S + FIRST_READ_TIMEOUT_S) <= 30


def test_an_endpoint_of_ones_own_hears_nothing_of_the_users_settings(
    endpoint: Endpoint, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = home / "config"
    broken.write_text("this is no configuration\n")
    for name, value in {
        "AWS_CONFIG_FILE": str(broken),
        "AWS_PROFILE": "nobody",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:1",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_MAX_ATTEMPTS": "many",
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "AKIA\n",
        "AWS_SESSION_TOKEN": "a token of somewhere else",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
        "ALL_PROXY": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    aws = connect(region="us-east-1", endpoint_url=endpoint.url, access_key="AKIDEXAMPLE", secret_key="secret")
    assert aws.region == "us-east-1"
    assert aws.account_id() == "123456789012"


def test_clients_are_made_once_and_shared_between_threads(aws: Aws) -> None:
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(aws.client("ssm"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 8
    assert len({id(client) for client in seen}) == 1


def helper(configured: Path, text: str) -> None:
    """A profile whose keys a program prints."""
    program = configured.parent / "helper.py"
    program.write_text(f"print({text!r})\n")
    with configured.open("a") as stream:
        stream.write(f"[profile printed]\ncredential_process = {sys.executable} {program}\n")


def test_keys_that_do_not_expire_have_no_end(configured: Path) -> None:
    assert connect(region="us-east-1").credentials_expire_at() is None


def test_temporary_keys_end_when_they_say(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert connect(region="us-east-1").credentials_expire_at() is None  # nobody said
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", end.astimezone(timezone(timedelta(hours=3))).isoformat())
    expires = connect(region="us-east-1").credentials_expire_at()
    assert expires == end
    assert expires is not None
    assert expires.tzinfo is UTC


def test_keys_of_a_helper_program_end_when_it_says(configured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    keys = {"Version": 1, "AccessKeyId": "AKIA", "SecretAccessKey": "x", "SessionToken": "t"}
    helper(configured, json.dumps({**keys, "Expiration": end.isoformat()}))
    aws = connect(region="us-east-1", profile="printed")
    assert aws.credentials_expire_at() == end


def test_keys_that_are_about_to_expire_are_renewed_before_they_are_asked(
    endpoint: Endpoint, configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What counts is the end of the keys that sign the next request."""
    with configured.open("a") as stream:
        stream.write("[profile assumed]\nrole_arn = arn:aws:iam::123456789012:role/trainer\n")
        stream.write("credential_source = Environment\n")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint.url)
    aws = connect(region="us-east-1", profile="assumed")
    expires = aws.credentials_expire_at()
    assert expires is not None
    assert timedelta(minutes=50) < expires - datetime.now(UTC) < timedelta(minutes=70)
    assert "AssumeRole" in endpoint.actions()


def test_a_role_that_cannot_be_assumed_is_an_error_when_its_end_is_asked(
    configured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with configured.open("a") as stream:
        stream.write("[profile assumed]\nrole_arn = arn:aws:iam::123456789012:role/trainer\n")
        stream.write("credential_source = Environment\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(CloudrunError, match="how long the AWS credentials are good"):
            connect(region="us-east-1", profile="assumed").credentials_expire_at()
