"""An archive in an S3 bucket, laid out as Litestream's S3 replica: `<prefix>/<level as 4 hex digits>/<min>-<max>.ltx`.

What S3-compatible servers get wrong shapes this module: on a custom endpoint checksums are asked for only when the
protocol requires them (botocore's default response checksums break ranged reads on some servers), deletes carry a
Content-MD5 (botocore no longer sends it, some servers insist on it), and nothing relies on conditional writes or on
user metadata coming back.

Credentials: those of the specification, else AWS's environment variables, else Litestream's
(`LITESTREAM_ACCESS_KEY_ID`, `LITESTREAM_SECRET_ACCESS_KEY`), else boto3's chain: profile, shared files, instance role.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self, cast

from walcast.errors import Unavailable
from walcast.store.base import ObjectInfo, ObjectMissing
from walcast.store.s3_errors import PastTheEnd, translate
from walcast.store.url import S3Spec

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_MULTIPART_BYTES = 8 << 20
_MAX_PARTS = 10_000
_DELETE_BATCH = 100  # 1000 are allowed, but some servers take a second for each hundred
_METADATA_TIMESTAMP = "litestream-timestamp"


class S3Store:
    """Objects of one bucket under one prefix.

    Bounds: `connect_s` to connect and `read_s` without a byte, `attempts` times in all with botocore's jittered
    back-off in between. The client is made at the first use, so a specification can be opened without the network.
    """

    def __init__(
        self, spec: S3Spec, *, connect_s: float = 5.0, read_s: float = 30.0, attempts: int = 4, connections: int = 16
    ) -> None:
        self.spec = spec
        self._bounds = (connect_s, read_s, attempts, connections)
        self._attempts = attempts
        self._prefix = f"{spec.prefix}/" if spec.prefix else ""
        self._lock = threading.Lock()
        self._made: S3Client | None = None

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
        return b"".join(self._stream(key, length or _MULTIPART_BYTES, start, length))

    def chunks(self, key: str, size: int = 1 << 20) -> Iterator[bytes]:
        return self._stream(key, size, 0, None)

    def put(self, key: str, body: BinaryIO | bytes, *, timestamp_ms: int) -> None:
        metadata = {_METADATA_TIMESTAMP: _rfc3339(timestamp_ms)}
        extra: dict[str, Any] = {"Metadata": metadata}
        if self.spec.storage_class:
            extra["StorageClass"] = self.spec.storage_class
        with self._errors(key):
            if isinstance(body, bytes) and len(body) < _MULTIPART_BYTES:
                self._client().put_object(Bucket=self.spec.bucket, Key=self._prefix + key, Body=body, **extra)
            else:
                self._upload(key, body, extra)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        with self._errors(prefix):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.spec.bucket, Prefix=self._prefix + prefix):
                for found in page.get("Contents", []):
                    key = found["Key"].removeprefix(self._prefix)
                    yield ObjectInfo(key, found["Size"], int(found["LastModified"].timestamp() * 1000))

    def delete(self, keys: Iterable[str]) -> None:
        rest = iter(keys)
        while batch := list(islice(rest, _DELETE_BATCH)):
            with self._errors(batch[0]):
                answer = self._client().delete_objects(
                    Bucket=self.spec.bucket,
                    Delete={"Objects": [{"Key": self._prefix + key} for key in batch], "Quiet": True},
                )
            for failure in answer.get("Errors", []):
                if failure.get("Code") != "NoSuchKey":
                    raise Unavailable(
                        f"{failure.get('Key')} was not deleted from {self.url}: "
                        f"{failure.get('Code')}: {failure.get('Message')}"
                    )

    def check(self, *, write: bool = True) -> None:
        """Lists one key, and with `write` puts and deletes a probe object under the prefix."""
        with self._errors("", action="list"):
            self._client().list_objects_v2(Bucket=self.spec.bucket, Prefix=self._prefix, MaxKeys=1)
        if write:
            probe = f"{self._prefix}.walcast-check.{os.urandom(4).hex()}"
            with self._errors(probe, action="write"):
                self._client().put_object(Bucket=self.spec.bucket, Key=probe, Body=b"walcast")
            with self._errors(probe, action="delete"):
                self._client().delete_object(Bucket=self.spec.bucket, Key=probe)

    def close(self) -> None:
        with self._lock:
            if self._made is not None:
                self._made.close()
                self._made = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream(self, key: str, size: int, start: int, length: int | None) -> Iterator[bytes]:
        """A range in pieces. botocore retries requests, not bodies: one cut off goes on where it stopped."""
        end = None if length is None else start + length
        etag: str | None = None
        failures = 0
        while True:
            try:
                with self._errors(key):
                    answer = self._client().get_object(
                        Bucket=self.spec.bucket, Key=self._prefix + key, **_range(start, end)
                    )
                    etag = self._same_object(key, etag, answer.get("ETag"))
                    # Not as a context manager: that one hands out the raw stream, which does not notice a short body.
                    body = answer["Body"]
                    try:
                        while (end is None or start < end) and (piece := body.read(size)):
                            start += len(piece)
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
                failures += 1
                if etag is None or failures >= self._attempts:
                    raise
                time.sleep(random.uniform(0, 0.1 * 2**failures))

    def _same_object(self, key: str, before: str | None, now: str | None) -> str | None:
        if before is not None and now != before:
            raise _Replaced(f"{key} was replaced in {self.url} while it was read")
        return now

    def _upload(self, key: str, body: BinaryIO | bytes, extra: dict[str, Any]) -> None:
        """Multipart above 8 MiB; a failed one is aborted, so that nothing is seen and nothing is paid for."""
        from boto3.s3.transfer import TransferConfig

        source = io.BytesIO(body) if isinstance(body, bytes) else body
        size = _size_left(source)
        part = max(_MULTIPART_BYTES, -(-size // _MAX_PARTS))
        config = TransferConfig(
            multipart_threshold=_MULTIPART_BYTES, multipart_chunksize=part, max_concurrency=4, max_io_queue=4
        )
        self._client().upload_fileobj(
            cast(BinaryIO, _Unclosed(source)), self.spec.bucket, self._prefix + key, ExtraArgs=extra, Config=config
        )

    def _client(self) -> S3Client:
        with self._lock:
            if self._made is None:
                with self._errors(""):
                    self._made = _make_client(self.spec, *self._bounds)
            return self._made

    @contextmanager
    def _errors(self, key: str, action: str = "use") -> Iterator[None]:
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


class _Unclosed:
    """A stream for boto3 to read, which closes what it is given."""

    def __init__(self, source: BinaryIO) -> None:
        self.read = source.read
        self.seek = source.seek
        self.tell = source.tell
        self.seekable = source.seekable

    def close(self) -> None:
        pass


def _make_client(spec: S3Spec, connect_s: float, read_s: float, attempts: int, connections: int) -> S3Client:
    import boto3
    from botocore.config import Config

    environment = os.environ
    session = boto3.session.Session()
    custom = bool(
        spec.endpoint or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    )  # boto3 reads the two variables by itself
    checksums: dict[str, Any] = {}
    if custom:
        checksums = {"request_checksum_calculation": "when_required", "response_checksum_validation": "when_required"}
    config = Config(
        connect_timeout=connect_s,
        read_timeout=read_s,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=connections,
        tcp_keepalive=True,
        s3={"addressing_style": "path" if spec.path_style else "auto"},
        **checksums,
    )
    key_id, secret = spec.access_key_id, spec.secret_access_key
    if not (key_id and secret) and not (environment.get("AWS_ACCESS_KEY_ID") or environment.get("AWS_PROFILE")):
        key_id = environment.get("LITESTREAM_ACCESS_KEY_ID")
        secret = environment.get("LITESTREAM_SECRET_ACCESS_KEY")
    client = session.client(
        "s3",
        region_name=spec.region or session.region_name or environment.get("AWS_REGION") or "us-east-1",
        endpoint_url=spec.endpoint,
        aws_access_key_id=key_id if key_id and secret else None,
        aws_secret_access_key=secret if key_id and secret else None,
        verify=False if spec.skip_verify else spec.ca_bundle,
        config=config,
    )
    client.meta.events.register("before-sign.s3.DeleteObjects", _add_content_md5)
    return client


def _add_content_md5(request: Any, **_: Any) -> None:
    request.headers["Content-MD5"] = base64.b64encode(
        hashlib.md5(request.body, usedforsecurity=False).digest()
    ).decode()


def _range(start: int, end: int | None) -> dict[str, Any]:
    if end is not None:
        return {"Range": f"bytes={start}-{end - 1}"}
    return {"Range": f"bytes={start}-"} if start else {}


def _size_left(source: BinaryIO) -> int:
    """How much a stream still holds; 0 when it cannot tell."""
    if not source.seekable():
        return 0
    here = source.tell()
    size = source.seek(0, os.SEEK_END) - here
    source.seek(here)
    return size


def _rfc3339(timestamp_ms: int) -> str:
    """Go's RFC3339Nano in UTC: no trailing zeros in the fraction."""
    seconds, milliseconds = divmod(timestamp_ms, 1000)
    fraction = f".{milliseconds:03d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"
