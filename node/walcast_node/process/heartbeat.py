"""Tell a monitor, again and again, that every database is captured and archived in time: silence means trouble.

In a thread of its own, so that a monitor that hangs holds up nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

from walcast.errors import WalcastError
from walcast.lasting import outlast_in_thread
from walcast.secret import Secret
from walcast_node.process.ping import ping

log = logging.getLogger("walcast.heartbeat")

ARCHIVED_WITHIN_S = 60.0
LOOK_AGAIN_S = 1.0
RETRY_S = 15.0


class Heartbeat:
    """Pings `url` every `interval_s`, from `start` to `stop`, as long as `trouble` answers None.

    A ping that is due and held back is sent as soon as the trouble is over, one that failed after a while. Why there is
    none is logged, but not in the first moments, when the archive is only being begun.
    """

    def __init__(self, url: Secret, interval_s: float, trouble: Callable[[], str | None]) -> None:
        self._url = url
        self._interval_s = interval_s
        self._trouble = trouble
        self._missed: str | None = None
        self._quiet_until_s = time.monotonic() + ARCHIVED_WITHIN_S  # nothing can be late yet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> Self:
        """Begin in the background."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End; a ping that is on its way is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        outlast_in_thread(self._beat_on, "heartbeat", "heartbeat", pause=self._stop.wait)

    def _beat_on(self) -> None:
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            wait_s = self._beat()

    def _beat(self) -> float:
        """Ping, if all is well; how long to wait now."""
        wrong = self._trouble()
        if wrong is not None:
            if time.monotonic() > self._quiet_until_s:
                self._say(wrong)
            return min(self._interval_s, LOOK_AGAIN_S)
        try:
            ping(self._url)
        except WalcastError as error:
            self._say(str(error))
            return min(self._interval_s, RETRY_S)
        self._say(None)
        self._quiet_until_s = 0.0
        return self._interval_s

    def _say(self, missed: str | None) -> None:
        """Once a change: why there is no heartbeat, and that there is one again."""
        if missed == self._missed:
            return
        if missed is not None:
            log.warning("no heartbeat", extra={"reason": missed})
        else:
            log.info("heartbeat again", extra={"missed": self._missed})
        self._missed = missed
