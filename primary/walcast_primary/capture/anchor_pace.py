"""When the anchor moves on: as soon as there is nothing more to capture, and at once while a checkpoint runs.

A RESTART or TRUNCATE checkpoint of an app holds the write lock while it waits, with SQLite's busy handler, for every
reader: first until none reads at a frame before the last, and, once all frames are in the database file, until none
reads from the WAL at all. The anchor is such a reader, so it must be quick in both:

* it follows each commit before the capture thread goes to sleep, `MOVE_EVERY_S` apart at most, so that it stands at the
  last frame already when such a checkpoint begins;
* the checkpoint's first write to the database file wakes the thread. While the checkpoint lock is held the thread looks
  every `CHECKPOINT_LOOK_S`, since no event tells that nBackfill has moved. Then the anchor goes to read lock 0.

SQLite does not always give the place that was asked for: a reader that begins while the four read marks are in use by
others shares an older one, and one that begins while a checkpoint has read lock 0 exclusively gets a mark although all
frames are copied. Which mark a connection has is not told; the locks tell which marks are in use by anybody. As long as
one is that a checkpoint would wait for, the anchor begins again, less and less often unless a checkpoint runs.

Nor does a waiting checkpoint look at the mark again: it waits for the lock on it. An anchor that takes a mark which
somebody else has just left, and which the checkpoint waits for, holds it up for ever, since nobody can commit meanwhile
and move the anchor. So an anchor at the last frame stands aside when a checkpoint goes on waiting.
"""

from __future__ import annotations

import math
import time

from walcast.locks import is_locked
from walcast.walindex import LOCK_CHECKPOINT, LOCK_READ0, LOCK_WRITE, READ_MARKS
from walcast_primary.capture.anchor import Anchor
from walcast_primary.capture.capture import Capture

MOVE_EVERY_S = 0.005
BUSY_MOVE_EVERY_S = 0.1
CHECKPOINT_LOOK_S = 0.001
LONGEST_WAIT_S = 1.0
ASIDE_S = 0.15  # longer than SQLite's busy handler ever sleeps


class AnchorPace:
    """Moves one database's anchor, for its capture thread."""

    def __init__(self, anchor: Anchor, capture: Capture) -> None:
        self._anchor = anchor
        self._capture = capture
        self._files = capture.files
        self._place: tuple[object, ...] = ()  # of the WAL, where the anchor was to go
        self._is_there = False  # nobody is in the way of a checkpoint
        self._moved_s = self._placed_s = self._aside_s = 0.0
        self._wait_s = self._patience_s = MOVE_EVERY_S
        self.checkpoint_runs = False

    def follow(self, *, busy: bool = False) -> bool:
        """Move the anchor to the newest state if that is due; True when it is there. Called after every capture.
        `busy`: commits outrun the captures; a checkpoint that waits would stop them."""
        # Before nBackfill is read: so what a checkpoint that has ended has copied is seen.
        self.checkpoint_runs = is_locked(self._files.shm_fd, LOCK_CHECKPOINT)
        place = self._capture.salt, self._capture.frame, self._all_copied
        now = time.monotonic()
        is_new = place != self._place
        if is_new:
            self._is_there, self._wait_s, self._patience_s = False, MOVE_EVERY_S, MOVE_EVERY_S
        elif self._anchor.is_aside:
            if self.checkpoint_runs and now - self._aside_s < ASIDE_S:
                return True
        elif self._is_waited_for(now) and self._anchor.stand_aside(self._files):
            self._aside_s, self._patience_s = now, ASIDE_S
            return True
        elif self._is_there:
            return True
        wait_s = BUSY_MOVE_EVERY_S if busy else self._wait_s
        if now - self._moved_s < wait_s and not self.checkpoint_runs:
            return False
        if is_new or self._anchor.is_aside:
            self._placed_s = now
        self._anchor.move(self._capture.settle)
        self._place, self._moved_s = place, now
        self._is_there = not self._in_the_way()
        self._wait_s = min(self._wait_s * 2, LONGEST_WAIT_S)
        return self._is_there

    @property
    def due_in_s(self) -> float:
        """How long an anchor that is not there yet has to wait."""
        return max(0.0, self._moved_s + self._wait_s - time.monotonic())

    @property
    def longest_pause_s(self) -> float:
        """For how long at most nobody may look at the WAL."""
        return CHECKPOINT_LOOK_S if self.checkpoint_runs else math.inf

    @property
    def _all_copied(self) -> bool:
        """Can a reader do without the WAL, at read lock 0?"""
        return self._files.checkpoint_info().backfill >= self._capture.frame

    def _is_waited_for(self, now_s: float) -> bool:
        """Has a checkpoint that holds up writers got no further since the anchor was placed?"""
        waits = self.checkpoint_runs and now_s - self._placed_s > self._patience_s and not self._all_copied
        return waits and is_locked(self._files.shm_fd, LOCK_WRITE)

    def _in_the_way(self) -> bool:
        """Does any reader, which the anchor may be, have a read mark that a checkpoint has to wait for?"""
        frame = math.inf if self._all_copied else self._capture.frame
        marks = self._files.checkpoint_info().read_marks
        return any(
            marks[index] < frame and is_locked(self._files.shm_fd, LOCK_READ0 + index) for index in range(1, READ_MARKS)
        )
