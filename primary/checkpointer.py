"""When and how the primary checkpoints, so that the WAL stays bounded under endless writing.

The anchor keeps the app's own checkpoints from completing, so the primary has to do it:

* from `PASSIVE_FRAMES` on, a PASSIVE checkpoint under the anchor's read mark. It takes no lock that a writer needs, so no app
  without a busy timeout can fail because of it. It completes when no commit comes in between.
* from `LOCKED_FRAMES` on, with the write lock held for a moment: writers wait as they would for a commit of another
  process. Only the pages of the last few commits are left to copy then, since a PASSIVE one without the lock goes first.

Three traps, measured: SQLite's busy handler starves against a fast writer (try without sleeping, a few milliseconds, then
give way); a checkpoint that meets the app's own answers (1, -1, -1) (try again inside the window); after a complete one the
lock must not be taken again before the WAL has restarted or grown (writers convoy).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import apsw

from primary.anchor import Anchor, connect

PASSIVE_FRAMES = 1000
LOCKED_FRAMES = 4000
RETRY_GROWTH_FRAMES = 500
RETRY_AFTER_S = 0.5
LOCK_WINDOW_S = 0.004
LOCKED_TRIES = 5


class Step(Enum):
    """What to do about the WAL now."""

    NOTHING = "nothing"
    PASSIVE = "passive"
    LOCKED = "locked"


@dataclass(slots=True)
class Policy:
    """Decides from frame counts and a clock; does nothing itself."""

    last_frames: int = 0
    last_s: float = 0.0
    last_complete: bool = False

    def step(self, frames: int, now_s: float) -> Step:
        """`frames` is the WAL's length now. Frames below the last attempt mean that it was restarted since."""
        if frames < self.last_frames:
            self.last_frames, self.last_complete = 0, False
        if frames < PASSIVE_FRAMES:
            return Step.NOTHING
        grown = frames - self.last_frames
        if self.last_frames and grown < RETRY_GROWTH_FRAMES and (not grown or now_s - self.last_s < RETRY_AFTER_S):
            return Step.NOTHING
        return Step.LOCKED if frames >= LOCKED_FRAMES else Step.PASSIVE

    def done(self, frames: int, now_s: float, *, complete: bool) -> None:
        """An attempt was made."""
        self.last_frames, self.last_s, self.last_complete = frames, now_s, complete


class Checkpointer:
    """Carries out what the policy says, with connections of its own: SQLite checkpoints on none that holds a lock."""

    def __init__(self, path: Path, anchor: Anchor, capture: Callable[[], None]) -> None:
        self._connection = connect(path)
        self._connection.set_busy_timeout(0)
        self._locking = connect(path)
        self._locking.set_busy_timeout(0)
        self._anchor = anchor
        self._capture = capture
        self.policy = Policy()

    def run(self, frames: int) -> None:
        """Check the policy and act; called after every capture."""
        step = self.policy.step(frames, time.monotonic())
        if step is Step.NOTHING:
            return
        complete = self._passive()
        if not complete and step is Step.LOCKED:
            complete = self._locked()
        if complete:
            self._anchor.move(self._capture)
        self.policy.done(frames, time.monotonic(), complete=complete)

    def _passive(self) -> bool:
        self._anchor.move(self._capture)
        return self._checkpoint()

    def _locked(self) -> bool:
        if not self._take_write_lock():
            return False
        try:
            self._anchor.move(self._capture)
            complete = any(self._checkpoint() for _ in range(LOCKED_TRIES))
            if complete:
                self._anchor.move(self._capture)
        finally:
            self._locking.execute("ROLLBACK")
        return complete

    def _take_write_lock(self) -> bool:
        give_up_s = time.monotonic() + LOCK_WINDOW_S
        while True:
            try:
                self._locking.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                if time.monotonic() >= give_up_s:
                    return False
            else:
                return True

    def _checkpoint(self) -> bool:
        """PASSIVE; True when every frame of the WAL is in the database now."""
        try:
            frames, copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.BusyError, apsw.LockedError):
            return False
        return frames == copied and frames >= 0

    def close(self) -> None:
        """Let go."""
        self._locking.close()
        self._connection.close()
