"""Buckets: made once, private tickets for one prefix, read back whole whatever happens to the connection."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import threading
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import pytest

from cloudrun.aws.session import Aws, connect
from cloudrun.aws.storage import POST_MAX_BYTES, TICKET_LONGEST_S, Storage, check_bucket_name, parse_uri
from cloudrun.core.errors import BucketMissing, CloudrunError, ObjectMissing, TransferError, UsageError


class S3:
    """What passes between the client and S3, and where it is cut: after how many bytes of an answer's body."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[tuple[str, str]] = []
        self.cuts: list[int] = []
        self.statuses: list[int] = []  # what the next ones are answered instead


@pytest.fixture
def s3(moto_url: str) -> Iterator[S3]:
    memory = S3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            memory.requests.append((self.command, self.path))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if memory.statuses:
                self.send_response(memory.statuses.pop(0))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            upstream = http.client.HTTPConnection(urllib.parse.urlsplit(moto_url).netloc, timeout=30)
            with contextlib.closing(upstream):
                upstream.request(self.command, self.path, body, dict(self.headers))
                answer = upstream.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "date", "server", "transfer-encoding", "content-length"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length)
                self.end_headers()
                if memory.cuts and self.command == "GET" and answer.status in (200, 206):
                    self.wfile.write(content[: memory.cuts.pop(0)])
                    self.wfile.flush()
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.wfile.write(content)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - as the base class calls them

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    memory.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield memory
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def aws(s3: S3) -> Aws:
    return connect(region="us-east-1", endpoint_url=s3.url, access_key="AKIDEXAMPLE", secret_key="secret")


@pytest.fixture
def storage(aws: Aws) -> Storage:
    return Storage(aws)


@pytest.fixture
def bucket(storage: Storage) -> str:
    name = f"results-{uuid.uuid4().hex}"
    assert storage.ensure_bucket(name)
    return name


def put(aws: Aws, bucket: str, key: str, content: bytes, **other: str) -> None:
    aws.client("s3").put_object(Bucket=bucket, Key=key, Body=content, **other)  # type: ignore[arg-type]


def test_a_bucket_is_made_once(storage: Storage, bucket: str) -> None:
    assert storage.ensure_bucket(bucket) is False


def test_looking_for_a_bucket_makes_none(storage: Storage, bucket: str) -> None:
    assert storage.has_bucket(bucket) is True
    other = f"results-{uuid.uuid4().hex}"
    assert storage.has_bucket(other) is False
    assert storage.has_bucket(other) is False


@pytest.mark.parametrize(
    "name",
    ["", "ab", "A-bucket", "my_bucket", "-bucket", "bucket-", "a" * 64, "a..b", "192.168.1.1", "xn--a", "x/y", "a\nb"],
)
def test_a_name_that_no_bucket_has_is_refused_before_any_request(storage: Storage, s3: S3, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a bucket") as caught:
        storage.ensure_bucket(name)
    assert "--bucket" in caught.value.next_step
    assert s3.requests == []


@pytest.mark.parametrize("name", ["abc", "my.bucket-1", "1bucket", "a" * 63])
def test_a_name_that_a_bucket_may_have_is_taken(name: str) -> None:
    check_bucket_name(name)


def test_a_bucket_of_another_region_is_refused_with_its_region(s3: S3) -> None:
    elsewhere = connect(region="eu-west-1", endpoint_url=s3.url, access_key="AKIDEXAMPLE", secret_key="secret")
    name = f"europe-{uuid.uuid4().hex}"
    assert Storage(elsewhere).ensure_bucket(name)
    here = connect(region="us-east-1", endpoint_url=s3.url, access_key="AKIDEXAMPLE", secret_key="secret")
    with pytest.raises(UsageError, match="is in eu-west-1") as caught:
        Storage(here).ensure_bucket(name)
    assert "--region eu-west-1" in caught.value.next_step


def test_an_upload_ticket_is_for_one_prefix_and_size(storage: Storage, bucket: str) -> None:
    ticket = storage.upload_ticket(bucket, "ledger/r-1.1/", 100 * 1024**3, 30 * 24 * 3600)
    assert ticket.max_bytes == POST_MAX_BYTES
    assert "key" not in ticket.fields
    policy = json.loads(base64.b64decode(ticket.fields["policy"]))
    assert ["starts-with", "$key", "ledger/r-1.1/"] in policy["conditions"]
    assert ["content-length-range", 0, POST_MAX_BYTES] in policy["conditions"]
    assert {"bucket": bucket} in policy["conditions"]
    lifetime = datetime.fromisoformat(policy["expiration"]) - datetime.now(UTC)
    assert TICKET_LONGEST_S - 60 < lifetime.total_seconds() <= TICKET_LONGEST_S


@pytest.mark.parametrize("prefix", ["", "/", "a", "/a/", "../a/", "a//b/", "a/${filename}/", "a/\n/"])
def test_a_prefix_that_could_be_a_neighbours_is_refused(storage: Storage, s3: S3, bucket: str, prefix: str) -> None:
    s3.requests.clear()
    with pytest.raises(UsageError, match="no prefix"):
        storage.upload_ticket(bucket, prefix, 10, 60)
    with pytest.raises(UsageError, match="no prefix"):
        storage.delete_prefix(bucket, prefix)
    assert s3.requests == []


def test_addresses_on_aws_are_of_the_bucket_in_its_region() -> None:
    session = boto3.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret", region_name="eu-west-1")
    storage = Storage(Aws(session, "eu-west-1"))
    ticket = storage.upload_ticket("my-bucket", "a/", 10, 60)
    assert ticket.url == "https://my-bucket.s3.eu-west-1.amazonaws.com/"
    session = boto3.Session(aws_access_key_id="AKIDEXAMPLE", aws_secret_access_key="secret", region_name="us-east-1")
    assert (
        Storage(Aws(session, "us-east-1"))
        .upload_ticket("my-bucket", "a/", 10, 60)
        .url.startswith("https://my-bucket.s3.")
    )


def test_an_object_is_read_whole_and_from_any_byte(storage: Storage, aws: Aws, bucket: str) -> None:
    content = bytes(range(256)) * 12_000
    put(aws, bucket, "a/b", content)
    assert b"".join(storage.read(bucket, "a/b")) == content
    assert b"".join(storage.read(bucket, "a/b", 1_000_000)) == content[1_000_000:]
    assert b"".join(storage.read(bucket, "a/b", len(content))) == b""
    assert max(map(len, storage.read(bucket, "a/b"))) <= 1024 * 1024
    with pytest.raises(TransferError, match="shorter than"):
        b"".join(storage.read(bucket, "a/b", len(content) + 1))


def test_an_empty_object_is_read(storage: Storage, aws: Aws, bucket: str) -> None:
    put(aws, bucket, "empty", b"")
    assert list(storage.read(bucket, "empty")) == []
    assert storage.exists(bucket, "empty")


def test_a_cut_in_the_middle_is_gone_on_from(storage: Storage, aws: Aws, bucket: str, s3: S3) -> None:
    content = bytes(range(256)) * 12_000
    put(aws, bucket, "a", content)
    s3.cuts = [0, 100, 1_500_000, 3, 0, 0, 7]
    assert b"".join(storage.read(bucket, "a")) == content
    assert s3.cuts == []


def test_an_object_that_is_never_whole_is_an_error(storage: Storage, aws: Aws, bucket: str, s3: S3) -> None:
    put(aws, bucket, "a", b"12345")
    s3.cuts = [0] * 100
    with pytest.raises(TransferError, match=f"could not read a from {bucket}") as caught:
        b"".join(storage.read(bucket, "a"))
    assert caught.value.next_step


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(
    storage: Storage, aws: Aws, bucket: str, s3: S3
) -> None:
    put(aws, bucket, "a", b"x" * 3_000_000)
    s3.cuts = [2_500_000]
    reading = storage.read(bucket, "a")
    next(reading)
    put(aws, bucket, "a", b"y" * 3_000_000)
    with pytest.raises(TransferError, match="replaced"):
        b"".join(reading)


def test_a_busy_s3_is_asked_again(storage: Storage, aws: Aws, bucket: str, s3: S3) -> None:
    put(aws, bucket, "a", b"12345")
    s3.statuses = [503, 500]
    assert b"".join(storage.read(bucket, "a")) == b"12345"


def test_what_is_missing_is_told_from_what_cannot_be_read(storage: Storage, bucket: str) -> None:
    assert storage.stat(bucket, "none") is None
    assert not storage.exists(f"{bucket}-none", "none")
    with pytest.raises(ObjectMissing):
        b"".join(storage.read(bucket, "none"))
    with pytest.raises(BucketMissing, match=f"no bucket {bucket}-none"):
        b"".join(storage.read(f"{bucket}-none", "none"))


def test_a_prefix_and_an_object_are_listed(storage: Storage, aws: Aws, bucket: str) -> None:
    for key in ("data/a", "data/b/c", "data/folder/", "database"):
        put(aws, bucket, key, key.encode())
    listed = storage.list_objects(f"s3://{bucket}/data/")
    assert [(found.key, found.size) for found in listed] == [("data/a", 6), ("data/b/c", 8)]
    assert all(found.etag and '"' not in found.etag for found in listed)
    (one,) = storage.list_objects(f"s3://{bucket}/data/a")
    assert one == listed[0]
    assert len(storage.list_objects(f"s3://{bucket}")) == 3
    with pytest.raises(UsageError, match="more than 2"):
        storage.list_objects(f"s3://{bucket}", max_files=2)


@pytest.mark.parametrize(("rest", "words"), [("none", "no object"), ("none/", "nothing below")])
def test_data_that_is_not_there_is_a_usage_error(storage: Storage, bucket: str, rest: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        storage.list_objects(f"s3://{bucket}/{rest}")


@pytest.mark.parametrize("rest", ["", "none", "none/"])
def test_a_bucket_that_is_not_there_is_said_to_be_missing(storage: Storage, bucket: str, rest: str) -> None:
    with pytest.raises(UsageError, match=f"no bucket {bucket}-none") as missing:
        storage.list_objects(f"s3://{bucket}-none/{rest}")
    assert "aws s3 ls" in missing.value.next_step


def test_archived_data_says_how_to_restore_it(storage: Storage, aws: Aws, bucket: str) -> None:
    put(aws, bucket, "old/a", b"1", StorageClass="GLACIER")
    with pytest.raises(UsageError, match="is archived") as caught:
        storage.list_objects(f"s3://{bucket}/old/")
    assert "restore-object" in caught.value.next_step


@pytest.mark.parametrize("uri", ["http://a/b", "s3://", "s3:///a", "s3://B/x", "bucket/key"])
def test_what_is_no_address_in_s3_is_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        parse_uri(uri)


def test_remote_files_are_named_below_their_prefix_and_can_be_fetched(storage: Storage, aws: Aws, bucket: str) -> None:
    put(aws, bucket, "data/a b+c", b"one")
    put(aws, bucket, "data/d/é", b"two")
    files = storage.remote_files(f"s3://{bucket}/data/", 600)
    assert [file.path for file in files] == ["a b+c", "d/é"]
    assert [urllib.request.urlopen(file.url, timeout=60).read() for file in files] == [b"one", b"two"]
    (one,) = storage.remote_files(f"s3://{bucket}/data/d/é", 600)
    assert one.path == "é"


def test_a_key_that_is_no_path_is_refused(storage: Storage, aws: Aws, bucket: str) -> None:
    put(aws, bucket, "data/a//b", b"one")
    with pytest.raises(UsageError, match="cannot be a file"):
        storage.remote_files(f"s3://{bucket}/data/", 600)


def test_only_what_is_below_the_prefix_is_deleted(storage: Storage, aws: Aws, bucket: str) -> None:
    for key in ("r-1.1/a", "r-1.1/b/c", "r-1.10/a", "r-1", "other"):
        put(aws, bucket, key, b"x")
    assert storage.delete_prefix(bucket, "r-1.1/") == 2
    assert [found.key for found in storage.list_objects(f"s3://{bucket}")] == ["other", "r-1", "r-1.10/a"]
    assert storage.delete_prefix(bucket, "r-1.1/") == 0
    assert storage.delete_prefix(f"{bucket}-none", "r-1.1/") == 0


@pytest.mark.slow
def test_more_than_one_call_deletes_is_deleted(storage: Storage, aws: Aws, bucket: str) -> None:
    for number in range(1005):
        put(aws, bucket, f"r/{number}", b"")
    assert storage.delete_prefix(bucket, "r/") == 1005


def test_a_region_that_is_not_there_is_a_network_error() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        aws = connect(region="us-east-1", endpoint_url=url, access_key="AKIDEXAMPLE", secret_key="secret")
        with pytest.raises(CloudrunError, match="could not look for the bucket some-bucket") as caught:
            Storage(aws).ensure_bucket("some-bucket")
    assert "network" in caught.value.next_step
