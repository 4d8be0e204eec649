"""A database takes the place of a replica that readers have open: in such an order that a stop at any moment, and a
reader that opens it at any moment, find one of the two whole.

A database file and its WAL have two names, which cannot be replaced in one step. The WAL goes first: a WAL beside the
database of another one would be taken for that one's. So everything must be in the replica's file by then, durably, and
no checkpoint may be half way. Where a reader keeps the newest commits from being copied to the file, and does not end
for long, the file alone has the state before them.

SQLite opens the file, locks it, and then opens the WAL by its name. A reader that had opened the old file and came to
the WAL of the new one would mix the two: so nobody gets that lock any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from walcast.checksum import PENDING_BYTE  # whoever opens a database locks it for a moment: sqlite.org/lockingv3.html
from walcast.errors import Stopped, Unavailable
from walcast.locks import try_lock, unlock
from walcast.shortage import disk_errors
from walcast.walindex import LOCK_CHECKPOINT
from walcast_follower.apply.applier import Applier

SETTLE_S = 0.001  # for who has that lock behind him, and opens the WAL; whoever comes meanwhile waits in vain
TRY_S = 1.0
STEP_S = 0.005

_closed_to_readers: list[int] = []  # never closed: that would give up the lock, and SQLite's locks with it


@contextmanager
def replacing(applier: Applier) -> Iterator[None]:
    """Around the removal of the WAL and the rename. Then the applier is to be retired; if this fails, it goes on.
    Unavailable when a checkpoint or a reader that is about to open the replica does not end. Stopped when it failed
    between the two: nobody would see what is applied from then on. After the rename the applier is to be retired though
    something failed (`was_replaced`)."""
    files = applier.files
    fd = _opened(applier)
    try:
        _copy_back(applier)
        with disk_errors(applier.path):
            files.sync()  # also what somebody else's checkpoint has copied
        _lock(fd, PENDING_BYTE, f"{applier.path}: a reader has been opening it for too long; trying again")
        time.sleep(SETTLE_S)
        yield
    except BaseException as error:
        if was_replaced(applier):
            raise  # nobody may open the old one any more
        if not _has(f"{applier.path}-wal", files.wal_fd):
            raise Stopped(f"{applier.path}: the replica could not be replaced: {error}; start again") from error
        unlock(fd, PENDING_BYTE)
        unlock(files.shm_fd, LOCK_CHECKPOINT)
        raise


def was_replaced(applier: Applier) -> bool:
    """Is there another file at the path of the replica by now?"""
    return not _has(str(applier.path), applier.files.db_fd)


def _has(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))  # noqa: PTH116 - as the descriptor
    except FileNotFoundError:
        return False


def _opened(applier: Applier) -> int:
    """A descriptor of the replica's file to lock it by: the same one each time it is tried."""
    for fd in _closed_to_readers:
        if os.path.sameopenfile(fd, applier.files.db_fd):
            break
    else:
        fd = os.open(applier.path, os.O_RDWR | os.O_CLOEXEC)
        _closed_to_readers.append(fd)
    if not os.path.sameopenfile(fd, applier.files.db_fd) or was_replaced(applier):
        raise Stopped(f"{applier.path} was replaced while it was a replica; start again")
    return fd


def _copy_back(applier: Applier) -> None:
    """Have everything in the file, as far as readers let it be within TRY_S, and the checkpoint lock."""
    give_up_s = time.monotonic() + TRY_S
    while True:
        applier.checkpoint()
        _lock(
            applier.files.shm_fd,
            LOCK_CHECKPOINT,
            f"{applier.path}: another process has been checkpointing it for too long; trying again",
        )
        if applier.backfilled_frames >= applier.wal_frames or time.monotonic() >= give_up_s:
            return
        unlock(applier.files.shm_fd, LOCK_CHECKPOINT)
        time.sleep(STEP_S)


def _lock(fd: int, byte: int, otherwise: str) -> None:
    give_up_s = time.monotonic() + TRY_S
    while not try_lock(fd, byte):
        if time.monotonic() >= give_up_s:
            raise Unavailable(otherwise)
        time.sleep(STEP_S)
