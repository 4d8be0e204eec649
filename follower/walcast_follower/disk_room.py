"""A full disk at a follower: whether there is room enough for the next try.

Checked before a primary or an archive is asked for anything, since what comes over the network could not be written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from walcast.errors import DiskFull
from walcast.shortage import free_bytes

LEAST_BYTES = 1 << 20  # where the try that failed did not say what it needs
TRY_ANYWAY_S = 60.0  # what was needed may have been guessed too high, and a quota cannot be looked at


class Room:
    """Remembers what the last try lacked until it is free."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full: DiskFull | None = None
        self._tried_s = 0.0

    @property
    def is_lacking(self) -> bool:
        """Whether the last try failed for want of room."""
        return self._full is not None

    def lacks(self, error: DiskFull) -> None:
        """A try failed for want of room."""
        if self._full is None:
            self._tried_s = self._clock()
        if self._full is None or error.needed_bytes is not None:
            self._full = error

    def check(self, detail: str = "") -> None:
        """DiskFull while there is less room than the last try needed; once a minute a try is let through."""
        full = self._full
        if full is None:
            return
        needed = LEAST_BYTES if full.needed_bytes is None else full.needed_bytes
        free = free_bytes(full.path)
        if free is not None and free < needed and self._clock() - self._tried_s < TRY_ANYWAY_S:
            raise DiskFull(full.path, detail or full.detail, free_bytes=free, needed_bytes=full.needed_bytes)
        self._full = None


def check_announced(path: Path, needed_bytes: int, detail: str = "a new copy does not fit") -> None:
    """DiskFull, before the first byte is fetched, when the disk of `path` has less room than what is announced."""
    free = free_bytes(path)
    if free is not None and free < needed_bytes:
        raise DiskFull(path, detail, free_bytes=free, needed_bytes=needed_bytes)
