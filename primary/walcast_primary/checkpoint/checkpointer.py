"""When and how the primary checkpoints, so that the WAL stays bounded under endless writing.

The anchor keeps the app's own checkpoints from completing, so the primary has to do it:

* from `PASSIVE_FRAMES` on, a PASSIVE checkpoint under the anchor's read mark. It takes no lock that a writer needs, so
  no app without a busy timeout can fail because of it. It completes when no commit comes in between.
* when commits come faster than we look, or from `LOCKED_FRAMES` on, another with the write lock held for a moment:
  writers wait as they would for a commit of another process. Only the last few commits are left to copy then.

The first bound is well below SQLite's own 1,000: beyond that an app tries a checkpoint with every commit, which under
our anchor cannot complete and costs more than the commit. The lock is held as short as can be, since SQLite's busy
handler sleeps 1, 2, 5, 10 … ms: a writer that meets 4 ms of ours loses 8.

The WAL restarts with the next commit when everything is copied and the anchor is at read lock 0. The write lock is
taken as an open-file-description lock on its byte: SQLite's own way, BEGIN IMMEDIATE, would hold a read mark beyond
the write lock, and a writer that comes in between cannot restart the WAL.

Traps, measured: SQLite's busy handler starves against a fast writer (try without sleeping, a few milliseconds, then
give way); a checkpoint that meets the app's own answers (1, -1, -1) (try again inside the window); after a complete
one the lock must not be taken again before the WAL has restarted or grown (writers convoy); PASSIVE ones that a fast
writer outruns cost it fsyncs (wait before the next one).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import apsw

from walcast.dbfiles import DatabaseFiles
from walcast.locks import try_lock, unlock
from walcast.walindex import LOCK_WRITE
from walcast_primary.capture.anchor import Anchor, connect

PASSIVE_FRAMES = 400
PASSIVE_MOST_BYTES = 8 << 20  # for large pages
LOCKED_FRAMES = 4000
LOCKED_MOST_BYTES = 32 << 20
PASSIVE_AGAIN_S = 0.05
LOCK_WINDOW_S = 0.004
CHECKPOINT_WINDOW_S = 0.01
CHECKPOINT_STEP_S = 0.0002
CUT_BYTES = 4 << 20
GIVE_BACK_EVERY_S = 0.25


class Step(Enum):
    """What to do about the WAL now."""

    NOTHING = "nothing"
    PASSIVE = "passive"
    LOCKED = "locked"


@dataclass(slots=True)
class Policy:
    """Decides from the WAL's length and a clock; does nothing itself."""

    page_size: int
    last_frames: int = 0
    last_s: float = 0.0

    def step(self, frames: int, now_s: float, *, busy: bool = False) -> Step:
        """`frames` is the part of the WAL in use. Less than at the last attempt means that it restarted since."""
        if frames < self.last_frames:
            self.last_frames = 0
        passive = min(PASSIVE_FRAMES, PASSIVE_MOST_BYTES // self.page_size)
        locked = min(LOCKED_FRAMES, LOCKED_MOST_BYTES // self.page_size)
        if frames < passive or frames == self.last_frames:
            return Step.NOTHING
        if (busy or frames >= locked) and frames - self.last_frames >= passive // 4:
            return Step.LOCKED
        return Step.PASSIVE if not self.last_frames or now_s - self.last_s >= PASSIVE_AGAIN_S else Step.NOTHING

    def done(self, frames: int, now_s: float) -> None:
        """An attempt was made."""
        self.last_frames, self.last_s = frames, now_s


class Checkpointer:
    """Carries out what the policy says. `capture` must log every committed frame."""

    def __init__(self, files: DatabaseFiles, page_size: int, anchor: Anchor, capture: Callable[[], object]) -> None:
        self._files = files
        self._connection = connect(files.path)
        self._connection.set_busy_timeout(0)
        self._anchor = anchor
        self._capture = capture
        self._gave_back_s = 0.0
        self.policy = Policy(page_size)

    def run(self, frames: int, *, busy: bool = False) -> None:
        """Look at the WAL, `frames` long, and act; called after every capture. `busy`: commits outrun our looking."""
        step = self.policy.step(frames, time.monotonic(), busy=busy)
        if step is Step.NOTHING:
            return
        if not self._passive() and step is Step.LOCKED:
            self._locked()
        self.policy.done(frames, time.monotonic())

    def give_back(self, frames: int) -> None:
        """The disk is full: have the WAL, `frames` of it captured, begin anew, and cut its file if it is long. A
        checkpoint copies what the database file has room for already; it changes nothing when a reader is in the way.

        Cutting is a restart like any other: SQLite does it only when every frame is copied back, none of which the
        anchor lets happen before it was captured.
        """
        now = time.monotonic()
        if frames == 0 or now - self._gave_back_s < GIVE_BACK_EVERY_S:
            return
        self._gave_back_s = now
        if (self._passive() or self._locked()) and os.fstat(self._files.wal_fd).st_size > CUT_BYTES:
            self._checkpoint(apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self.policy.done(frames, time.monotonic())

    def renew(self, frames: int) -> None:
        """Have the WAL, `frames` of it captured, begin anew with the next commit. A reader may be in the way: then the
        next call tries again."""
        now = time.monotonic()
        if frames and now - self._gave_back_s >= GIVE_BACK_EVERY_S:
            self._gave_back_s = now
            if not self._passive():
                self._locked()
            self.policy.done(frames, time.monotonic())

    def _passive(self) -> bool:
        """Without the write lock; True when the anchor is at read lock 0, so that the next commit restarts the WAL."""
        self._anchor.move(self._capture)
        return self._checkpoint() and self._leave()

    def _locked(self) -> bool:
        if not self._take_write_lock():
            return False
        try:
            self._anchor.move(self._capture)
            give_up_s = time.monotonic() + CHECKPOINT_WINDOW_S
            while not self._checkpoint():  # the app is in one of its own
                if time.monotonic() >= give_up_s:
                    return False
                time.sleep(CHECKPOINT_STEP_S)
            return self._leave()
        finally:
            unlock(self._files.shm_fd, LOCK_WRITE)

    def _leave(self) -> bool:
        """Move the anchor out of the WAL; False when a commit came first, and it is in it again."""
        self._anchor.move(self._capture)
        header = self._files.index_header()
        return header is not None and self._files.checkpoint_info().backfill >= header.mx_frame

    def _take_write_lock(self) -> bool:
        give_up_s = time.monotonic() + LOCK_WINDOW_S
        while not try_lock(self._files.shm_fd, LOCK_WRITE):
            if time.monotonic() >= give_up_s:
                return False
        return True

    def _checkpoint(self, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> bool:
        """True when every frame of the WAL is in the database now."""
        try:
            frames, copied = self._connection.wal_checkpoint(mode=mode)
        except (apsw.BusyError, apsw.LockedError):
            return False
        return frames == copied and frames >= 0

    def close(self) -> None:
        """Let go."""
        self._connection.close()
