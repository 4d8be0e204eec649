"""Wake up when something may have been committed: inotify on the `-wal` and the database, and calls of other threads.

The watch on the `-wal` is for one event: it costs the writer nothing while we are awake, and has to be armed again
before sleeping; whoever arms it looks once more, since what was written before is not told. The database's own watch
stays: apps write it in their checkpoints only.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from inotify_simple import INotify, flags

POLL_S = 0.002  # where there is no inotify


class Wakeup:
    """`wait` returns when a watched file was written, `call` was called, or the time is over."""

    def __init__(self, wal: Path, database: Path) -> None:
        self._wal = wal
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._calls = select.poll()
        self._calls.register(self._event, select.POLLIN)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)
        self._inotify: INotify | None = None
        self._armed = False
        try:
            self._inotify = INotify(nonblocking=True)
            self._inotify.add_watch(database, flags.MODIFY | flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF)
            self._poll.register(self._inotify.fileno(), select.POLLIN)
        except OSError:
            self._inotify = None  # the user has no instances left

    def arm(self) -> bool:
        """Have the next write to the `-wal` end a `wait`; True when it was not so yet: look again before waiting."""
        if self._armed or self._inotify is None:
            return False
        self._inotify.add_watch(self._wal, flags.MODIFY | flags.ONESHOT)
        self._armed = True
        return True

    def wait(self, timeout_s: float) -> bool:
        """True when there was an event."""
        if self._inotify is None:
            timeout_s = min(timeout_s, POLL_S)
        ready = self._poll.poll(timeout_s * 1000)
        for fd, _ in ready:
            if fd == self._event:
                os.eventfd_read(self._event)
            elif self._inotify is not None:
                # Which file it was does not matter: arming one that is armed does no harm.
                self._inotify.read(timeout=0)
                self._armed = False
        return bool(ready)

    def pause(self, seconds: float) -> None:
        """Let a moment pass whatever is written; a moment of milliseconds is ended by `call`."""
        if seconds < 0.001:
            time.sleep(seconds)
        elif self._calls.poll(seconds * 1000):
            os.eventfd_read(self._event)

    def call(self) -> None:
        """Make a `wait` in another thread return, now or the next time."""
        os.eventfd_write(self._event, 1)

    def close(self) -> None:
        """Give the descriptors back."""
        if self._inotify is not None:
            self._inotify.close()
        os.close(self._event)
