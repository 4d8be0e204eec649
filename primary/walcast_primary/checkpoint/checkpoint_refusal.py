"""Apps' checkpoints are answered busy while the anchor cannot move for long.

A RESTART or TRUNCATE checkpoint that has to wait for the anchor holds the write lock for as long as its busy timeout,
so no app could write meanwhile. One that does not get the checkpoint lock answers SQLITE_BUSY at once, without its busy
handler, and nobody waits. The WAL could not have been restarted anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from walcast.dbfiles import DatabaseFiles
from walcast.locks import try_lock, unlock
from walcast.walindex import LOCK_CHECKPOINT


def refuse_checkpoints(files: DatabaseFiles) -> None:
    """From now on, unless one runs. A connection that must recover the wal-index needs the lock, too."""
    try_lock(files.shm_fd, LOCK_CHECKPOINT)


def allow_checkpoints(files: DatabaseFiles) -> None:
    """The other way round."""
    unlock(files.shm_fd, LOCK_CHECKPOINT)


@contextmanager
def checkpoints_refused(files: DatabaseFiles) -> Iterator[None]:
    """While all pages are read, for example."""
    refuse_checkpoints(files)
    try:
        yield
    finally:
        allow_checkpoints(files)
