"""One thread for all slow work of a process, a piece at a time: whoever has any takes turns."""

from __future__ import annotations

import math
import threading
import time
from contextlib import suppress
from typing import Protocol

REMOVE_S = 10.0
AGAIN_S = 10.0


class Work(Protocol):
    """What takes turns."""

    def step(self) -> float:
        """Do a piece; how long to wait for the next, seconds. Raises nothing."""


class Turns:
    """A thread, begun with the first work, that does what is due, one piece at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due_s: dict[Work, float] = {}
        self._working: Work | None = None
        self._thread: threading.Thread | None = None

    def add(self, work: Work, after_s: float) -> None:
        """Begin with it after so long."""
        with self._changed:
            self._due_s[work] = time.monotonic() + after_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="scrub", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def sooner(self, work: Work, after_s: float) -> None:
        """Go on with it after so long, if that is sooner than it would be."""
        with self._changed:
            due_s = self._due_s.get(work)
            if due_s is not None:
                self._due_s[work] = min(due_s, time.monotonic() + after_s)
                self._changed.notify_all()

    def remove(self, work: Work) -> None:
        """No more of it; a piece under way is waited for, unless the disk hangs."""
        with self._changed:
            self._due_s.pop(work, None)
            self._changed.wait_for(lambda: self._working is not work, REMOVE_S)

    def _run(self) -> None:
        while True:
            work = self._next()
            pause_s = AGAIN_S
            with suppress(MemoryError):  # a piece that there is no memory for is taken later
                pause_s = work.step()
            with self._changed:
                self._working = None
                if work in self._due_s:  # it may be due sooner than it says, because somebody asked meanwhile
                    self._due_s[work] = min(self._due_s[work], time.monotonic() + pause_s)
                self._changed.notify_all()

    def _next(self) -> Work:
        with self._changed:
            while True:
                work = min(self._due_s, key=self._due_s.__getitem__, default=None)
                wait_s = math.inf if work is None else self._due_s[work] - time.monotonic()
                if work is not None and wait_s <= 0:
                    self._working, self._due_s[work] = work, math.inf
                    return work
                self._changed.wait(None if wait_s == math.inf else wait_s)


TURNS = Turns()
