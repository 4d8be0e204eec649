"""Bytes → one object of a bucket, whole or not at all: one request, or parts above 8 MiB.

By hand, not with boto3's transfer: that one cannot ask for the key to be free (`If-None-Match: *` goes with the request
that completes the parts), and closes the stream it is given. What fails is aborted, so that nothing is seen and nothing
is paid for. Memory: at most 64 MiB of parts at a time, or two parts where they are bigger than that.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from walcast.store.s3_errors import no_s3
from walcast.store.s3_spec import S3Spec, customer_key, put_encryption

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 8 << 20
_MAX_PARTS = 10_000
_PARTS_BYTES = 64 << 20
_MAX_THREADS = 4
_COMPARE_BYTES = 1 << 20
_CHECKSUM = "ChecksumCRC32"


@dataclass(frozen=True, slots=True)
class Target:
    """One object to write. `if_absent`: only where there is none of that key."""

    spec: S3Spec
    key: str  # in the bucket
    metadata: dict[str, str]
    if_absent: bool = False

    @property
    def place(self) -> dict[str, Any]:
        return {"Bucket": self.spec.bucket, "Key": self.key}

    @property
    def beginning(self) -> dict[str, Any]:
        """What the first request says about the object."""
        storage = {"StorageClass": self.spec.storage_class} if self.spec.storage_class else {}
        return {**self.place, "Metadata": self.metadata, **storage, **put_encryption(self.spec)}

    @property
    def ending(self) -> dict[str, Any]:
        """What the last request says about it."""
        return {"IfNoneMatch": "*"} if self.if_absent else {}


def upload(client: S3Client, target: Target, body: BinaryIO | bytes) -> None:
    """Raises what botocore or reading `body` raises; then there is no such object, or still the old one."""
    from botocore.exceptions import ClientError

    source = io.BytesIO(body) if isinstance(body, bytes) else body
    start = source.tell() if source.seekable() else None
    part_bytes = max(PART_BYTES, -(-size_left(source) // _MAX_PARTS))
    first = _read(source, part_bytes)
    try:
        if len(first) < part_bytes:
            stored = client.put_object(**target.beginning, **target.ending, Body=first)
            _fact(stored, "ETag", target)
        else:
            _upload_parts(client, target, _parts(first, source, part_bytes), part_bytes)
    except ClientError as error:
        if not _was_repeated(error) or start is None:
            raise
        source.seek(start)
        if not _is_there(client, target, source):
            raise


def _was_repeated(error: Any) -> bool:
    """Did an attempt whose answer was lost write the object, so that the next one found it there?"""
    code = error.response.get("Error", {}).get("Code")
    return code in ("PreconditionFailed", "412", "NoSuchUpload") and bool(
        error.response.get("ResponseMetadata", {}).get("RetryAttempts")
    )


def _is_there(client: S3Client, target: Target, source: BinaryIO) -> bool:
    """Is the object in the bucket the one that was to be written? Rare, so reading all of it will do."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        stored: Any = client.get_object(**target.place, **customer_key(target.spec))["Body"]
        with closing(stored):
            while True:
                piece = _read(source, _COMPARE_BYTES)
                if _read(stored, _COMPARE_BYTES) != piece:
                    return False
                if not piece:
                    return True
    except (BotoCoreError, ClientError):
        return False  # the error of the upload says more


def size_left(source: BinaryIO) -> int:
    """How much a stream still holds; 0 when it cannot tell."""
    if not source.seekable():
        return 0
    here = source.tell()
    size = source.seek(0, os.SEEK_END) - here
    source.seek(here)
    return size


def _upload_parts(client: S3Client, target: Target, parts: Iterator[bytes], part_bytes: int) -> None:
    checksum = _checksum(client)
    begun = client.create_multipart_upload(**target.beginning, **checksum)
    same = {**target.place, "UploadId": _fact(begun, "UploadId", target)}
    try:
        done = _send_parts(client, target, {**same, **checksum, **customer_key(target.spec)}, parts, part_bytes)
        client.complete_multipart_upload(**same, **target.ending, MultipartUpload={"Parts": done})
    except BaseException:
        _abort(client, same)
        raise


def _send_parts(
    client: S3Client, target: Target, same: dict[str, Any], parts: Iterator[bytes], part_bytes: int
) -> list[Any]:
    """All parts, several at a time. After an error no thread sends any more."""

    def send(number: int, part: bytes) -> dict[str, Any]:
        answer: Any = client.upload_part(**same, PartNumber=number, Body=part)
        sums = {_CHECKSUM: answer[_CHECKSUM]} if "ChecksumAlgorithm" in same and _CHECKSUM in answer else {}
        return {"PartNumber": number, "ETag": _fact(answer, "ETag", target), **sums}

    threads = max(1, min(_MAX_THREADS, _PARTS_BYTES // part_bytes - 1))
    done: list[dict[str, Any]] = []
    pending: deque[Future[dict[str, Any]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="walcast-upload") as pool:
        try:
            for number, part in enumerate(parts, 1):
                pending.append(pool.submit(send, number, part))
                if len(pending) == threads:
                    done.append(pending.popleft().result())
            done += [future.result() for future in pending]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return done


def _checksum(client: S3Client) -> dict[str, Any]:
    """On AWS every part has a checksum, and the object one of these: as boto3's transfer does it."""
    wanted = getattr(client.meta.config, "request_checksum_calculation", None)
    return {"ChecksumAlgorithm": "CRC32"} if wanted == "when_supported" else {}


def _fact(answer: Any, name: str, target: Target) -> Any:
    """What every S3 server answers with. A web server may take a PUT for granted, too."""
    if not answer.get(name):
        raise no_s3(target.spec, f"an answer without {name}")
    return answer[name]


def _abort(client: S3Client, same: dict[str, Any]) -> None:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client.abort_multipart_upload(**same)
    except (BotoCoreError, ClientError):
        pass  # the first error counts; a bucket's rules can remove what is left of unfinished uploads


def _parts(first: bytes, source: BinaryIO, part_bytes: int) -> Iterator[bytes]:
    part = first
    while part:
        yield part
        part = _read(source, part_bytes)


def _read(source: BinaryIO, size: int) -> bytes:
    """That much, or less at the end: one `read` of a pipe may give less than there is."""
    pieces: list[bytes] = []
    left = size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)
