"""What an S3 server or botocore complains about → what the caller must do: change something, or try again.

Decided by error codes and HTTP status, never by message text. The message names the bucket and the endpoint and says
what to change; no key, no secret.
"""

from __future__ import annotations

from typing import Any

from walcast.errors import ConfigError, Unavailable, WalcastError
from walcast.store.base import ObjectMissing
from walcast.store.url import S3Spec


class PastTheEnd(Exception):
    """The range starts at or after the end of the object."""


_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "TokenRefreshRequired"}
_DENIED = {"AccessDenied", "AllAccessDisabled", "Forbidden", "Unauthorized", "AccountProblem", "403", "401"}
_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"}
_PASSING = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestCanceled", "OperationAborted"}
_PASSING_STATUS = {408, 409, 425, 429}


def translate(error: Exception, spec: S3Spec, key: str, action: str) -> Exception | None:
    """The error to raise instead, or None to let `error` pass. `action` completes "may not … there"."""
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, WalcastError | PastTheEnd):
        return None
    if isinstance(error, ClientError):
        return _from_server(error, spec, key, action)
    if isinstance(error, BotoCoreError):
        return _from_client(error, spec)
    return None


def _where(spec: S3Spec) -> str:
    return f"bucket {spec.bucket!r} at {spec.endpoint or 'AWS'}"


def _from_server(error: Any, spec: S3Spec, key: str, action: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    message = str(error.response.get("Error", {}).get("Message", "")).strip()
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    where = _where(spec)
    if code == "NoSuchBucket":
        return ConfigError(f"{where} does not exist: create it, or correct the bucket or the endpoint in the URL")
    if code in ("NoSuchKey", "404", "NotFound"):
        return ObjectMissing(key, spec.url)
    if code == "InvalidRange" or status == 416:
        return PastTheEnd()
    if code in _KEYS:
        return ConfigError(
            f"{where} refuses the credentials ({code}): correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
            "(or LITESTREAM_ACCESS_KEY_ID and LITESTREAM_SECRET_ACCESS_KEY)"
        )
    if code in _DENIED or status in (401, 403):
        if code == "RequestTimeTooSkewed":
            return ConfigError(f"{where} refuses the request because the clocks differ: set this host's clock")
        return ConfigError(f"these credentials may not {action} {where} ({code}): grant it, or use other credentials")
    if code in _REGION:
        return ConfigError(f"{where} is in another region ({code}): set ?region=… in the URL")
    if status >= 500 and status != 501:
        return Unavailable(f"{where} is in trouble ({code or status}): {message}")
    if code in _PASSING or status in _PASSING_STATUS:
        return Unavailable(f"{where} asks to try later ({code or status}): {message}")
    return ConfigError(f"{where} does not understand the request ({code or status}): {message}; is it an S3 endpoint?")


def _from_client(error: Exception, spec: S3Spec) -> Exception:
    from botocore import exceptions as botocore

    where = _where(spec)
    missing = (botocore.NoCredentialsError, botocore.PartialCredentialsError, botocore.ProfileNotFound)
    if isinstance(error, missing):
        return ConfigError(f"no credentials for {where}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY ({error})")
    if isinstance(error, botocore.SSLError):
        return ConfigError(
            f"no TLS connection to {where}: write endpoint=http://… if it has no TLS, or give its CA as "
            f"?ca-bundle=FILE ({error})"
        )
    passing = (
        botocore.HTTPClientError,  # the root of timeouts, closed connections, proxies
        botocore.ConnectionError,
        botocore.IncompleteReadError,
        botocore.CredentialRetrievalError,
        botocore.MetadataRetrievalError,
    )
    if isinstance(error, passing):
        return Unavailable(f"no answer from {where}: {error}")
    return ConfigError(f"{where} cannot be used: {error}")
