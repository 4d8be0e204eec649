"""What a region says of itself, from the status file beside its database, and the words for it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from walcast.errors import Unavailable
from walcast.replica import Replica
from walcast.statusfile import State, read_status
from walcast.token import Token

NOTHING = "none"
# States that are no replica's.
ROLES = {
    "primary": "primary",
    "fenced": "primary, fenced",
    "absent": "not replicated",
    "stopped": "stopped",
    "killed": "killed",
}


@dataclass(frozen=True, slots=True)
class Bar:
    """What a region says of itself. `state` as in `walcast.statusfile`, "absent" where no walcast ever ran; `token` is
    its position; `lag_ms` is infinite when it was never level."""

    region: str
    state: str = "absent"
    token: str = NOTHING
    lag_ms: float = math.inf

    @property
    def role(self) -> str:
        """In words."""
        return role_words(self.state)

    @property
    def lag(self) -> str:
        """In words."""
        return lag_words(self.lag_ms, self.state)


def role_words(state: str) -> str:
    """What a region is, and how it is."""
    return ROLES.get(state, f"replica, {state}")


def lag_words(lag_ms: float | None, state: str) -> str:
    """What a primary has is the newest there is."""
    if state in ROLES:
        return NOTHING
    return ms_words(lag_ms) if lag_ms is not None and math.isfinite(lag_ms) else "unknown"


def ms_words(ms: float) -> str:
    """Milliseconds, for people."""
    if ms < 10:
        return f"{ms:.1f} ms"
    return f"{ms:,.0f} ms" if ms < 10_000 else f"{ms / 1000:,.0f} s"


def look(replica: Replica, region: str) -> Bar:
    """As it is now."""
    try:
        status = read_status(replica.path)
    except Unavailable:
        return Bar(region)
    now_ns = time.time_ns()
    state = status.state if status.is_live(now_ns) else State.STOPPED
    lag_ms = status.lag_ms(now_ns) if status.level_ns else math.inf
    return Bar(region, str(state), str(Token.of(status.term, status.position.txid)), lag_ms)
