"""The times that transactions are stamped with: those of the wall clock, but never before an earlier one.

When the wall clock is set back, or another node's was ahead, stamps go on at half the pace until it has caught up. So
they ascend with the TXIDs, by which an archive is searched, and still tell how far one transaction is from the next.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from walcast.archive.clocks import ClockStep
from walcast.moment import TIMESTAMP_MAX_MS, format_moment

log = logging.getLogger("walcast.primary")

STEP_MS = 1000  # clocks that are slewed differ by less
MOST_STEPS = 100


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


def _elapsed_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Clock:
    """For one log; its appending thread asks. `take_steps` is for any."""

    def __init__(self, wall_ms: Callable[[], int] = _wall_ms, elapsed_ms: Callable[[], int] = _elapsed_ms) -> None:
        self._wall_ms = wall_ms
        self._elapsed_ms = elapsed_ms
        self._last_ms = 0
        self._at_ms = elapsed_ms()  # when `_last_ms` was given
        self._back_ms = 0  # by how much the clock was behind then
        self._steps: list[ClockStep] = []

    @property
    def last_ms(self) -> int:
        """The newest stamp."""
        return self._last_ms

    def not_before(self, timestamp_ms: int) -> None:
        """Give no stamp before this one, which is another process's."""
        if timestamp_ms > self._last_ms:
            self._last_ms, self._at_ms = timestamp_ms, self._elapsed_ms()

    def stamp_ms(self) -> int:
        """For the next transaction."""
        wall_ms, at_ms = self._wall_ms(), self._elapsed_ms()
        behind_ms = self._last_ms - wall_ms
        if behind_ms <= 0:
            self._last_ms, self._at_ms, self._back_ms = wall_ms, at_ms, 0
            return wall_ms
        if behind_ms >= self._back_ms + STEP_MS:
            self._note(wall_ms, behind_ms)
        self._back_ms = behind_ms
        gone_ms = max(0, at_ms - self._at_ms) // 2
        if gone_ms:
            self._last_ms, self._at_ms = min(self._last_ms + gone_ms, TIMESTAMP_MAX_MS), self._at_ms + 2 * gone_ms
        return self._last_ms

    def _note(self, wall_ms: int, behind_ms: int) -> None:
        step = ClockStep(wall_ms, wall_ms + 2 * behind_ms, behind_ms)
        self._steps = [*self._steps, step][-MOST_STEPS:]
        until = format_moment(min(step.until_ms, TIMESTAMP_MAX_MS))
        facts = {"by_s": round(behind_ms / 1000, 1), "at": format_moment(wall_ms), "until": until}
        log.warning("the clock was set back; timestamps run ahead of it until it has caught up", extra=facts)

    @property
    def steps(self) -> tuple[ClockStep, ...]:
        """Since the process began; none is taken away but by `forget`."""
        return tuple(self._steps)

    def forget(self, steps: tuple[ClockStep, ...]) -> None:
        """They are noted elsewhere."""
        self._steps = [step for step in self._steps if step not in steps]
