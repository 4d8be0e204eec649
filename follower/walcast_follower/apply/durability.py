"""Makes what an applier has applied durable, and believes no sync that comes after a failed one.

**Journal and WAL are enough.** What is not in the WAL any more is in the database file and was synced there before
the WAL began again: SQLite's checkpoint syncs the WAL, copies, syncs the database file once it has copied all, and only
then says that everything is backfilled (wal.c, `walCheckpoint`), with any `synchronous` but OFF. A reader that makes a
checkpoint may be a connection with OFF, so the file is synced here, too, before a WAL may begin again; it is clean then
as a rule. The journal comes first, so that what is durable in the WAL has a durable name.

**A sync that fails.** Linux takes pages that it could not write for clean, and reports that once to each open
descriptor: the next sync of the same file succeeds although they are not on disk. So from a failed sync on nothing is
confirmed and the WAL does not begin again, until all that may be missing was written anew: the frames of the WAL to
their own places (their checksums chain to the one in the wal-index, so that what the kernel has read back from the disk
meanwhile is found out) and the pages of the database file by a checkpoint from the first frame on. The journal looks
after itself: it writes a new file. While it cannot, nothing is confirmed either, but the WAL may begin again: that is
what gives a full disk room.

A process that ends in between leaves the file `unsynced` in the state folder, and the next one begins like that. It is
not synced itself: it is about the kernel's memory, and lives exactly as long as that.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from walcast.dbfiles import DatabaseFiles
from walcast.errors import Unavailable
from walcast.filesystem import fsync_directory
from walcast.permissions import OWNER_ONLY
from walcast.wal_writer import WalWriter
from walcast_follower.apply.position_journal import Journal

log = logging.getLogger("walcast.follower")

MARKER = "unsynced"
CHECKPOINT_LOCK_S = 1.0
CHECKPOINT_STEP_S = 0.01


class Durability:
    """Of one applier's files. Any thread may sync; `restart` is for the WAL's owner."""

    def __init__(self, files: DatabaseFiles, wal: WalWriter, journal: Journal, state_dir: Path) -> None:
        self._files = files
        self._wal = wal
        self._journal = journal
        self._marker = state_dir / MARKER
        self._syncing = threading.Lock()
        self._restarting = threading.Lock()  # a restart of the WAL against its being written anew
        self._named = False  # the directory has the WAL's name on disk
        self._backfilled: tuple[tuple[int, int], int] | None = None  # salts and frames of a WAL, all in the synced file
        self._doubtful = self._marked = self._marker.exists()
        if self._doubtful:
            journal.doubt()

    @property
    def doubtful(self) -> bool:
        """Did a sync fail, and was not everything written anew since?"""
        return self._doubtful

    def sync(self) -> None:
        """All that was applied when this was called is durable. OSError or Unavailable when it is not; Corrupt when it
        is lost: the WAL is not what was written to it."""
        with self._syncing:
            if self._doubtful:
                self._write_anew()
            self.sync_journal()
            with self._doubting():
                os.fdatasync(self._files.wal_fd)
                if not self._named:
                    fsync_directory(self._files.path.parent)
                    self._named = True
            if self._marked:
                self._doubtful = self._marked = False
                self._marker.unlink(missing_ok=True)
                log.warning("synced again: everything was written anew", extra={"database": str(self._files.path)})

    def sync_journal(self) -> None:
        """As `sync`, for the names alone."""
        try:
            self._journal.sync()
        except OSError as error:
            self._mark(error)
            raise

    def sync_database(self, salt: tuple[int, int], frames: int) -> None:
        """The database file, which has all `frames` of the WAL with these salts."""
        with self._doubting():
            os.fdatasync(self._files.db_fd)
        self._backfilled = salt, frames

    def restart(self, *, truncate: bool = False) -> bool:
        """Begin the WAL again, if all of it is in the database file, durably, and no reader uses it. `truncate`: give
        its room on the disk back."""
        wal, header = self._wal, self._wal.header
        if self._doubtful or not header.mx_frame or wal.backfilled_frames != header.mx_frame:
            return False
        if not self._restarting.acquire(blocking=False):
            return False
        try:
            if self._backfilled != (header.salt, header.mx_frame):
                self.sync_database(header.salt, header.mx_frame)
            return not self._doubtful and wal.restart(truncate=truncate)
        except OSError:
            return False
        finally:
            self._restarting.release()

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._doubtful = True
            self._mark(error)
            self._forget_backfill()  # also for a checkpoint that comes before the next sync, at the latest at the close
            raise

    def _mark(self, error: OSError) -> None:
        if not self._marked:
            facts = {"database": str(self._files.path), "error": error.strerror}
            log.error("cannot sync: nothing is confirmed as durable until it was written anew", extra=facts)
        self._marked = True
        with suppress(OSError):
            self._marker.touch(OWNER_ONLY)

    def _write_anew(self) -> None:
        with self._restarting:
            self._wal.rewrite()
            until_s = time.monotonic() + CHECKPOINT_LOCK_S
            while not self._forget_backfill():
                if time.monotonic() > until_s:
                    raise Unavailable(f"{self._files.path}: another process keeps making a checkpoint")
                time.sleep(CHECKPOINT_STEP_S)

    def _forget_backfill(self) -> bool:
        """Have the next checkpoint copy every page of the WAL again; False while one is running."""
        self._backfilled = None
        return self._wal.forget_backfill()
