"""Wake up when something may have been committed: inotify on the `-wal` and the database, and calls of other threads.

The watch on the `-wal` is for one event: it costs the writer nothing while we are awake, and has to be armed again
before sleeping; whoever arms it looks once more, since what was written before is not told. The database's own watch
stays: apps write it in their checkpoints only.

A user has 128 inotify instances by default. The first OWN_INSTANCES databases of a process have one each, the shortest
way from a commit to its capture; all further ones share one, and a thread that passes its events on.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from inotify_simple import INotify, flags

from walcast.lasting import outlast_in_thread

POLL_S = 0.002  # where there is no inotify
OWN_INSTANCES = 16

_NO_WATCH = frozenset([errno.ENOSPC, errno.ENOMEM])
_DATABASE = flags.MODIFY | flags.ATTRIB | flags.MOVE_SELF | flags.DELETE_SELF
_WAL = flags.MODIFY | flags.ONESHOT


class Wakeup:
    """`wait` returns when a watched file was written, `call` was called, or the time is over."""

    def __init__(self, wal: Path, database: Path) -> None:
        self._wal = wal
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._calls = select.poll()
        self._calls.register(self._event, select.POLLIN)
        self._poll = select.poll()
        self._poll.register(self._event, select.POLLIN)
        self._armed = False
        self._polling = False  # there was no watch to be had the last time
        self._watch: _Own | _Lent | None = None
        try:
            self._watch = _Own(self._poll) if _take_instance() else _Lent(self._on_shared_event)
            self._watch.add(database, _DATABASE)
        except (OSError, RuntimeError):  # the user has no instances left, or no watches, or no threads
            self._drop_watch()

    def arm(self) -> bool:
        """Have the next write to the `-wal` end a `wait`; True when it was not so yet: look again before waiting."""
        if self._armed or self._watch is None:
            return False
        try:
            self._watch.add(self._wal, _WAL)
        except OSError as error:
            self._polling = error.errno in _NO_WATCH  # ENOSPC here is no full disk: see inotify_add_watch(2)
            if not self._polling:
                raise
            return False
        self._armed, self._polling = True, False
        return True

    def wait(self, timeout_s: float) -> bool:
        """True when there was an event."""
        if self._watch is None or self._polling:
            timeout_s = min(timeout_s, POLL_S)
        ready = self._poll.poll(timeout_s * 1000)
        for fd, _ in ready:
            if fd == self._event:
                os.eventfd_read(self._event)
            elif isinstance(self._watch, _Own):
                # Which file it was does not matter: arming one that is armed does no harm.
                self._watch.read()
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
        self._drop_watch()
        os.close(self._event)

    def _on_shared_event(self) -> None:
        self._armed = False  # before the call: whoever is woken by it arms again
        self.call()

    def _drop_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()


class _Own:
    """An inotify instance for one database alone."""

    def __init__(self, poll: select.poll) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError:
            _give_instance_back()
            raise
        poll.register(self._inotify.fileno(), select.POLLIN)

    def add(self, path: Path, mask: int) -> None:
        self._inotify.add_watch(path, mask)

    def read(self) -> None:
        self._inotify.read(timeout=0)

    def close(self) -> None:
        self._inotify.close()
        _give_instance_back()


class _Lent:
    """Some watches of the shared instance."""

    def __init__(self, notify: Callable[[], None]) -> None:
        self._notify = notify
        self._watches: dict[Path, int] = {}
        self._shared = _Shared.get()

    def add(self, path: Path, mask: int) -> None:
        self._watches[path] = self._shared.add(path, mask, self._notify)

    def close(self) -> None:
        self._shared.remove(self._watches.values())


class _Shared:
    """One instance for many databases, and the thread that reads it for as long as the process lives."""

    _one: _Shared | None = None
    _making = threading.Lock()

    @classmethod
    def get(cls) -> _Shared:
        with cls._making:
            cls._one = cls._one or cls()
            return cls._one

    def __init__(self) -> None:
        self._inotify = INotify()
        self._lock = threading.Lock()
        self._told: dict[int, Callable[[], None]] = {}
        work = partial(outlast_in_thread, self._run, "inotify", "inotify")
        threading.Thread(target=work, name="inotify", daemon=True).start()

    def add(self, path: Path, mask: int, notify: Callable[[], None]) -> int:
        with self._lock:  # no event is passed on before it is known to whom
            watch: int = self._inotify.add_watch(path, mask)
            self._told[watch] = notify
            return watch

    def remove(self, watches: Iterable[int]) -> None:
        with self._lock:
            for watch in watches:
                self._told.pop(watch, None)
                try:
                    self._inotify.rm_watch(watch)
                except OSError:  # it went with its file, or was for one event
                    pass

    def _run(self) -> None:
        while True:
            events = self._inotify.read()
            with self._lock:
                told = {event.wd for event in events if not event.mask & flags.IGNORED}
                for notify in {self._told[watch] for watch in told if watch in self._told}:
                    notify()
                for event in events:
                    if event.mask & flags.IGNORED:  # a watch for one event that has had it, or its file is gone
                        self._told.pop(event.wd, None)


_instances = 0
_counting = threading.Lock()


def _take_instance() -> bool:
    global _instances
    with _counting:
        if _instances >= OWN_INSTANCES:
            return False
        _instances += 1
        return True


def _give_instance_back() -> None:
    global _instances
    with _counting:
        _instances -= 1
