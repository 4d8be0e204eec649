"""When a message of a stream was sent, at the earliest: what waited on the way, or in a stopped process, is old.

Heartbeats carry the primary's clock. By how much it differs from this host's is not known, but a message that came
the fastest way tells it to within one round trip; what came later than that by `n` seconds was `n` seconds longer on
its way. Pure: the caller gives the times.
"""

from __future__ import annotations

from collections import deque

WINDOW_US = 60_000_000  # after it a clock that stood still for a moment, or drifts, counts as it is
MOST = 4096
ROUND_TRIPS = 3  # a long one among them was a moment
GAP_US = 500_000  # a longer pause between two messages: either nothing was sent, or nothing came through


class SentTimes:
    """Of one stream, in microseconds of a clock that also counts while this host sleeps. `began_us`: when the stream
    was asked for; nothing in it was sent before."""

    def __init__(self, began_us: int) -> None:
        self._began_us = began_us
        self._first_clock_us: int | None = None
        # Each with when the next heartbeat came after it, ascending in both: a lower one later makes one useless.
        self._differences: deque[list[int]] = deque(maxlen=MOST)
        self._round_trips: deque[int] = deque(maxlen=ROUND_TRIPS)
        self._age_us = 0  # of the newest heartbeat, when it came
        self._timely_us = began_us  # when something came last that was not older than `_age_us`
        self._waited = True

    def heartbeat(self, now_us: int, clock_us: int, round_trip_us: int) -> int:
        """One that came at `now_us`: when it was sent, at the earliest. `round_trip_us`: as the primary measured it
        last, 0: never."""
        difference = now_us - clock_us
        if self._differences:
            self._differences[-1][1] = now_us
        while self._differences and self._differences[-1][0] >= difference:
            self._differences.pop()
        self._differences.append([difference, now_us])
        while now_us - self._differences[0][1] > WINDOW_US:  # one stays that was compared with all of the window
            self._differences.popleft()
        if self._first_clock_us is None:
            self._first_clock_us = clock_us
        least = self._began_us - self._first_clock_us
        if round_trip_us > 0:
            # The fastest of them all took no longer than any round trip that another one was a part of.
            self._round_trips.append(round_trip_us)
            least = self._differences[0][0] - min(self._round_trips)
        self._age_us = min(max(0, difference - least), max(0, now_us - self._began_us))
        self._timely_us, self._waited = now_us, False
        return now_us - self._age_us

    def other(self, now_us: int) -> int:
        """Another message that came at `now_us`: when it was sent, at the earliest. It does not say; after a pause it
        may have waited for as long as that, until a heartbeat tells more."""
        if not self._waited and now_us - self._timely_us <= GAP_US:
            self._timely_us = now_us
        else:
            self._waited = True
        return max(self._began_us, self._timely_us - self._age_us)
