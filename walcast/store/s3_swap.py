"""Compare-and-swap of small objects in S3: PutObject with If-Match or If-None-Match, an ETag for a version.

A storage class of the archive's does not apply: such an object is written every few seconds and read at once.
409 ConditionalRequestConflict means that nothing was written and that another attempt may succeed (AWS, PutObject,
If-Match), so it is repeated as `s3_retry` repeats it, and what is left of it in the end is Unavailable.
"""

from __future__ import annotations

import secrets
from contextlib import closing
from typing import TYPE_CHECKING, Any

from walcast.store.base import ForeignObject, SetAside, Versioned
from walcast.store.s3_errors import no_s3
from walcast.store.s3_spec import S3Spec, customer_key, put_encryption
from walcast.store.swaps import MAX_SWAP_BYTES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def read(client: S3Client, spec: S3Spec, key: str) -> Versioned:
    """`key` is the bucket's. Raises what botocore raises, also where there is no object."""
    answer = client.get_object(Bucket=spec.bucket, Key=key, **customer_key(spec))
    with closing(answer["Body"]) as body:
        # To its end, and then once more: only so a body is noticed that is shorter than announced.
        data = body.read(MAX_SWAP_BYTES + 1)
        if len(data) > MAX_SWAP_BYTES or body.read(1):
            raise ForeignObject(
                f"{key} in bucket {spec.bucket!r} has more than {MAX_SWAP_BYTES:,} bytes: no object of walcast's"
            )
    return Versioned(data, _etag(spec, answer))


def swap(client: S3Client, spec: S3Spec, key: str, data: bytes, version: str | None) -> str | None:
    """The new version, or None: the object is another one. Raises what botocore raises."""
    from botocore.exceptions import ClientError

    condition: dict[str, Any] = {"IfNoneMatch": "*"} if version is None else {"IfMatch": version}
    try:
        return _etag(
            spec, client.put_object(Bucket=spec.bucket, Key=key, Body=data, **condition, **put_encryption(spec))
        )
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code == "NoSuchKey" and version is not None:
            return None
        if code not in ("PreconditionFailed", "412"):
            raise
        if not error.response.get("ResponseMetadata", {}).get("RetryAttempts"):
            return None
    # An attempt whose answer was lost may have written it. Where this fails, too, that stays open.
    try:
        found = read(client, spec, key)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
            return None
        raise
    return found.version if found.data == data else None


def set_aside(client: S3Client, spec: S3Spec, key: str) -> SetAside | None:
    """Copy it, where it cannot be read, to another name; None where it can be read after all. It stays until it is
    swapped, over this very version, so that nothing that somebody writes meanwhile is lost. Raises what botocore
    raises."""
    etag = _etag(spec, client.head_object(Bucket=spec.bucket, Key=key, **customer_key(spec)))
    try:
        read(client, spec, key)
    except ForeignObject:
        kept = f"{key}.foreign-{secrets.token_hex(4)}"
        source: dict[str, Any] = {f"CopySource{name}": value for name, value in customer_key(spec).items()}
        client.copy_object(
            Bucket=spec.bucket,
            Key=kept,
            CopySource={"Bucket": spec.bucket, "Key": key},
            CopySourceIfMatch=etag,
            **source,
            **put_encryption(spec),
        )
        return SetAside(f"{kept} in bucket {spec.bucket}", etag)
    return None


def _etag(spec: S3Spec, answer: Any) -> str:
    if not answer.get("ETag"):
        raise no_s3(spec, "an answer without ETag")
    return str(answer["ETag"])
