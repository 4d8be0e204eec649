"""Archive URLs: text → a specification (pure) → an open store.

    s3://bucket/prefix?endpoint=https://host&region=eu-west-1&path-style=true
    s3://bucket.s3.eu-west-1.amazonaws.com/prefix, s3://bucket.localhost:9000/prefix: see `walcast.store.s3_hosts`
    file:///var/backups/app        or a plain directory path

The defaults are Litestream's (`s3/replica_client.go`), so that one URL means one place to both: a custom endpoint is
addressed path style unless the URL says otherwise. One differs: an endpoint without a scheme always means https, also
on a local address.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from walcast.errors import ConfigError
from walcast.redaction import redact, shown_url
from walcast.store.base import Store
from walcast.store.s3_hosts import place_of
from walcast.store.s3_spec import S3Spec

if TYPE_CHECKING:
    from walcast.store.s3_retry import Bounds

__all__ = ["DirectorySpec", "S3Spec", "StoreSpec", "normal_endpoint", "open_store", "parse_url"]

_BOOLEANS = {"true": True, "1": True, "t": True, "yes": True, "false": False, "0": False, "f": False, "no": False}

# Every spelling Litestream reads, beside the one walcast prints.
_QUERY_KEYS = {
    "endpoint": "endpoint",
    "region": "region",
    "path-style": "path-style",
    "force-path-style": "path-style",
    "forcePathStyle": "path-style",
    "skip-verify": "skip-verify",
    "skipVerify": "skip-verify",
    "ca-bundle": "ca-bundle",
    "storage-class": "storage-class",
    "storageClass": "storage-class",
    "sse": "sse",
    "sse-kms-key-id": "sse-kms-key-id",
    "sseKmsKeyId": "sse-kms-key-id",
    "sse-customer-algorithm": "sse-customer-algorithm",
    "sseCustomerAlgorithm": "sse-customer-algorithm",
}
# Settings of Litestream's client that change nothing in what is stored, or that follow from others.
_QUERY_IGNORED = {
    "sign-payload",
    "signPayload",
    "require-content-md5",
    "requireContentMD5",
    "concurrency",
    "part-size",
    "partSize",
    "sse-customer-key-md5",
    "sseCustomerKeyMD5",
}
_QUERY_SECRET = re.compile(r"(?:^|&)sse-?customer-?key=", re.IGNORECASE)
# A relative path with a colon in its first part, with what a URL has for credentials, or with the slashes of a URL.
_MISTYPED = re.compile(r"[^/\\?#]{1,40}:|[^/.][^@]*:[^@]*@|(?:s3|file|https?)//|[a-z0-9]+[ :]+//", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DirectorySpec:
    """An archive in a directory."""

    path: Path

    @property
    def url(self) -> str:
        return "file://" + quote(os.fsencode(self.path)) if self.path.is_absolute() else str(self.path)


StoreSpec = DirectorySpec | S3Spec


def parse_url(text: str) -> StoreSpec:
    """What an archive URL or directory path means. Raises ConfigError that says what is wrong with it."""
    if not text:
        raise ConfigError("the archive URL is empty: give s3://bucket/prefix, file:///dir or a directory")
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if "\0" in text or (scheme and not text.isprintable()):  # urllib would drop a line end, and go on
        raise ConfigError(f"archive URL {shown_url(text)}: a character in it is none that a URL can have")
    if scheme is None:
        if re.match(r"(s3|file):", text, re.IGNORECASE):
            raise ConfigError(f"archive URL {shown_url(text)}: write two slashes after the scheme")
        if _MISTYPED.match(text):
            # As a directory it would be made, and shown wherever the archive is named.
            raise ConfigError(
                f"archive {shown_url(text)}: that looks like a URL that is mistyped; a directory of such a name is "
                "written with ./ before it"
            )
        return DirectorySpec(Path(text))
    try:
        parts = urlsplit(text)
        if parts.scheme == "file":
            return _directory(text, parts.netloc, parts.path, parts.query)
        if parts.scheme == "s3":
            if "@" in parts.netloc or "%" in parts.netloc:  # as %40
                # Not quoted in the message: it holds a secret.
                raise ConfigError(
                    "an archive URL holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead"
                )
            return _s3(text, parts.netloc, unquote(parts.path), parts.query)
    except ValueError as error:  # which may quote any part of the URL
        raise ConfigError(f"archive URL {shown_url(text)}: {_reason(error)}") from None
    raise ConfigError(f"archive URL {shown_url(text)}: unknown scheme {parts.scheme!r}; s3 and file are known")


def open_store(where: str | StoreSpec, bounds: Bounds | None = None) -> Store:
    """The store of a URL or specification. Opens no connection yet; `check` does. `bounds`: what a request to S3 may
    take, where the default is too patient."""
    spec = parse_url(where) if isinstance(where, str) else where
    if isinstance(spec, DirectorySpec):
        from walcast.store.directory import DirectoryStore

        return DirectoryStore(spec.path)
    from walcast.store.s3 import S3Store

    return S3Store(spec, bounds)


def normal_endpoint(text: str) -> str:
    """An S3 endpoint as a URL without a path; without a scheme it means https."""
    full = text if "://" in text else f"https://{text}"
    try:
        parts = urlsplit(full)
    except ValueError as error:
        raise ConfigError(f"endpoint {shown_url(text)}: {_reason(error)}") from None
    if parts.scheme not in ("http", "https"):
        raise ConfigError(f"endpoint {shown_url(text)}: unknown scheme {parts.scheme!r}; http and https are known")
    if "@" in parts.netloc:
        raise ConfigError("an endpoint holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
    if not parts.hostname:
        raise ConfigError(f"endpoint {shown_url(text)}: the host is missing")
    try:
        _ = parts.port
    except ValueError:  # which quotes it
        raise ConfigError(f"endpoint {shown_url(text)}: the port is no number up to 65535") from None
    if parts.query or parts.fragment:
        raise ConfigError(f"endpoint {shown_url(text)}: only a scheme, a host and a port belong in it")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _directory(text: str, host: str, path: str, query: str) -> DirectorySpec:
    if host not in ("", "localhost"):
        raise ConfigError(f"archive URL {shown_url(text)}: write three slashes, file:///…, for a local directory")
    if query:
        raise ConfigError(f"archive URL {shown_url(text)}: a file URL takes no options")
    if not path.strip("/"):
        raise ConfigError(f"archive URL {shown_url(text)}: the directory is missing")
    if "\0" in (folder := unquote(path, errors="surrogateescape")):
        raise ConfigError(f"archive URL {shown_url(text)}: no path has a null byte in it")
    return DirectorySpec(Path(folder))


def _s3(text: str, host: str, path: str, query: str) -> S3Spec:
    if _QUERY_SECRET.search(query):
        # Before anything else, and not quoted: no message may repeat the URL.
        raise ConfigError(
            "an archive URL holds no keys: set sse-customer-key in the configuration file, or WALCAST_SSE_CUSTOMER_KEY"
        )
    if ":" in host and not host.startswith("arn:") and not host.rpartition(":")[2].isdigit():
        raise ConfigError(f"archive URL {shown_url(text)}: what follows the colon in the host is no port")
    if not host:
        raise ConfigError(f"archive URL {shown_url(text)}: the bucket is missing; write s3://bucket/prefix")
    options = _options(text, query)
    endpoint = normal_endpoint(options["endpoint"]) if "endpoint" in options else None
    try:
        place = place_of(host, path)
        return S3Spec(
            bucket=place.bucket,
            prefix=place.prefix,
            endpoint=endpoint or place.endpoint,
            region=options.get("region", place.region),
            path_style=_boolean(options, "path-style", endpoint is not None or place.path_style),
            skip_verify=_boolean(options, "skip-verify", False),
            ca_bundle=options.get("ca-bundle"),
            storage_class=options.get("storage-class"),
            sse=options.get("sse"),
            sse_kms_key_id=options.get("sse-kms-key-id"),
            sse_customer_algorithm=options.get("sse-customer-algorithm"),
        )
    except ConfigError as error:
        # With a slash in a password, the host is a part of it.
        why = "the bucket is none, and credentials do not belong there" if "@" in text else redact(str(error))
        raise ConfigError(f"archive URL {shown_url(text)}: {why}") from None


def _options(text: str, query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if key in _QUERY_IGNORED:
            continue
        if key not in _QUERY_KEYS:
            known = ", ".join(sorted(set(_QUERY_KEYS.values())))
            raise ConfigError(f"archive URL {shown_url(text)}: unknown option {key!r}; known are {known}")
        name = _QUERY_KEYS[key]
        if name in options:
            raise ConfigError(f"archive URL {shown_url(text)}: {key!r} is given twice")
        if not value:
            raise ConfigError(f"archive URL {shown_url(text)}: {key!r} has no value")
        options[name] = value
    return options


def _reason(error: ValueError) -> str:
    """What `urllib` finds wrong, where it says so without quoting anything."""
    text = str(error)
    return text if text == "Invalid IPv6 URL" else "it cannot be taken apart"


def _boolean(options: dict[str, str], name: str, default: bool) -> bool:
    if name not in options:
        return default
    value = _BOOLEANS.get(options[name].lower())
    if value is None:
        raise ConfigError(f"{name!r} is true or false, not {options[name]!r}")
    return value
