"""For how long a primary may publish and archive.

Without a lease: until it is told otherwise. With one, until a moment on a clock that also counts while the machine
sleeps, which each renewal of the lease moves on. Everything that sends a byte to followers or to the archive asks here
first, each time: a process that was stopped and wakes up finds its time over before it does anything else.
"""

from __future__ import annotations

import math
import time

from walcast.errors import Stopped


def now_s() -> float:
    """Seconds since the machine started, also while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Tenure:
    """One primary's. Any thread may ask; one changes it."""

    def __init__(self, term: int = 0) -> None:
        self.term = term
        self._from_s = -math.inf
        self._until_s = math.inf
        self.ended = ""
        self.heir = ""  # the address of the node that it was handed over to

    def set(self, from_s: float, until_s: float) -> None:
        """It lasts from then until then; -inf, inf: without beginning, without end."""
        self._from_s, self._until_s = from_s, until_s

    def end(self, reason: str, *, heir: str = "") -> None:
        """It is over for good."""
        self.heir = self.heir or heir
        self.ended = self.ended or reason
        self._until_s = -math.inf

    @property
    def holds(self) -> bool:
        """May anything be sent now?"""
        return self._from_s <= now_s() < self._until_s

    @property
    def left_ms(self) -> int:
        """How much is left, at least; 0 for a tenure without end."""
        left_s = self._until_s - now_s()
        return 0 if left_s == math.inf else max(1, int(max(0.0, left_s) * 1000))

    def check(self) -> None:
        """Stopped when nothing may be sent now."""
        if not self.holds:
            raise Stopped(self.ended or "this node does not hold the lease now")
