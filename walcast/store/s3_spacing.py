"""Writes of one key, a second apart where the server takes no more: Cloudflare R2 answers 429 to what comes sooner.

Only this process's own writes are spaced. One that another node made a moment ago is answered 429 all the same, and is
repeated as `s3_retry` repeats what is throttled.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from walcast.store.s3_spec import S3Spec

EVERY_S = 1.05
_ONE_A_SECOND = ".r2.cloudflarestorage.com"


def write_interval_s(spec: S3Spec) -> float:
    """How far apart writes of one key must be at this endpoint."""
    host = urlsplit(spec.endpoint or "").hostname or ""
    return EVERY_S if f".{host}".endswith(_ONE_A_SECOND) else 0.0


class Spacing:
    """Of one store. Remembers keys only as long as they matter."""

    def __init__(
        self,
        every_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._every_s = every_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._next_s: dict[str, float] = {}

    def wait(self, key: str) -> None:
        """Before a write of `key`: until it may be sent."""
        if not self._every_s:
            return
        with self._lock:
            now = self._clock()
            self._next_s = {known: at_s for known, at_s in self._next_s.items() if at_s > now}
            at_s = self._next_s.get(key, now)
            self._next_s[key] = at_s + self._every_s
        if at_s > now:
            self._sleep(at_s - now)
