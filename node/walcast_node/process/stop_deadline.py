"""The end of a stop that does not come to its end.

Every wait of an orderly end has its own bound; this is for what has none: a disk, a store or a name server that hangs
must not keep the process until an orchestrator kills it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger("walcast.node")

SLACK_S = 1.0  # for what ends in order within --stop-timeout, and only then lets go of all
SAY_S = 0.5  # a log whose reader hangs takes no line
FAILED = 1


class StopDeadline:
    """Ends the process `limit_s` and a little after `begin`, unless the stop was `reached` before. For any thread."""

    def __init__(self, limit_s: float, end: Callable[[int], object] = os._exit) -> None:
        self._limit_s = limit_s
        self._end = end
        self._begun = threading.Event()
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """From now on; what was begun before goes on."""
        if self._begun.is_set():
            return
        self._begun.set()
        self._timer = threading.Timer(self._limit_s + SLACK_S, self._over)
        self._timer.daemon = True
        self._timer.start()

    def reached(self) -> None:
        """The stop has come to its end: the process goes on."""
        self._begun.set()
        if self._timer is not None:
            self._timer.cancel()

    def _over(self) -> None:
        facts = {"seconds": self._limit_s, "exit_code": FAILED}
        what = "the stop has not come to its end within --stop-timeout: ending the process"
        saying = threading.Thread(target=log.error, args=(what,), kwargs={"extra": facts}, daemon=True)
        saying.start()
        saying.join(SAY_S)
        self._end(FAILED)
