"""Log lines for what happens again and again: the first ones, then at growing intervals, with a count of the others.

A condition (a full disk, a primary that is away) is told apart by a key, not by its text, which may hold numbers that
change. Lines that are held back go to the debug level, so that they can be had.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

AGAIN_S = (60.0, 600.0, 3600.0)
KEYS_MOST = 1000  # the ones that were said longest ago are forgotten


@dataclass(slots=True)
class _Said:
    first_s: float
    last_s: float  # when it happened
    logged_s: float
    times: int = 1
    lines: int = 1
    held_back: int = 0


class Rarely:
    """For one logger; any thread may use it."""

    def __init__(self, logger: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._lock = threading.Lock()
        self._said: OrderedDict[Hashable, _Said] = OrderedDict()

    def log(self, level: int, event: str, key: Hashable, facts: Mapping[str, object], *, burst: int = 1) -> bool:
        """Log it: the first `burst` times at once, then after a minute, ten minutes and every hour. A condition that
        did not occur for as long as that counts as new. Returns whether a line was written at `level`."""
        held_back = self.due(key, burst=burst)
        if held_back is None:
            self._logger.debug(event, extra=dict(facts))
            return False
        self._logger.log(level, event, extra={**facts, **({"suppressed": held_back} if held_back else {})})
        return True

    def due(self, key: Hashable, *, burst: int = 1) -> int | None:
        """For a caller that writes the line itself: the number of lines held back before this one; None when this one
        is to be held back, too."""
        with self._lock:
            return self._note(key, burst)

    def _note(self, key: Hashable, burst: int) -> int | None:
        now = self._clock()
        said = self._said.get(key)
        if said is None or now - said.last_s >= _interval_s(said, burst):
            self._said[key] = _Said(now, now, now)
            self._said.move_to_end(key)
            while len(self._said) > KEYS_MOST:
                self._said.popitem(last=False)
            return said.held_back if said else 0
        said.times += 1
        said.last_s = now
        if said.lines >= burst and now - said.logged_s < _interval_s(said, burst):
            said.held_back += 1
            return None
        said.lines += 1
        said.logged_s = now
        held_back, said.held_back = said.held_back, 0
        return held_back

    def over(self, event: str, key: Hashable, facts: Mapping[str, object] = MappingProxyType({})) -> bool:
        """The condition has ended: logged if its beginning was, with how often and for how long it occurred."""
        with self._lock:
            said = self._said.pop(key, None)
        if said is None:
            return False
        seconds = round(self._clock() - said.first_s, 1)
        self._logger.info(event, extra={**facts, "times": said.times, "seconds": seconds})
        return True

    def forget_all(self) -> None:
        """All conditions have ended, which the caller logs itself: whatever occurs next is new."""
        with self._lock:
            self._said.clear()


def _interval_s(said: _Said, burst: int) -> float:
    return AGAIN_S[min(max(0, said.lines - burst), len(AGAIN_S) - 1)]
