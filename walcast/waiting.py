"""Waiting until a replica has reached something: threads, greenlets and coroutines, any number at once.

The status file is watched once by all the threads of a process that wait for one replica, and once by each event loop
in which coroutines do. One of the threads, the leader, sleeps in poll(2); a change costs one look at the file, and
wakes those alone whose goal it reaches. When the leader has what it waits for it wakes one of the others to lead.

Greenlets are threads here: the names that gevent replaces are looked up when they are called, so `patch_all` may come
before or after the import. A process that was forked begins anew.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from walcast.errors import Unavailable
from walcast.goals import Goal, Waiters
from walcast.statusfile import Status, read_status
from walcast.statuswatch import StatusWatch

if TYPE_CHECKING:
    import asyncio

LOOK_S = 1.0  # whatever is told or not
POLL_FIRST_S = 0.001  # where there is no inotify
POLL_MOST_S = 0.005
LONGEST_S = 3600.0  # of one sleep of a thread
FOREVER_S = 1e9  # for an event loop
LOST_S = 3.0  # a leader that has not looked for so long was ended by a signal, at the worst moment
CHAINS = 2  # of threads that wake each other: more than that only fight for the interpreter
KEPT = 64  # replicas that are remembered


class Waiting:
    """All that waits in this process for the replica at `database`."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._threads = _Threads(self)
        self._loops: dict[asyncio.AbstractEventLoop, _Loop] = {}
        self._idle: list[StatusWatch] = []

    def wait(self, goal: Goal, until_s: float) -> bool:
        """Block until it is reached; False when it was not by then (on the monotonic clock)."""
        return self._threads.wait(goal, until_s)

    async def wait_async(self, goal: Goal, until_s: float) -> bool:
        """The same, in the running event loop, which may be asyncio's or uvloop's; no thread is used."""
        import asyncio

        loop = asyncio.get_running_loop()
        group = self._loops.get(loop)
        if group is None:
            group = self._loops[loop] = _Loop(self, loop)
        try:
            return await group.wait(goal, until_s)
        finally:
            if group.is_idle:
                self._loops.pop(loop, None)

    @property
    def is_idle(self) -> bool:
        """Does nobody wait?"""
        return self._threads.is_idle and not self._loops

    def look(self) -> Status | None:
        """At the file; None when it says nothing."""
        try:
            return read_status(self._database)
        except Unavailable:
            return None

    def take_watch(self) -> StatusWatch:
        """To be given back."""
        try:
            watch = self._idle.pop()
        except IndexError:
            return StatusWatch(self._database)
        watch.clear()
        return watch

    def give_back(self, watch: StatusWatch) -> None:
        """For the next one, unless that may have a better one by then."""
        if watch.fd is not None:
            self._idle.append(watch)


class _Process:
    """What waits in one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._waiting: dict[str, Waiting] = {}

    def waiting_for(self, database: Path) -> Waiting:
        key = str(database)
        waiting = self._waiting.get(key)
        if waiting is None:
            for other, what in list(self._waiting.items())[: -KEPT + 1]:
                if what.is_idle:
                    self._waiting.pop(other, None)
            waiting = self._waiting.setdefault(key, Waiting(database))
        return waiting


_process = _Process()


def waiting_for(database: Path) -> Waiting:
    """Of this process: a child that was forked must not take events from its parent, nor wait for its locks."""
    global _process
    if _process.pid != os.getpid():
        _process = _Process()
    return _process.waiting_for(database)


class _Sleeper:
    """One thread that waits; `wake` is called once at most."""

    def __init__(self) -> None:
        self.reached = False
        self.follows: _Sleeper | None = None  # whom this one wakes in turn
        self._lock = threading.Lock()
        self._lock.acquire()

    def sleep(self, until_s: float) -> bool:
        """Until it is woken; False when the time is over."""
        while (left_s := until_s - time.monotonic()) > 0:  # never true of what is not a number
            if self._lock.acquire(timeout=min(left_s, LONGEST_S)):
                return True
        return False

    def wake(self) -> None:
        self._lock.release()


class _Threads:
    """The threads that wait for one replica."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._lock = threading.Lock()
        self._waiters: Waiters[_Sleeper] = Waiters()
        self._sleepers: dict[_Sleeper, None] = {}
        self._leader: _Sleeper | None = None
        self._looked_s = 0.0  # when the leader did
        self._watch: StatusWatch | None = None
        self._seen: Status | None = None  # by the leader, the last time; None: there is none, or nothing to be seen

    @property
    def is_idle(self) -> bool:
        return self._leader is None

    def wait(self, goal: Goal, until_s: float) -> bool:
        me = _Sleeper()
        try:
            with self._lock:
                lost = self._leader is not None and time.monotonic() - self._looked_s > LOST_S
                # What the leader has not seen by now it is still to be told, and this thread by it.
                if not lost and self._seen is not None and goal.is_reached(self._seen, time.time_ns()):
                    return True
                self._waiters.add(goal, me)
                if self._leader is None or lost:
                    self._leader, self._looked_s = me, time.monotonic()
                else:
                    self._sleepers[me] = None
            if self._leader is me or (me.sleep(until_s) and not me.reached):
                self._lead(me, until_s)
            return me.reached
        finally:
            self._leave(goal, me)

    def _lead(self, me: _Sleeper, until_s: float) -> None:
        """Until it has what it waits for, or its time is over."""
        watch = self._watch
        if watch is None:
            watch = self._watch = self._waiting.take_watch()
        wait, pause_s = _waiter(watch), POLL_FIRST_S
        self._look(me)
        while not me.reached and (left_s := until_s - time.monotonic()) > 0:
            if wait is None:
                time.sleep(min(left_s, pause_s))
                pause_s = min(pause_s * 1.5, POLL_MOST_S)
            elif wait(min(left_s, LOOK_S)):
                watch.clear()
            else:
                watch.arm()
            self._look(me)

    def _look(self, me: _Sleeper) -> None:
        """See who has what it waits for, and wake it: the first ones, which wake the others."""
        seen = self._waiting.look()
        with self._lock:
            self._seen, self._looked_s = seen, time.monotonic()
            reached = self._waiters.pop_reached(seen, time.time_ns()) if seen is not None else []
            for sleeper in reached:
                sleeper.reached = True
                self._sleepers.pop(sleeper, None)
            others = [sleeper for sleeper in reached if sleeper is not me]
            for sleeper, follows in zip(others, others[CHAINS:], strict=False):
                sleeper.follows = follows
        for sleeper in others[:CHAINS]:
            sleeper.wake()

    def _leave(self, goal: Goal, me: _Sleeper) -> None:
        with self._lock:
            follows = me.follows
            self._waiters.remove(goal, me)
            self._sleepers.pop(me, None)
            if self._leader is me:
                self._hand_on()
        if follows is not None:
            follows.wake()

    def _hand_on(self) -> None:
        """Have another one lead. Who came last waits longest, as a rule."""
        self._leader = next(reversed(self._sleepers), None)
        if self._leader is not None:
            del self._sleepers[self._leader]
            self._leader.wake()
            return
        self._seen = None
        if self._watch is not None:
            self._waiting.give_back(self._watch)
            self._watch = None


def _waiter(watch: StatusWatch) -> Callable[[float], bool] | None:
    """Blocks for so many seconds at most; true when there was a change. None: it cannot be told."""
    if watch.fd is None:
        return None
    poll = select.poll()
    poll.register(watch.fd, select.POLLIN)
    return lambda seconds: bool(poll.poll(seconds * 1000))


class _Loop:
    """The coroutines of one event loop that wait for one replica. Used in that loop only."""

    def __init__(self, waiting: Waiting, loop: asyncio.AbstractEventLoop) -> None:
        self._waiting = waiting
        self._loop = loop
        self._waiters: Waiters[asyncio.Future[bool]] = Waiters()
        self._watch: StatusWatch | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._pause_s = POLL_FIRST_S
        self._seen: Status | None = None

    @property
    def is_idle(self) -> bool:
        return not self._waiters

    async def wait(self, goal: Goal, until_s: float) -> bool:
        if self._seen is not None and goal.is_reached(self._seen, time.time_ns()):
            return True
        future: asyncio.Future[bool] = self._loop.create_future()
        self._waiters.add(goal, future)
        try:
            if self._watch is None:
                self._begin()
            left_s = until_s - time.monotonic()
            if future.done() or not left_s > 0:
                return future.done()
            timer = self._loop.call_later(min(left_s, FOREVER_S), _answer, future, False)
            try:
                return await future
            finally:
                timer.cancel()
        finally:
            self._waiters.remove(goal, future)
            if not self._waiters:
                self._end()

    def _begin(self) -> None:
        self._watch = self._waiting.take_watch()
        if self._watch.fd is not None:
            self._loop.add_reader(self._watch.fd, self._on_change)
        self._on_tick()

    def _end(self) -> None:
        self._seen = None
        watch, self._watch = self._watch, None
        tick, self._tick = self._tick, None
        if tick is not None:
            tick.cancel()
        if watch is None:
            return
        if watch.fd is not None and not self._loop.is_closed():
            self._loop.remove_reader(watch.fd)
        self._waiting.give_back(watch)

    def _on_change(self) -> None:
        if self._watch is not None:
            self._watch.clear()
            self._look()

    def _on_tick(self) -> None:
        if self._watch is None:
            return
        pause_s = LOOK_S
        if self._watch.fd is None:
            pause_s, self._pause_s = self._pause_s, min(self._pause_s * 1.5, POLL_MOST_S)
        else:
            self._watch.arm()
        self._tick = self._loop.call_later(pause_s, self._on_tick)
        self._look()

    def _look(self) -> None:
        self._seen = seen = self._waiting.look()
        if seen is not None:
            for future in self._waiters.pop_reached(seen, time.time_ns()):
                _answer(future, True)


def _answer(future: asyncio.Future[bool], reached: bool) -> None:
    if not future.done():
        future.set_result(reached)
