"""When to warn of a certificate that ends soon. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

WARN_BEFORE = timedelta(days=30)
AGAIN = timedelta(days=1)


@dataclass(slots=True)
class ExpiryWarnings:
    """Of the certificates of one process: 30 days before, then once a day, also when one has ended."""

    _warned: dict[str, datetime] = field(default_factory=dict)

    def due(self, fingerprint: str, not_after: datetime, now: datetime) -> bool:
        """Is it time to warn of this one? Answers True once a day."""
        if not_after - now > WARN_BEFORE:
            self._warned.pop(fingerprint, None)
            return False
        last = self._warned.get(fingerprint)
        if last is not None and timedelta(0) <= now - last < AGAIN:
            return False
        self._warned[fingerprint] = now
        return True
