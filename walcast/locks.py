"""Open-file-description locks on byte ranges (fcntl(2), F_OFD_SETLK).

SQLite locks bytes of the database and of `-shm` with POSIX locks. Those belong to the process: any close of any
descriptor of the file drops them all. A lock taken here belongs to the open file instead: it conflicts with SQLite's
locks, also with those of SQLite in this very process, and lasts until it is unlocked, the file is closed, or the
process dies.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

# struct flock: l_type, l_whence, l_start, l_len, l_pid; the kernel wants l_pid 0 for these locks.
_FLOCK = struct.Struct("@hhqqi4x")
_BUSY = (errno.EAGAIN, errno.EACCES)


def _set(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def try_lock(fd: int, start: int, length: int = 1, exclusive: bool = True) -> bool:
    """Lock `length` bytes from `start`, all or none, without waiting; False while another holds a conflicting lock.

    An exclusive lock needs a descriptor open for writing. Other errors of fcntl(2) are raised as OSError.
    """
    try:
        _set(fd, fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK, start, length)
    except OSError as error:
        if error.errno in _BUSY:
            return False
        raise
    return True


def is_locked(fd: int, start: int, length: int = 1) -> bool:
    """Does another open file, or process, hold a lock on any of these bytes? Asks only."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def holder(fd: int, byte: int) -> int | None:
    """The process that has a lock on this byte, one of them if they share it: 0 if it is of another PID namespace, -1
    if the lock is an open file's. None while nobody has."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    kind, _, _, _, pid = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else pid


def unlock(fd: int, start: int, length: int = 1) -> None:
    """Give up what this open file holds of these bytes; nothing happens where it holds nothing."""
    _set(fd, fcntl.F_UNLCK, start, length)
