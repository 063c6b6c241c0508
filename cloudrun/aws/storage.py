"""S3: leave for a unit to put its outputs below one prefix, and to fetch data, without credentials; the way home."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import botocore.exceptions as boto
from botocore.exceptions import ClientError

from cloudrun.aws.errors import LIBRARY_ERRORS, code_of, translate, translated
from cloudrun.aws.session import Aws
from cloudrun.core.errors import (
    BucketMissing,
    CloudrunError,
    CredentialsError,
    ObjectMissing,
    TransferError,
    UsageError,
)
from cloudrun.core.records import RemoteFile, StoredObject, Upload
from cloudrun.core.rundir import safe_relative
from cloudrun.plan.quantities import counted
from cloudrun.plan.typed import quoted

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef, ListObjectsV2OutputTypeDef

POST_MAX_BYTES = 5 * 1024**3  # of one object in one POST (Amazon S3 User Guide, "Uploading objects")
TICKET_LONGEST_S = 7 * 24 * 3600  # of anything presigned ("Authenticating Requests: Using Query Parameters")
DATA_MAX_FILES = 10_000  # of a data set: each is a presigned address of half a kilobyte and more
CHUNK = 1024 * 1024
_DELETED_AT_ONCE = 1000  # what DeleteObjects takes
_CUTS = 5  # how often in a row an answer may break off without a byte before that is an error
_ARCHIVED = frozenset({"GLACIER", "DEEP_ARCHIVE"})  # not readable before they are restored
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})
_NO_BUCKET = "NoSuchBucket"
_WHICH_BUCKETS = "`aws s3 ls` lists your buckets"
_BROKEN = (boto.HTTPClientError, boto.IncompleteReadError, boto.ConnectionError)
# "Bucket naming rules" of the Amazon S3 User Guide, without those for endpoints of other kinds
_BUCKET = re.compile(
    r"(?!xn--|sthree-|\d+\.\d+\.\d+\.\d+$)(?!.*(\.\.|-s3alias$|--ol-s3$))[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
)
_NAME_IT_RIGHT = "a bucket has 3 to 63 small letters, digits, dots and hyphens: --bucket my-results"


class Storage:
    """Buckets as one account in one region sees them. May be used by several threads."""

    def __init__(self, aws: Aws) -> None:
        self._aws = aws
        self._s3 = aws.client("s3")
        self._regions: dict[str, str] = {}  # of buckets
        self._lock = threading.Lock()

    # -- buckets -----------------------------------------------------------------------------------------------------

    def ensure_bucket(self, bucket: str) -> bool:
        """Make sure that the bucket is there, in this region, and ours to use. True where it was made now.

        A new one is private: since April 2023 S3 itself blocks all public access to new buckets, and their ACLs.
        Raises UsageError (a name that cannot be, or is somebody else's; another region) and CredentialsError.
        """
        return not self.has_bucket(bucket) and self._create(bucket)

    def has_bucket(self, bucket: str) -> bool:
        """Whether the bucket is there, in this region, and ours to use. Raises as `ensure_bucket` does."""
        check_bucket_name(bucket)
        region = self._look_up(bucket)
        if region is None:
            return False
        if region != self._aws.region:
            raise UsageError(
                f"the bucket {bucket} is in {region}, the machine would be in {self._aws.region}",
                next_step=f"name a bucket in {self._aws.region}, or --region {region}",
            )
        return True

    def _look_up(self, bucket: str) -> str | None:
        """The region of a bucket that may be used; None where there is no such bucket."""
        with translated(f"look for the bucket {bucket}"):
            try:
                answer = self._s3.head_bucket(Bucket=bucket)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                if _status(error) not in (400, 403):
                    raise
            else:
                return answer.get("BucketRegion") or self._aws.region
        # an answer to HEAD has no body that would say why: ask again in a way that has
        try:
            self._s3.list_objects_v2(Bucket=bucket, MaxKeys=1)
        except LIBRARY_ERRORS as error:
            if code_of(error) in ("AccessDenied", "AllAccessDisabled"):
                raise CredentialsError(
                    f"the bucket {bucket} is somebody else's, or these credentials may not use it",
                    next_step="name another with --bucket, or ask for s3:ListBucket, s3:GetObject and s3:PutObject",
                ) from error
            raise translate(error, f"use the bucket {bucket}") from error
        return self._aws.region

    def _create(self, bucket: str) -> bool:
        arguments: dict[str, Any] = {"Bucket": bucket}
        if self._aws.region != "us-east-1":  # where S3 began, and which it refuses to be told
            arguments["CreateBucketConfiguration"] = {"LocationConstraint": self._aws.region}
        with translated(f"make the bucket {bucket}"):
            try:
                self._s3.create_bucket(**arguments)
            except ClientError as error:
                if code_of(error) == "BucketAlreadyOwnedByYou":
                    return False  # a first try whose answer was lost, or another client at the same moment
                if code_of(error) != "BucketAlreadyExists":
                    raise
                raise UsageError(
                    f"there is a bucket {bucket} already, and it is somebody else's",
                    next_step="name another with --bucket: names are unique in all of AWS",
                ) from error
        return True

    # -- for a unit --------------------------------------------------------------------------------------------------

    def upload_ticket(self, bucket: str, prefix: str, max_bytes: int, expires_s: float) -> Upload:
        """Leave to put objects of up to `max_bytes` (5 GiB at most) below `prefix`, for `expires_s` (7 days at most).

        It is good no longer than the credentials that sign it: `Aws.credentials_expire_at`. No request is made, except
        where credentials have to be renewed. Raises UsageError and CredentialsError.
        """
        check_bucket_name(bucket)
        _check_prefix(prefix)
        limit = max(0, min(max_bytes, POST_MAX_BYTES))
        with translated(f"sign an upload to {bucket}"):
            post = self._s3.generate_presigned_post(
                Bucket=bucket,
                Key=prefix + "${filename}",  # which makes "starts with the prefix" the policy's word on keys
                Conditions=[["content-length-range", 0, limit]],
                ExpiresIn=_expiry(expires_s),
            )
        fields = {name: value for name, value in post["fields"].items() if name != "key"}
        return Upload(url=post["url"], fields=fields, prefix=prefix, max_bytes=limit)

    def download_ticket(self, bucket: str, key: str, expires_s: float) -> str:
        """An address that hands out one object for `expires_s` seconds (7 days at most) to whoever knows it."""
        with translated(f"sign a download from {bucket}"):
            return self._near(bucket).generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_expiry(expires_s)
            )

    def remote_files(self, uri: str, expires_s: float, *, max_files: int = DATA_MAX_FILES) -> tuple[RemoteFile, ...]:
        """What `s3://bucket/key` or `s3://bucket/prefix/` names, for a unit to fetch: paths are below the prefix.

        Raises UsageError where that is nothing, too much, or a key that is no path.
        """
        bucket, start = parse_uri(uri)
        files = []
        for found in self.list_objects(uri, max_files=max_files):
            path = found.key[len(start) :] if not start or start.endswith("/") else found.key.rpartition("/")[2]
            if not safe_relative(path):
                raise UsageError(f"{found.key!r} in {bucket} cannot be a file", next_step="name a prefix without it")
            url = self.download_ticket(bucket, found.key, expires_s)
            files.append(RemoteFile(path=path, url=url, size=found.size, etag=found.etag))
        return tuple(files)

    def _near(self, bucket: str) -> S3Client:
        """A client for the region of a bucket: a presigned address cannot be redirected there."""
        with self._lock:
            region = self._regions.get(bucket)
        if region is None:
            try:
                region = self._s3.head_bucket(Bucket=bucket).get("BucketRegion", "")
            except ClientError as error:  # who may not see a bucket is told where it is all the same
                headers = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
                region = headers.get("x-amz-bucket-region", "")
            region = region or self._aws.region
            with self._lock:
                self._regions[bucket] = region
        return self._s3 if region == self._aws.region else self._aws.client("s3", region)

    # -- reading -----------------------------------------------------------------------------------------------------

    def stat(self, bucket: str, key: str) -> StoredObject | None:
        """One object; None where it, or its bucket, is not there."""
        with translated(f"look for {key} in {bucket}"):
            try:
                answer = self._s3.head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                if _status(error) == 403:
                    raise CredentialsError(
                        f"these credentials may not read {key} in {bucket}, or it is not there",
                        next_step="ask for s3:GetObject and s3:ListBucket, or use another AWS_PROFILE",
                    ) from error
                raise
        return StoredObject(key, answer["ContentLength"], answer["ETag"].strip('"'))

    def exists(self, bucket: str, key: str) -> bool:
        return self.stat(bucket, key) is not None

    def read(self, bucket: str, key: str, offset: int = 0) -> Iterator[bytes]:
        """The bytes of an object from `offset` on, in pieces of at most CHUNK. A cut is gone on from where it was.

        Raises ObjectMissing, BucketMissing, TransferError (replaced meanwhile, shorter than `offset`, cut again and
        again) and CredentialsError.
        """
        etag = ""
        cuts = 0
        while True:
            before = offset
            try:
                answer = self._get(bucket, key, offset, etag)
                if answer is None:
                    return
                etag = answer["ETag"]
                with contextlib.closing(answer["Body"]) as body:
                    for chunk in body.iter_chunks(CHUNK):
                        offset += len(chunk)
                        yield chunk
                return
            except LIBRARY_ERRORS as error:
                cuts = 1 if offset > before else cuts + 1
                if not isinstance(error, _BROKEN) or cuts >= _CUTS:
                    raise translate(error, f"read {key} from {bucket}", otherwise=TransferError) from error

    def _get(self, bucket: str, key: str, offset: int, etag: str) -> GetObjectOutputTypeDef | None:
        """The answer from `offset` on; None where that is exactly the object's end."""
        arguments: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if offset:
            arguments["Range"] = f"bytes={offset}-"
        if etag:
            arguments["IfMatch"] = etag
        try:
            return self._s3.get_object(**arguments)
        except ClientError as error:
            code = code_of(error)
            if code == _NO_BUCKET:
                raise BucketMissing(f"there is no bucket {bucket} (any more)", next_step=_WHICH_BUCKETS) from error
            if code in _MISSING:
                raise ObjectMissing(f"{key} is not in the bucket {bucket}", next_step="pull again later") from error
            if code == "InvalidRange":
                known = self.stat(bucket, key)
                if known is not None and known.size == offset:
                    return None
                raise TransferError(f"{key} in {bucket} is shorter than {offset} bytes") from error
            if _status(error) == 412:
                raise TransferError(f"{key} in {bucket} was replaced while it was read") from error
            raise

    def list_objects(self, uri: str, *, max_files: int = DATA_MAX_FILES) -> tuple[StoredObject, ...]:
        """The object that `s3://bucket/key` names, or all below `s3://bucket/prefix/`, in the order of keys.

        Raises UsageError where there is none, or no such bucket, more than `max_files`, or one that S3 has archived.
        """
        bucket, start = parse_uri(uri)
        if start and not start.endswith("/"):
            one = self.stat(bucket, start)
            if one is None:
                if self._look_up(bucket) is None:  # S3 says only of objects that are listed or read what is missing
                    raise _no_bucket(bucket, uri)
                raise UsageError(
                    f"there is no object {uri}", next_step=f"a folder is named with a slash at its end: {uri}/"
                )
            return (one,)
        found: list[StoredObject] = []
        with translated(f"list {uri}"):
            for page in self._pages(bucket, start, uri):
                for item in page.get("Contents", []):
                    if item["Key"].endswith("/"):
                        continue  # what consoles put where a folder shall be
                    if item.get("StorageClass") in _ARCHIVED:
                        raise UsageError(
                            f"s3://{bucket}/{item['Key']} is archived",
                            next_step="restore it with `aws s3api restore-object`, then repeat",
                        )
                    if len(found) >= max_files:
                        raise UsageError(
                            f"there are more than {max_files} objects below {uri}",
                            next_step="pack them into fewer, or name a prefix with less below it",
                        )
                    found.append(StoredObject(item["Key"], item["Size"], item["ETag"].strip('"')))
        if not found:
            raise UsageError(f"there is nothing below {uri}", next_step=f"look with `aws s3 ls {quoted(uri)}`")
        return tuple(found)

    def _pages(self, bucket: str, start: str, uri: str) -> Iterator[ListObjectsV2OutputTypeDef]:
        try:
            yield from self._s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start)
        except ClientError as error:
            if code_of(error) == _NO_BUCKET:
                raise _no_bucket(bucket, uri) from error
            raise

    # -- clearing up -------------------------------------------------------------------------------------------------

    def delete_prefix(self, bucket: str, prefix: str) -> int:
        """Delete all below `prefix`, which ends in a slash so that it is nobody else's. Returns how many objects.

        Raises UsageError for any other prefix; CloudrunError, when all have been tried, where S3 kept some.
        """
        _check_prefix(prefix)
        deleted = 0
        kept: list[str] = []
        with translated(f"delete {prefix} from {bucket}"):
            pages = self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": _DELETED_AT_ONCE}
            )
            try:
                for page in pages:
                    keys = [item["Key"] for item in page.get("Contents", []) if item["Key"].startswith(prefix)]
                    if keys:
                        failed = self._delete(bucket, keys)
                        deleted += len(keys) - len(failed)
                        kept += failed
            except ClientError as error:
                if code_of(error) != _NO_BUCKET:
                    raise
        if kept:
            raise CloudrunError(
                f"S3 kept {counted(len(kept), 'object')} below {prefix} in {bucket}: {kept[0]}",
                next_step=f"aws s3 rm --recursive s3://{bucket}/{prefix}",
            )
        return deleted

    def _delete(self, bucket: str, keys: Sequence[str]) -> list[str]:
        """Delete up to 1000 objects; returns what S3 says of those that it kept."""
        answer = self._s3.delete_objects(
            Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True}
        )
        return [f"{error.get('Key', '')} ({error.get('Code', '')})" for error in answer.get("Errors", [])]


def _no_bucket(bucket: str, uri: str) -> UsageError:
    return UsageError(f"there is no bucket {bucket}: {uri} is nowhere", next_step=f"correct its name; {_WHICH_BUCKETS}")


def check_bucket_name(bucket: str) -> None:
    """Raises UsageError for a name that no bucket can have."""
    if not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{bucket!r} cannot be the name of a bucket", next_step=_NAME_IT_RIGHT)


def parse_uri(uri: str) -> tuple[str, str]:
    """Bucket and key (or prefix, "" or with a slash at its end) of `s3://...`. Raises UsageError."""
    if not uri.startswith("s3://"):
        raise UsageError(f"{uri!r} is not an address in S3", next_step="write it like s3://bucket/folder/")
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    check_bucket_name(bucket)
    return bucket, key


def _check_prefix(prefix: str) -> None:
    """An empty prefix would be the whole bucket; one without a slash at its end, a neighbour's too."""
    if not prefix.endswith("/") or not safe_relative(prefix.rstrip("/")) or "$" in prefix or not prefix.isascii():
        raise UsageError(f"{prefix!r} is no prefix for outputs", next_step="write it like folder/of/a/run/")


def _expiry(expires_s: float) -> int:
    return int(max(1, min(expires_s, TICKET_LONGEST_S)))


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
