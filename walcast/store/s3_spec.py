"""Where an archive in S3 is and how it is stored there. Pure; `walcast.store.url` reads it from a URL.

Encryption, which the server does, is one of three, and they exclude each other:

* `sse="AES256"`: with a key of the server's;
* `sse="aws:kms"` or only `sse_kms_key_id`: with a key of AWS's key management service;
* `sse_customer_key`: with a key that goes along with every request, Litestream's SSE-C: 32 bytes, as base64.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from walcast.errors import ConfigError
from walcast.secret import Secret

KEY_LEAST_CHARS = 12


@dataclass(frozen=True, slots=True)
class S3Spec:
    """An archive in an S3 bucket. `prefix` has no slash at either end and may be empty (but
    Litestream then looks for keys that begin with "./", so that the two do not find each other's files).

    The three secrets never come from a URL and are never shown; a configuration file may set them. Without them the
    environment decides, see `walcast.store.s3_client`. Raises ConfigError where the settings for encryption contradict
    each other or the key is none.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    path_style: bool = False
    skip_verify: bool = False
    ca_bundle: str | None = None
    storage_class: str | None = None
    access_key_id: Secret | None = field(default=None, repr=False)
    secret_access_key: Secret | None = field(default=None, repr=False)
    sse: str | None = None
    sse_kms_key_id: str | None = None
    sse_customer_algorithm: str | None = None
    sse_customer_key: Secret | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("access_key_id", "secret_access_key", "sse_customer_key"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, Secret(value))
        _check_encryption(self)

    @property
    def url(self) -> str:
        """The URL that parses to this, less the secrets."""
        query: dict[str, str] = {}
        if self.endpoint:
            query["endpoint"] = self.endpoint
        if self.region:
            query["region"] = self.region
        if self.path_style != bool(self.endpoint):
            query["path-style"] = str(self.path_style).lower()
        if self.skip_verify:
            query["skip-verify"] = "true"
        for name, value in (
            ("ca-bundle", self.ca_bundle),
            ("storage-class", self.storage_class),
            ("sse", self.sse),
            ("sse-kms-key-id", self.sse_kms_key_id),
            ("sse-customer-algorithm", self.sse_customer_algorithm),
        ):
            if value:
                query[name] = value
        path = f"/{quote(self.prefix)}" if self.prefix else ""
        return f"s3://{self.bucket}{path}" + ("?" + urlencode(query, safe=":/") if query else "")


def put_encryption(spec: S3Spec) -> dict[str, Any]:
    """What goes along with the request that begins an object (PutObject, CreateMultipartUpload)."""
    if spec.sse_customer_key:
        return customer_key(spec)
    if spec.sse_kms_key_id:
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": spec.sse_kms_key_id}
    return {"ServerSideEncryption": spec.sse} if spec.sse else {}


def customer_key(spec: S3Spec) -> dict[str, Any]:
    """What goes along with every further request for an object (GetObject, UploadPart). botocore adds the key's MD5."""
    if not spec.sse_customer_key:
        return {}
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": base64.b64decode(spec.sse_customer_key.reveal())}


def _check_encryption(spec: S3Spec) -> None:
    if spec.sse not in (None, "AES256", "aws:kms"):
        raise ConfigError(f"sse is AES256 or aws:kms, not {_no_key(spec.sse)}")
    if spec.sse_kms_key_id and spec.sse == "AES256":
        raise ConfigError("sse-kms-key-id belongs to sse=aws:kms, not to sse=AES256: leave one of them out")
    if spec.sse_customer_algorithm not in (None, "AES256"):
        raise ConfigError(f"sse-customer-algorithm is AES256, not {_no_key(spec.sse_customer_algorithm)}")
    if spec.sse_customer_key is None:
        return
    if spec.sse or spec.sse_kms_key_id:
        raise ConfigError("sse-customer-key excludes sse and sse-kms-key-id: leave one or the other out")
    try:
        key = base64.b64decode(spec.sse_customer_key.reveal(), validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("sse-customer-key is not base64: make one with `openssl rand -base64 32`") from None
    if len(key) != 32:
        raise ConfigError(f"sse-customer-key holds {len(key)} bytes, not 32: make one with `openssl rand -base64 32`")
    if spec.endpoint and urlsplit(spec.endpoint).scheme == "http" and not _is_near(urlsplit(spec.endpoint).hostname):
        raise ConfigError(
            f"sse-customer-key would go to {spec.endpoint} in the clear with every request: use an https endpoint"
        )


def _no_key(text: str) -> str:
    """As it is, if it is too short to be the key that belongs into sse-customer-key."""
    return repr(text) if len(text) < KEY_LEAST_CHARS else "a value so long: is that the key? It is sse-customer-key"


def _is_near(host: str | None) -> bool:
    """This host or a private network, where a key may travel without TLS."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return host == "localhost"
    return address.is_loopback or address.is_private
