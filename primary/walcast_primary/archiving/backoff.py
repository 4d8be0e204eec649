"""When a duty that failed is tried again: each has its own failures, so that none holds up another. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RETRY_S = (5.0, 30.0, 60.0, 300.0, 600.0)


@dataclass(slots=True)
class Backoff:
    """Of one duty."""

    failures: int = 0
    not_before_s: float = 0.0

    def may_try(self, now_s: float) -> bool:
        """Is the pause after the last failure over?"""
        return now_s >= self.not_before_s

    def done(self, now_s: float, *, succeeded: bool) -> None:
        """It was tried at `now_s`."""
        self.failures = 0 if succeeded else self.failures + 1
        self.not_before_s = 0.0 if succeeded else now_s + RETRY_S[min(self.failures, len(RETRY_S)) - 1]
