"""Wake up when something may have been committed: inotify on the `-wal` and the database, and a call from other
threads.

A write to the `-wal` comes before the commit shows in the wal-index, with synchronous=FULL by an fsync. So after a
wake-up that found nothing new the caller looks again soon, a little later each time; where there is no inotify,
always.
"""

from __future__ import annotations

import os
import select
from pathlib import Path

from inotify_simple import INotify, flags

LOOK_AGAIN_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
IDLE_S = 0.1
POLL_S = 0.002


class Wakeup:
    """`wait` returns when a watched file was written, `call` was called, or the time is over."""

    def __init__(self, paths: list[Path]) -> None:
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inotify: INotify | None = None
        try:
            self._inotify = INotify(nonblocking=True)
            for path in paths:
                self._inotify.add_watch(path, flags.MODIFY | flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF)
        except OSError:
            self._inotify = None  # no instances left: fall back to looking
        self._fds = [self._event] + ([self._inotify.fileno()] if self._inotify else [])

    def wait(self, timeout_s: float) -> bool:
        """True when there was an event."""
        if self._inotify is None:
            timeout_s = min(timeout_s, POLL_S)
        ready, _, _ = select.select(self._fds, (), (), timeout_s)
        if self._event in ready:
            os.eventfd_read(self._event)
        if self._inotify is not None and self._inotify.fileno() in ready:
            self._inotify.read(timeout=0)
        return bool(ready)

    def call(self) -> None:
        """Make a `wait` in another thread return, now or the next time."""
        os.eventfd_write(self._event, 1)

    def close(self) -> None:
        """Give the descriptors back."""
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._event)
