"""When the wall clock of a primary was set back. An object of the archive tells; there is none where it never was.

    walcast-clock: {"walcast_clock": 1, "steps": [{"from_ms": …, "until_ms": …, "back_ms": …}]}

Timestamps of transactions never go back: while the clock has not caught up, they run ahead of it. So a moment between
`from_ms` and `until_ms`, by that clock, is not the moment of the same name by the timestamps, and a restore to it ends
earlier than somebody would expect who looked at that clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from walcast.errors import Corrupt
from walcast.moment import TIMESTAMP_MAX_MS
from walcast.store.base import ObjectMissing, Store

KEY = "walcast-clock"
FORMAT = 1
MOST_BYTES = 1 << 16
MOST_STEPS = 200  # the newest ones are kept


@dataclass(frozen=True, slots=True)
class ClockStep:
    """A clock showed `from_ms` once it was set back by `back_ms`, and had caught up with the timestamps at `until_ms`
    at the latest."""

    from_ms: int
    until_ms: int
    back_ms: int

    def includes(self, timestamp_ms: int) -> bool:
        """Did that clock show this time while the timestamps were ahead of it?"""
        return self.from_ms <= timestamp_ms < self.until_ms


def read_clock_steps(store: Store) -> tuple[ClockStep, ...]:
    """Oldest first. Corrupt when the object is damaged."""
    try:
        data = store.get(KEY, 0, MOST_BYTES + 1)
    except ObjectMissing:
        return ()
    try:
        return _decode(data)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(f"{KEY} in {store.url} is damaged ({error}): remove this object") from error


def add_clock_steps(store: Store, steps: Sequence[ClockStep]) -> None:
    """Note more of them, newest last. A damaged object is written anew."""
    try:
        known = read_clock_steps(store)
    except Corrupt:
        known = ()
    kept = [*known, *(step for step in steps if step not in known)][-MOST_STEPS:]
    data = json.dumps({"walcast_clock": FORMAT, "steps": [asdict(step) for step in kept]}).encode() + b"\n"
    store.put(KEY, data, timestamp_ms=time.time_ns() // 1_000_000)


def _decode(data: bytes) -> tuple[ClockStep, ...]:
    facts: Any = json.loads(data) if len(data) <= MOST_BYTES else None
    if not isinstance(facts, dict) or facts.get("walcast_clock") != FORMAT:
        raise ValueError("not of a version that this walcast knows")
    return tuple(_step(found) for found in facts["steps"])


def _step(found: Any) -> ClockStep:
    step = ClockStep(found["from_ms"], found["until_ms"], found["back_ms"])
    for value in (step.from_ms, step.until_ms, step.back_ms):
        if not isinstance(value, int) or not 0 <= value <= 2 * TIMESTAMP_MAX_MS:
            raise ValueError(f"not a time in milliseconds: {value!r}")
    return step
