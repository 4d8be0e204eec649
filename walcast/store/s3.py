"""An archive in an S3 bucket, laid out as Litestream's S3 replica: `<prefix>/<level as 4 hex digits>/<min>-<max>.ltx`.

Around it: `s3_spec` says where and how, `s3_client` speaks to the server, `s3_retry` decides on repeating, `s3_upload`
writes an object, `s3_swap` swaps one, `s3_errors` says what to change. Nothing relies on user metadata coming back, and
on conditional writes only what asks `honours_preconditions` or `honours_swaps` first.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.store import s3_swap
from walcast.store.base import (
    LISTED_MOST,
    WHOLE_MOST_BYTES,
    ListingTooLong,
    ObjectChanged,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    SetAside,
    Versioned,
)
from walcast.store.regular import NotAnObject
from walcast.store.s3_client import from_environment, has_credentials, make_client
from walcast.store.s3_errors import NotUnderstood, PastTheEnd, explain, no_s3, translate
from walcast.store.s3_retry import Bounds, Retries
from walcast.store.s3_spacing import Spacing, write_interval_s
from walcast.store.s3_spec import S3Spec, customer_key
from walcast.store.s3_upload import PART_BYTES, Target, upload
from walcast.store.swaps import check_size, keeps_to_versions

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PAGES_MOST = 20_000
_PROGRESS_BYTES = 1 << 20  # what must come between two interruptions of a body; less is no progress, for ever
_DELETE_BATCH = 100  # 1000 are allowed, but some servers take a second for each hundred
_METADATA_TIMESTAMP = "litestream-timestamp"
# Each of these is in a listing; what has none is another kind of answer, and must not pass for an empty archive.
_LISTING = {"Name", "IsTruncated", "KeyCount", "MaxKeys", "Contents"}


class S3Store:
    """Objects of one bucket under one prefix.

    The client is made at the first use, so a specification can be opened without the network. `close` ends the pauses
    of requests that are being repeated, and these fail then.
    """

    def __init__(self, spec: S3Spec, bounds: Bounds | None = None) -> None:
        self.spec = from_environment(spec, os.environ)
        self._bounds = bounds or Bounds()
        self._prefix = f"{spec.prefix}/" if spec.prefix else ""
        self._lock = threading.Lock()
        self._made: tuple[S3Client, Retries] | None = None
        self._honours: bool | None = None
        self._swaps: bool | None = None
        self._deletes_many = True
        self._spacing = Spacing(write_interval_s(self.spec))

    @property
    def url(self) -> str:
        return self.spec.url

    def __repr__(self) -> str:
        return f"S3Store({self.url!r})"

    def level_prefix(self, level: int) -> str:
        return f"{level:04x}/"

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        most = WHOLE_MOST_BYTES if length is None else length
        pieces: list[bytes] = []
        for piece in self._stream(key, min(most, PART_BYTES), start, length):
            pieces.append(piece)
            most -= len(piece)
            if most < 0:
                raise NotAnObject(key, f"in {self.url} has more than {WHOLE_MOST_BYTES:,} bytes")
        return b"".join(pieces)

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        return self._stream(key, size, 0, None)

    def put(self, key: str, body: BinaryIO | bytes, *, timestamp_ms: int, if_absent: bool = False) -> None:
        with self._errors(key, "write"):
            self._upload(key, body, timestamp_ms, if_absent and self.honours_preconditions())

    def honours_preconditions(self) -> bool:
        if self._honours is None:
            # Not the same bytes twice: an upload that finds its own object takes that for its own success.
            key, first, second = (f".walcast-probe.{os.urandom(4).hex()}", os.urandom(8), os.urandom(8))
            self._spacing.wait(key)
            try:
                with self._errors(key, "write"):
                    self._upload(key, first, 0, if_absent=True)
                    self._spacing.wait(key)
                    self._upload(key, second, 0, if_absent=True)
                self._honours = False
            except ObjectExists:
                self._honours = True
            except NotUnderstood:  # then there is no object either
                self._honours = False
                return False
            self._delete_probe(key)
        return self._honours

    def read(self, key: str) -> Versioned | None:
        try:
            with self._errors(key, "read"):
                return s3_swap.read(self._client(), self.spec, self._prefix + key)
        except ObjectMissing:
            return None

    def swap(self, key: str, data: bytes, version: str | None) -> str:
        check_size(data)
        self._spacing.wait(key)
        with self._errors(key, "write"):
            written = s3_swap.swap(self._client(), self.spec, self._prefix + key, data, version)
        if written is None:
            raise ObjectChanged(key, self.url)
        return written

    def set_aside(self, key: str) -> SetAside:
        with self._errors(key, "write"):
            aside = s3_swap.set_aside(self._client(), self.spec, self._prefix + key)
        if aside is None:
            raise ObjectChanged(key, self.url)
        return aside

    def honours_swaps(self) -> bool:
        if self._swaps is None:
            key = f".walcast-probe.{os.urandom(4).hex()}"
            try:
                self._swaps = keeps_to_versions(self, key)
            except NotUnderstood:
                self._swaps = False
            finally:
                self._delete_probe(key)
        return self._swaps

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors(prefix, "list"):
            pages = self._client().get_paginator("list_objects_v2")
            listed = 0
            for number, page in enumerate(pages.paginate(Bucket=self.spec.bucket, Prefix=self._prefix + prefix)):
                self._expect_listing(page)
                contents = page.get("Contents", [])
                listed += len(contents)
                # Pages without a key are possible, in a row of which many were deleted; pages without end are not.
                if listed > LISTED_MOST or number > _PAGES_MOST:
                    raise ListingTooLong(prefix, self.url)
                yield from filter(None, (self._object(found, prefix) for found in contents))

    def delete(self, keys: Iterable[str]) -> None:
        """One that cannot be removed does not keep the others; the first such error is raised at the end."""
        rest = iter(keys)
        failure: Exception | None = None
        while batch := list(islice(rest, _DELETE_BATCH)):
            failure = self._delete_batch(batch) or failure
        if failure is not None:
            raise failure

    def _delete_batch(self, keys: Sequence[str]) -> Exception | None:
        """In one request; one by one where the server does not have that, as Google's, or refuses it."""
        if self._deletes_many:
            try:
                return self._delete_many(keys)
            except ConfigError as error:
                refused = error
            with suppress(ConfigError):  # what is refused both ways is not for want of a request
                self._delete_one(keys[0])
                self._deletes_many = False
            if self._deletes_many:
                raise refused
            keys = keys[1:]
        failure: Exception | None = None
        for key in keys:
            try:
                self._delete_one(key)
            except ConfigError as error:
                failure = failure or error
        return failure

    def _delete_many(self, keys: Sequence[str]) -> Exception | None:
        with self._errors(keys[0], "delete"):
            answer = self._client().delete_objects(
                Bucket=self.spec.bucket,
                Delete={"Objects": [{"Key": self._prefix + key} for key in keys], "Quiet": True},
            )
        failure: Exception | None = None
        for error in answer.get("Errors", []):
            code, key = error.get("Code", ""), error.get("Key", "").removeprefix(self._prefix)
            if code != "NoSuchKey":
                found = explain(self.spec, key, "delete", code=code, message=error.get("Message", ""), facts=error)
                failure = failure or found
        return failure

    def _delete_one(self, key: str) -> None:
        with suppress(ObjectMissing), self._errors(key, "delete"):
            self._client().delete_object(Bucket=self.spec.bucket, Key=self._prefix + key)

    def check(self, *, write: bool = True, delete: bool = True) -> None:
        """Lists one key, and with `write` puts and deletes a probe object under the prefix."""
        with self._errors("", "list"):
            self._expect_listing(
                self._client().list_objects_v2(Bucket=self.spec.bucket, Prefix=self._prefix, MaxKeys=1)
            )
        if write:
            # One name where deleting may be denied, so that the probes do not grow in number.
            probe = f".walcast-check.{os.urandom(4).hex()}" if delete else ".walcast-check"
            with self._errors(probe, "write"):
                self._upload(probe, b"walcast", 0, if_absent=False)
            with nullcontext() if delete else suppress(WalcastError), self._errors(probe, "delete"):
                self._client().delete_object(Bucket=self.spec.bucket, Key=self._prefix + probe)

    def tidy(self) -> None:
        """Aborts multipart uploads that nobody will complete: they are invisible and paid for."""
        before = datetime.now(UTC) - timedelta(days=1)
        with suppress(WalcastError), self._errors("", "list"):
            answer = self._client().list_multipart_uploads(Bucket=self.spec.bucket, Prefix=self._prefix)
            for begun in answer.get("Uploads", []):
                if begun["Initiated"] < before:
                    self._client().abort_multipart_upload(
                        Bucket=self.spec.bucket, Key=begun["Key"], UploadId=begun["UploadId"]
                    )

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                client, retries = self._made
                retries.stop()
                client.close()
                self._made = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _object(self, found: Mapping[str, Any], prefix: str) -> ObjectInfo | None:
        """One line of a listing; None for what was not asked for, and for a name that no object of ours has."""
        full = str(found.get("Key", ""))
        key = full.removeprefix(self._prefix)
        if not full.startswith(self._prefix + prefix) or not key.isprintable():
            return None
        try:
            size, timestamp_ms = int(found["Size"]), int(found["LastModified"].timestamp() * 1000)
        except (KeyError, ValueError, OverflowError, AttributeError) as error:
            raise no_s3(self.spec, "a listing without sizes and times") from error
        return ObjectInfo(key, size, timestamp_ms) if size >= 0 else None

    def _upload(self, key: str, body: BinaryIO | bytes, timestamp_ms: int, if_absent: bool) -> None:
        metadata = {_METADATA_TIMESTAMP: _rfc3339(timestamp_ms)}
        upload(self._client(), Target(self.spec, self._prefix + key, metadata, if_absent), body)

    def _delete_probe(self, key: str) -> None:
        """A favour: who may not delete may archive all the same."""
        with suppress(WalcastError), self._errors(key, "delete"):
            self._client().delete_object(Bucket=self.spec.bucket, Key=self._prefix + key)

    def _expect_listing(self, page: Any) -> None:
        if not _LISTING & page.keys():
            raise no_s3(self.spec, "a listing that is none")

    def _stream(self, key: str, size: int, start: int, length: int | None) -> Iterator[bytes]:
        """A range in pieces. Requests are repeated, bodies not: one that is cut off goes on where it stopped."""
        end = None if length is None else start + length
        etag: str | None = None
        failures, failed_at = 0, start
        while True:
            try:
                with self._errors(key, "read"):
                    answer = self._client().get_object(
                        Bucket=self.spec.bucket, Key=self._prefix + key, **_range(start, end), **customer_key(self.spec)
                    )
                    etag = self._same_object(key, etag, answer.get("ETag"))
                    # Not as a context manager: that one hands out the raw stream, which does not notice a short body.
                    body = answer["Body"]
                    try:
                        while (end is None or start < end) and (
                            piece := body.read(size if end is None else min(size, end - start))
                        ):
                            start += len(piece)
                            if start - failed_at >= _PROGRESS_BYTES:
                                failures = 0
                            yield piece
                    finally:
                        body.close()
                return
            except PastTheEnd:
                return
            except (ObjectMissing, _Replaced):
                raise
            except Unavailable:
                failures, failed_at = failures + 1, start
                if etag is None or failures >= self._bounds.attempts:
                    raise
                time.sleep(random.uniform(0, 0.1 * 2**failures))

    def _same_object(self, key: str, before: str | None, now: str | None) -> str | None:
        if before is not None and now != before:
            raise _Replaced(f"{key} was replaced in {self.url} while it was read")
        return now

    def _client(self) -> S3Client:
        with self._lock:
            if self._made is None or not has_credentials(self._made[0]):
                retries = Retries(self._bounds)
                with self._errors("", "use"):
                    self._made = make_client(self.spec, self._bounds, retries), retries
            return self._made[0]

    @contextmanager
    def _errors(self, key: str, action: str) -> Iterator[None]:
        """Translate what botocore raises into what the caller must do."""
        try:
            yield
        except Exception as error:
            translated = translate(error, self.spec, key, action)
            if translated is None:
                raise
            raise translated from error


class _Replaced(Unavailable):
    """The object is not the one whose first half was read."""


def _range(start: int, end: int | None) -> dict[str, Any]:
    if end is not None:
        return {"Range": f"bytes={start}-{end - 1}"}
    return {"Range": f"bytes={start}-"} if start else {}


def _rfc3339(timestamp_ms: int) -> str:
    """Go's RFC3339Nano in UTC: no trailing zeros in the fraction."""
    seconds, milliseconds = divmod(timestamp_ms, 1000)
    fraction = f".{milliseconds:03d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
