"""A database takes the place of a replica that readers have open: in such an order that a stop at any moment, and a
reader that opens it at any moment, find one of the two whole.

A database file and its WAL have two names, which cannot be replaced in one step. The WAL goes first: a WAL beside the
database of another one would be taken for that one's. So everything must be in the replica's file by then, durably, and
no checkpoint may be half way.

SQLite opens the file, locks it, and then opens the WAL by its name. A reader that had opened the old file and came to
the WAL of the new one would mix the two: so nobody gets that lock any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from follower.applier import Applier
from walcast.checksum import PENDING_BYTE  # whoever opens a database locks it for a moment: sqlite.org/lockingv3.html
from walcast.errors import Stopped, Unavailable
from walcast.locks import try_lock, unlock
from walcast.shortage import disk_errors
from walcast.walindex import LOCK_CHECKPOINT

SETTLE_S = 0.001  # for who has that lock behind him, and opens the WAL; whoever comes meanwhile waits in vain
TRY_S = 1.0
STEP_S = 0.005

_closed_to_readers: list[int] = []  # never closed: that would give up the lock, and SQLite's locks with it


@contextmanager
def replacing(applier: Applier) -> Iterator[None]:
    """Around the removal of the WAL and the rename. Then the applier is to be retired; if this fails, it goes on.
    Unavailable when a checkpoint or a reader that is about to open the replica does not end."""
    files = applier.files
    applier.checkpoint()
    with disk_errors(applier.path):
        files.sync()
    fd = os.open(applier.path, os.O_RDWR | os.O_CLOEXEC)
    _closed_to_readers.append(fd)
    if not os.path.sameopenfile(fd, files.db_fd):
        raise Stopped(f"{applier.path} was replaced while it was a replica")
    try:
        _lock(files.shm_fd, LOCK_CHECKPOINT, f"{applier.path}: a checkpoint does not end")
        _lock(fd, PENDING_BYTE, f"{applier.path}: a reader that opens it does not end")
        time.sleep(SETTLE_S)
        yield
    except BaseException:
        unlock(fd, PENDING_BYTE)
        unlock(files.shm_fd, LOCK_CHECKPOINT)
        raise


def _lock(fd: int, byte: int, otherwise: str) -> None:
    give_up_s = time.monotonic() + TRY_S
    while not try_lock(fd, byte):
        if time.monotonic() >= give_up_s:
            raise Unavailable(otherwise)
        time.sleep(STEP_S)
