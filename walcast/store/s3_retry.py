"""When a request to S3 is sent again, and how long after. The decision is pure; `Retries` hooks it into botocore.

botocore repeats by itself, but it does not heed `Retry-After`, stops repeating once its quota is used up in a long
outage, gives up on 408 and sleeps where nobody can wake it. So its own repeating is off, and this takes its place:

* Transport errors, 408, 425, 429, 5xx (less 501) and the codes below are repeated, up to `Bounds.attempts` in all.
* The pause before attempt n + 1 is random between nothing and 50 ms · 2^(n-1), or 1 s · 2^(n-1) where the server asks
  to slow down, and at most `backoff_s`.
* A `Retry-After` is waited for, up to `retry_after_s`, and the random pause after it, so that clients do not come back
  all at once.
"""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

_THROTTLED = {
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "BandwidthLimitExceeded",
    "TooManyRequests",
    "TooManyRequestsException",
}
# OperationAborted and ConditionalRequestConflict: another request for the same key is under way.
_PASSING = _THROTTLED | {
    "RequestTimeout",
    "RequestTimeoutException",
    "RequestCanceled",
    "InternalError",
    "ServiceUnavailable",
    "OperationAborted",
    "ConditionalRequestConflict",
    "PriorRequestNotComplete",
}
# Ours: an answer of 200 that botocore cannot read, and takes for one of 500.
NO_XML = "NoXML"
_PASSING_STATUS = {408, 425, 429}
_THROTTLED_STATUS = {429, 503}


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a request may take: `connect_s` to connect, `read_s` without a byte, `attempts` in all; pauses as above."""

    connect_s: float = 5.0
    read_s: float = 30.0
    attempts: int = 4
    connections: int = 16
    backoff_s: float = 20.0
    retry_after_s: float = 30.0


def is_passing(code: str, status: int) -> bool:
    """Is this answer of a server one that may be another the next time?"""
    return code in _PASSING or status in _PASSING_STATUS or (status >= 500 and status != 501)


def pause_s(
    attempt: int, bounds: Bounds, jitter: float, *, code: str = "", status: int = 0, retry_after: float | None = None
) -> float | None:
    """How long to wait after the failed attempt of that number, from 1; None: not to be repeated.

    `jitter` is between 0 and 1; a status of 0 is a transport error.
    """
    if attempt >= bounds.attempts or (status != 0 and not is_passing(code, status)):
        return None
    base = 1.0 if code in _THROTTLED or status in _THROTTLED_STATUS else 0.05
    pause = jitter * min(base * 2.0 ** min(attempt - 1, 30), bounds.backoff_s)
    return pause + min(retry_after or 0.0, bounds.retry_after_s)


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """What an answer asks for, seconds from `now`: a number, a date, or AWS's header in milliseconds."""
    try:
        if milliseconds := headers.get("x-amz-retry-after"):
            return max(0.0, int(milliseconds) / 1000)
        text = headers.get("retry-after", "").strip()
        if not text:
            return None
        if text.isdigit():
            return float(text)
        date = parsedate_to_datetime(text)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError):
        return None


class Retries:
    """What botocore asks after every attempt. `stop` wakes whoever pauses, and lets nothing be repeated after it."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def needs_retry(
        self, response: Any = None, attempts: int = 1, caught_exception: Exception | None = None, **_: Any
    ) -> float | None:
        """A handler of botocore's event: 0.0 repeats at once (the pause is over then), None does not repeat."""
        pause = self._pause_s(response, attempts, caught_exception)
        if pause is None or self._stopped.wait(pause):
            return None
        return 0.0

    def _pause_s(self, response: Any, attempts: int, error: Exception | None) -> float | None:
        jitter = random.random()
        if response is None:
            return pause_s(attempts, self._bounds, jitter) if _is_transport(error) else None
        answer, parsed = response
        code = str(parsed.get("Error", {}).get("Code", ""))
        # botocore's own status: it makes 500 of an error inside an answer of 200.
        status = int(parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", answer.status_code))
        if status < 300 and not code:
            return None
        if code == "500" and getattr(answer.raw, "status", 500) == 200:
            # Cut off, or a web page: worth repeating, but the server did not say that it is in trouble.
            parsed["Error"]["Code"] = NO_XML
        asked = retry_after_s({str(name).lower(): value for name, value in answer.headers.items()}, datetime.now(UTC))
        return pause_s(attempts, self._bounds, jitter, code=code, status=status, retry_after=asked)


def _is_transport(error: Exception | None) -> bool:
    from botocore.exceptions import ConnectionError as NotConnected
    from botocore.exceptions import HTTPClientError, SSLError

    if isinstance(error, SSLError):
        return tls_reason(error) == "UNEXPECTED_EOF_WHILE_READING"
    return isinstance(error, HTTPClientError | NotConnected)


def tls_reason(error: BaseException) -> str:
    """OpenSSL's name for what failed, from under the layers that botocore and urllib3 put around it; or empty."""
    seen: list[object] = [error]
    for found in seen:
        if isinstance(found, ssl.SSLError):
            return found.reason or ""
        if isinstance(found, BaseException) and len(seen) < 32:
            inside = (*found.args, *getattr(found, "kwargs", {}).values(), getattr(found, "reason", None))
            seen += [*inside, found.__cause__, found.__context__]
    return ""
