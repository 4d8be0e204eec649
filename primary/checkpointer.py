"""When and how the primary checkpoints, so that the WAL stays bounded under endless writing.

The anchor keeps the app's own checkpoints from completing, so the primary has to do it:

* from `PASSIVE_BYTES` on, a PASSIVE checkpoint under the anchor's read mark. It takes no lock that a writer needs, so
  no app without a busy timeout can fail because of it. It completes when no commit comes in between.
* from `LOCKED_BYTES` on, or when commits come faster than we look, with the write lock held for a moment: writers wait
  as they would for a commit of another process. Of a long WAL only the last few commits are left to copy then, since a
  PASSIVE one without the lock goes first.

The WAL restarts with the next commit when everything is copied and the anchor is at read lock 0. The write lock is
taken as an open-file-description lock on its byte: SQLite's own way, BEGIN IMMEDIATE, would hold a read mark beyond
the write lock, and a writer that comes in between cannot restart the WAL.

Traps, measured: SQLite's busy handler starves against a fast writer (try without sleeping, a few milliseconds, then
give way); a checkpoint that meets the app's own answers (1, -1, -1) (try again inside the window); after a complete
one the lock must not be taken again before the WAL has restarted or grown (writers convoy); PASSIVE ones that a fast
writer outruns cost it fsyncs (wait before the next one).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import apsw

from primary.anchor import Anchor, connect
from walcast.dbfiles import DatabaseFiles
from walcast.locks import try_lock, unlock
from walcast.wal import frame_offset
from walcast.walindex import LOCK_WRITE

PASSIVE_BYTES = 3 << 20  # below the 1,000 pages at which apps begin to try with every commit
LOCKED_BYTES = 16 << 20
BACKLOG_BYTES = 8 << 20
PASSIVE_AGAIN_S = 0.05
LOCK_WINDOW_S = 0.004
CHECKPOINT_WINDOW_S = 0.01
CHECKPOINT_STEP_S = 0.0002


class Step(Enum):
    """What to do about the WAL now."""

    NOTHING = "nothing"
    PASSIVE = "passive"
    LOCKED = "locked"


@dataclass(slots=True)
class Policy:
    """Decides from the WAL's size and a clock; does nothing itself."""

    last_bytes: int = 0
    last_s: float = 0.0

    def step(self, wal_bytes: int, now_s: float, *, busy: bool = False) -> Step:
        """`wal_bytes` is the part of the WAL in use. Less than at the last attempt means that it restarted since."""
        if wal_bytes < self.last_bytes:
            self.last_bytes = 0
        if wal_bytes < PASSIVE_BYTES or wal_bytes == self.last_bytes:
            return Step.NOTHING
        if (busy or wal_bytes >= LOCKED_BYTES) and wal_bytes - self.last_bytes >= PASSIVE_BYTES // 4:
            return Step.LOCKED
        return Step.PASSIVE if not self.last_bytes or now_s - self.last_s >= PASSIVE_AGAIN_S else Step.NOTHING

    def done(self, wal_bytes: int, now_s: float) -> None:
        """An attempt was made."""
        self.last_bytes, self.last_s = wal_bytes, now_s


class Checkpointer:
    """Carries out what the policy says. `capture` must log every committed frame."""

    def __init__(self, files: DatabaseFiles, anchor: Anchor, capture: Callable[[], object]) -> None:
        self._files = files
        self._connection = connect(files.path)
        self._connection.set_busy_timeout(0)
        self._anchor = anchor
        self._capture = capture
        self.policy = Policy()

    def run(self, frames: int, page_size: int, *, busy: bool = False) -> None:
        """Look at the WAL, `frames` long, and act; called after every capture. `busy`: commits outrun our looking."""
        wal_bytes = frame_offset(frames + 1, page_size)
        step = self.policy.step(wal_bytes, time.monotonic(), busy=busy)
        if step is Step.NOTHING:
            return
        done = (step is Step.PASSIVE or wal_bytes >= BACKLOG_BYTES) and self._passive()
        if not done and step is Step.LOCKED:
            self._locked()
        self.policy.done(wal_bytes, time.monotonic())

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

    def _checkpoint(self) -> bool:
        """PASSIVE; True when every frame of the WAL is in the database now."""
        try:
            frames, copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except (apsw.BusyError, apsw.LockedError):
            return False
        return frames == copied and frames >= 0

    def close(self) -> None:
        """Let go."""
        self._connection.close()
