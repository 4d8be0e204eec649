"""What an S3 server or botocore complains about → what the caller must do: change something, or try again.

Decided by error codes, HTTP status and error types, never by message text. The message names the bucket and the
endpoint and says what to change; no key, no secret.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.redaction import redact
from walcast.store.base import ObjectExists, ObjectMissing
from walcast.store.s3_retry import NO_XML, is_passing, tls_reason
from walcast.store.s3_spec import S3Spec

_NO_XML_TEXT = "an answer that is no XML"
_MESSAGE_CHARS = 300
_SKEW_S = 300.0  # S3 allows 900, some servers less


class PastTheEnd(Exception):
    """The range starts at or after the end of the object."""


class NotUnderstood(ConfigError):
    """The server does not have what was asked for."""


_UNKNOWN_KEY = {"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"}
_WRONG_SECRET = {"SignatureDoesNotMatch", "InvalidSignatureException"}
_OLD_TOKEN = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"}
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_REGION = {
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
}
_PERMISSIONS = {
    "list": "s3:ListBucket on the bucket",
    "read": "s3:GetObject on its objects",
    "write": "s3:PutObject and s3:AbortMultipartUpload on its objects",
    "delete": "s3:DeleteObject on its objects",
}


def translate(error: Exception, spec: S3Spec, key: str, action: str) -> Exception | None:
    """The error to raise instead, or None to let `error` pass. `action`: list, read, write, delete, or use."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, WalcastError | PastTheEnd):
        return None
    if isinstance(error, ClientError):
        about = error.response.get("ResponseMetadata", {})
        facts = {**error.response.get("Error", {}), "Location": about.get("HTTPHeaders", {}).get("location")}
        status = int(about.get("HTTPStatusCode", 0))
        code, message = str(facts.get("Code", "")), str(facts.get("Message", ""))
        if status in (401, 403) and abs(ahead := _ahead_s(error)) > _SKEW_S:
            return _skewed(spec, f"{ahead:+.0f} s from now")
        return explain(spec, key, action, code=code, message=message, status=status, facts=facts)
    if isinstance(error, ResponseParserError):
        return no_s3(spec, _NO_XML_TEXT)
    if isinstance(error, BotoCoreError):
        return _from_client(error, spec)
    if isinstance(error, HTTPError):  # within a body
        return Unavailable(f"the answer of {_where(spec)} was cut off: {_one_line(error, spec)}")
    if isinstance(error, ValueError | OverflowError) and action in ("list", "read"):
        # botocore lets these pass where a number or a time in an answer is none.
        return no_s3(spec, f"an answer that makes no sense ({_one_line(error, spec)})")
    return None


def no_s3(spec: S3Spec, what: str) -> ConfigError:
    """There is a server, but another one."""
    tls = "; if it has TLS, write endpoint=https://…" if (spec.endpoint or "").startswith("http:") else ""
    return ConfigError(
        f"{spec.endpoint or 'AWS'} gives {what}, so it is no S3 server: correct the endpoint, "
        f"with its port and without a path{tls}"
    )


def explain(
    spec: S3Spec, key: str, action: str, *, code: str, message: str, status: int = 0, facts: Mapping[str, Any]
) -> Exception:
    """An error that the server put a code to; `code` is the status's number where the body was no S3 error."""
    where = _where(spec)
    if code == "NoSuchBucket":
        return ConfigError(f"{where} does not exist: create it, or correct the bucket or the endpoint{_dots(spec)}")
    if code == "NoSuchKey" or (action == "read" and (code in ("404", "NotFound"))):
        return ObjectMissing(key, spec.url)
    if code == "InvalidRange" or status == 416:
        return PastTheEnd()
    if code in ("PreconditionFailed", "412"):
        return ObjectExists(key, spec.url)
    if (refused := _refused(spec, key, action, code, status, facts)) is not None:
        return refused
    if code == str(status) and 301 <= status <= 308:
        return no_s3(spec, f"the answer {status} to go to {_one_line(facts.get('Location') or 'another place', spec)}")
    if code in _REGION:
        region = f"region={facts['Region']}" if facts.get("Region") else "the right region=…"
        return ConfigError(f"{where} is in another region ({code}): set {region} in the URL")
    if code == NO_XML:
        return no_s3(spec, _NO_XML_TEXT)
    if code == "NoSuchUpload" or is_passing(code, status):
        why = "is in trouble" if status >= 500 and "SlowDown" not in code else "asks to try later"
        return Unavailable(f"{where} {why} ({code or status}): {_one_line(message, spec)}")
    if code == "NotImplemented" or status == 501:
        return NotUnderstood(
            f"{where} does not know how to {action} with these settings ({code}): {_one_line(message, spec)}"
        )
    if code in ("", str(status)):
        return no_s3(spec, f"the answer {status}")
    return ConfigError(f"{where} refuses to {action} {key or 'it'} ({code}): {_one_line(message, spec)}")


def _refused(
    spec: S3Spec, key: str, action: str, code: str, status: int, facts: Mapping[str, Any]
) -> ConfigError | None:
    """Who we are, when it is, and what we may do."""
    where = _where(spec)
    if code in _SKEWED:
        return _skewed(spec, facts.get("ServerTime") or "another time")
    if code in _UNKNOWN_KEY:
        return ConfigError(f"{where} does not know the access key ({code}): correct {_keys(spec)}")
    if code in _WRONG_SECRET:
        return ConfigError(f"{where} finds the secret is not the access key's ({code}): correct {_keys(spec)}")
    if code in _OLD_TOKEN:
        return ConfigError(f"{where} no longer takes the session token ({code}): renew {_keys(spec)} and its token")
    if "AccessDenied" in code or code in ("AllAccessDisabled", "AccountProblem") or status in (401, 403):
        allow = _PERMISSIONS.get(action, "it")
        what = f"{action} {key} in" if key and action != "list" else f"{action} what is in"
        return ConfigError(
            f"these credentials may not {what} {where} ({code}): allow {allow}, or use other credentials"
        )
    return None


def _skewed(spec: S3Spec, theirs: str) -> ConfigError:
    return ConfigError(
        f"{_where(spec)} refuses the request because the clocks differ: set this host's clock; it is {theirs} there"
    )


def _ahead_s(error: Any) -> float:
    """How far a server's clock is ahead of ours; some say no more than that access is denied."""
    try:
        date = parsedate_to_datetime(error.response["ResponseMetadata"]["HTTPHeaders"]["date"])
        return (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (KeyError, ValueError):
        return 0.0


def _from_client(error: Exception, spec: S3Spec) -> Exception:
    from botocore import exceptions as botocore

    where = _where(spec)
    if isinstance(error, botocore.NoCredentialsError | botocore.PartialCredentialsError | botocore.ProfileNotFound):
        return ConfigError(f"no credentials for {where}: set {_keys(spec)} ({_one_line(error, spec)})")
    if isinstance(error, botocore.CredentialRetrievalError | botocore.MetadataRetrievalError):
        return Unavailable(f"the credentials for {where} cannot be fetched: {_one_line(error, spec)}")
    if isinstance(error, botocore.SSLError):
        return _from_tls(error, spec)
    if isinstance(error, botocore.HTTPClientError | botocore.ConnectionError | botocore.IncompleteReadError):
        tls = " and whether it has TLS" if (spec.endpoint or "").startswith("http:") else ""
        return Unavailable(f"no answer from {where} ({_reason(error, spec)}): if it stays so, check the endpoint{tls}")
    if isinstance(error, botocore.ChecksumError):  # also one of a body
        return Unavailable(f"an answer of {where} came damaged: {_one_line(error, spec)}")
    return ConfigError(f"{where} cannot be used: {_one_line(error, spec)}")


def _from_tls(error: Exception, spec: S3Spec) -> Exception:
    where, reason = _where(spec), tls_reason(error)
    if reason == "CERTIFICATE_VERIFY_FAILED":
        return ConfigError(
            f"the certificate of {where} is not trusted: give its CA as ca-bundle=FILE, or write the host that it "
            f"names ({_reason(error, spec)})"
        )
    if reason == "UNEXPECTED_EOF_WHILE_READING":
        return Unavailable(f"no answer from {where}: the TLS connection broke off")
    return ConfigError(f"no TLS connection to {where}: write endpoint=http://… if it has no TLS ({reason or error})")


def _where(spec: S3Spec) -> str:
    return f"bucket {spec.bucket!r} at {spec.endpoint or 'AWS'}"


def _keys(spec: S3Spec) -> str:
    if spec.access_key_id:
        return "access-key-id and secret-access-key in the configuration file"
    return (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or LITESTREAM_ACCESS_KEY_ID and LITESTREAM_SECRET_ACCESS_KEY, "
        "or the profile)"
    )


def _dots(spec: S3Spec) -> str:
    """A server's name may have been written where the bucket's goes."""
    if spec.endpoint is None and "." in spec.bucket:
        return f" (a server's address goes into ?endpoint=…: s3://BUCKET/PREFIX?endpoint=https://{spec.bucket})"
    return ""


def _reason(error: BaseException, spec: S3Spec) -> str:
    """What the operating system said, from under the layers around it; else the error itself."""
    inside: BaseException | None = error
    for _ in range(16):
        if isinstance(inside, OSError) and inside.strerror and not isinstance(inside, socket.herror):
            return inside.strerror
        if inside is None:
            break
        inside = inside.__cause__ or inside.__context__
    return _one_line(error, spec)


def _one_line(text: object, spec: S3Spec) -> str:
    """Of others, so it may quote a header or a URL that has a key or a signature in it."""
    secrets = (spec.secret_access_key, spec.sse_customer_key, spec.access_key_id)
    return " ".join(redact(str(text), secrets).split())[:_MESSAGE_CHARS]
