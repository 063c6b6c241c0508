"""Outputs and data through the region's S3, as a unit sends and fetches them: every signature and policy is checked."""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cloudrun.agent.download import fetch
from cloudrun.agent.errors import AgentError
from cloudrun.agent.upload import upload
from cloudrun.aws.session import Aws, connect
from cloudrun.aws.storage import Storage
from cloudrun.core.errors import UsageError
from cloudrun.core.rundir import RunDir
from cloudrun.runs.stored import contents, read_stored
from cloudrun.sandbox.client import Region
from tests.uploads import begin, finish

PREFIX = "cloudrun/ledger/r-1.1/"
STATUS = {"state": "exited", "exit_code": 3}


@pytest.fixture
def aws_of_region(region: Region) -> Aws:
    return connect(
        region=region.region,
        endpoint_url=region.endpoint_url,
        access_key=region.access_key,
        secret_key=region.secret_key,
    )


@pytest.fixture
def storage(aws_of_region: Aws) -> Storage:
    return Storage(aws_of_region)


@pytest.fixture
def bucket(storage: Storage) -> str:
    name = f"results-{uuid.uuid4().hex}"
    assert storage.ensure_bucket(name)
    return name


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that has ended, with outputs of all sizes."""
    made = begin(tmp_path / "run")
    finish(made, **{"a b/ü+~$.bin": os.urandom(3_000_000), "same": b"x", "again": b"x", "empty": b""})
    return made


def ticket(storage: Storage, bucket: str, max_bytes: int = 10**9) -> dict[str, Any]:
    leave = storage.upload_ticket(bucket, PREFIX, max_bytes, 600)
    return {**asdict(replace(leave, fields=dict(leave.fields)))}


def test_outputs_go_up_and_come_home_whole_and_then_leave_nothing(storage: Storage, bucket: str, run: RunDir) -> None:
    assert read_stored(storage, bucket, PREFIX) is None
    upload(run, ticket(storage, bucket), STATUS)
    stored = read_stored(storage, bucket, PREFIX)
    assert stored is not None
    assert stored.status.exit_code == 3
    names = set()
    for entry in (*stored.outputs.entries, *stored.outputs.logs):
        content = b"".join(contents(storage, bucket, PREFIX, stored, entry))
        assert (len(content), hashlib.sha256(content).hexdigest()) == (entry.size, entry.sha256)
        assert b"".join(contents(storage, bucket, PREFIX, stored, entry, entry.size // 2)) == content[entry.size // 2 :]
        names.add(entry.path)
    assert names == {"a b/ü+~$.bin", "same", "again", "empty", "stdout.log", "stderr.log"}
    assert storage.delete_prefix(bucket, PREFIX) == 5
    with pytest.raises(UsageError, match="nothing below"):
        storage.list_objects(f"s3://{bucket}/")


def test_outputs_in_parts_come_home_whole(storage: Storage, bucket: str, run: RunDir) -> None:
    upload(run, ticket(storage, bucket, max_bytes=1_000_000), STATUS)
    stored = read_stored(storage, bucket, PREFIX)
    assert stored is not None
    assert list(stored.parts.values()) == [3]
    for entry in stored.outputs.entries:
        content = b"".join(contents(storage, bucket, PREFIX, stored, entry))
        assert hashlib.sha256(content).hexdigest() == entry.sha256


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prefix": "cloudrun/ledger/r-2.1/"}, "key"),
        ({"prefix": "../"}, "key"),
        ({"max_bytes": 10**9}, "content-length-range"),
    ],
)
def test_a_ticket_is_good_for_its_prefix_and_size_alone(
    storage: Storage, bucket: str, run: RunDir, change: dict[str, Any], words: str
) -> None:
    told = {**ticket(storage, bucket, max_bytes=1_000_000), **change}
    with pytest.raises(AgentError, match=f"refused with 403 .*Policy.*{words}"):
        upload(run, told, STATUS)
    assert not run.stored.exists()
    assert read_stored(storage, bucket, told["prefix"]) is None


def test_a_ticket_for_one_bucket_opens_no_other(storage: Storage, bucket: str, run: RunDir) -> None:
    other = f"other-{uuid.uuid4().hex}"
    storage.ensure_bucket(other)
    told = ticket(storage, bucket)
    with pytest.raises(AgentError, match="refused with 403"):
        upload(run, {**told, "url": told["url"].replace(bucket, other)}, STATUS)


def test_a_ticket_that_was_tampered_with_is_worth_nothing(storage: Storage, bucket: str, run: RunDir) -> None:
    told = ticket(storage, bucket)
    signature = told["fields"]["x-amz-signature"]
    told["fields"]["x-amz-signature"] = ("0" if signature[0] != "0" else "1") + signature[1:]
    with pytest.raises(AgentError, match="SignatureDoesNotMatch"):
        upload(run, told, STATUS)


def test_data_is_fetched_by_its_presigned_addresses(
    storage: Storage, aws_of_region: Aws, bucket: str, tmp_path: Path
) -> None:
    client = aws_of_region.client("s3")
    objects = {"iris/train.csv": os.urandom(2_500_000), "iris/more/ü b+.csv": b"1,2\n"}
    for key, content in objects.items():
        client.put_object(Bucket=bucket, Key=key, Body=content)
    files = [asdict(file) for file in storage.remote_files(f"s3://{bucket}/iris/", 600)]
    fetch(tmp_path / "data", files, lambda *_: None)
    for key, content in objects.items():
        assert (tmp_path / "data" / key.removeprefix("iris/")).read_bytes() == content
    client.put_object(Bucket=bucket, Key="iris/train.csv", Body=b"another")
    with pytest.raises(AgentError, match="was replaced"):
        fetch(tmp_path / "later", files, lambda *_: None)
    files[0]["url"] = files[0]["url"].replace("train", "other").replace("more", "less")
    with pytest.raises(AgentError, match="SignatureDoesNotMatch"):
        fetch(tmp_path / "wrong", files[:1], lambda *_: None)
