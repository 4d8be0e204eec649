"""Credentials that change in their file: read again when the ones in use are refused, and the request repeated at once.

boto3's chain is asked once, when a client is made. It renews what has an expiry (instance roles, SSO, web identities),
but a shared credentials file that an orchestrator or a login rewrites has none. What cannot be read, or is the same,
changes nothing, so a request is repeated only as often as the file has something new.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger("walcast.archive")

READ_EVERY_S = 1.0  # whoever is refused for want of a permission asks as often as it likes
_REFUSED = {
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "InvalidSignatureException",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
}
_REFUSED_STATUS = (401, 403)


def found_credentials() -> Any:
    """What boto3's chain has now, or None."""
    from botocore.exceptions import BotoCoreError
    from botocore.session import get_session

    try:
        return get_session().get_credentials()
    except (BotoCoreError, OSError, ValueError):  # half written, or away for a moment
        return None


class Rotation:
    """Of one client, which signs with what the chain had when it was made."""

    def __init__(self, client: Any, url: str, *, find: Callable[[], Any] = found_credentials) -> None:
        self._signer = client._request_signer
        self._url = url
        self._find = find
        self._lock = threading.Lock()
        self._read_s = self._renewed_s = time.monotonic() - READ_EVERY_S
        client.meta.events.register("needs-retry.s3", self.needs_retry)

    def needs_retry(self, response: Any = None, attempts: int = 1, **_: Any) -> float | None:
        """A handler of botocore's event: 0.0 repeats the request, signed anew."""
        if response is None:
            return None
        answer, parsed = response
        refused = answer.status_code in _REFUSED_STATUS or parsed.get("Error", {}).get("Code") in _REFUSED
        return 0.0 if refused and self._renew(attempts) else None

    def _renew(self, attempts: int) -> bool:
        """Are there others now than those that were refused?"""
        with self._lock:
            now = time.monotonic()
            if now - self._read_s < READ_EVERY_S:
                # Requests of other threads were on their way when they changed.
                return attempts == 1 and now - self._renewed_s < READ_EVERY_S
            self._read_s = now
            found = self._find()
            if found is None or not _differ(found, self._signer._credentials):
                return False
            self._signer._credentials = found
            self._renewed_s = now
        log.info("new credentials for the archive", extra={"url": self._url})
        return True


def _differ(found: Any, used: Any) -> bool:
    from botocore.exceptions import BotoCoreError

    try:
        return bool(found.get_frozen_credentials() != used.get_frozen_credentials())
    except BotoCoreError:  # they have to be fetched, and nobody answers
        return False
