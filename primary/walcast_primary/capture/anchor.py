"""The anchor: a read transaction of ours that is open at every moment, so that no frame is overwritten unseen.

Invariant: everything committed while the anchor is held can still be read. A read mark other than zero keeps the WAL
from being restarted at all. Read lock 0, which SQLite gives when the WAL is copied back completely, lets a writer
restart it once; but no checkpoint can copy back under it, so what is written after that restart stays too. Therefore
the salts may change under the anchor only at a moment when all frames before were captured.

Source: sqlite.org/walformat.html, "WAL read locks"; `walTryBeginRead`, `walRestartLog` in wal.c.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import apsw

from walcast.dbfiles import DatabaseFiles, begin_reading
from walcast.locks import is_locked, try_lock, unlock
from walcast.walindex import LOCK_READ0, READ_MARK_UNUSED, READ_MARKS

BUSY_TIMEOUT_MS = 100


def connect(path: Path) -> apsw.Connection:
    """A connection of the primary: it never creates a file and never checkpoints on its own."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    prepare(connection, BUSY_TIMEOUT_MS)
    return connection


def prepare(connection: apsw.Connection, busy_timeout_ms: int) -> None:
    """Make it such a connection. Reads the schema, so it raises for what is locked or no database.

    Nor does its close checkpoint and remove the WAL, as SQLite's last one does: what the WAL says of the database is
    needed until log and database were brought together (`checkpoint_on_close`).

    It reads pages also where a power cut has torn the schema, or left the file shorter than its header says, as
    `synchronous=OFF` allows: the log may have what is missing. We never write through it.
    """
    connection.set_busy_timeout(busy_timeout_ms)
    connection.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
    connection.execute("PRAGMA wal_autocheckpoint=0")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)


def checkpoint_on_close(connection: apsw.Connection) -> None:
    """Have its close, if it is the last one, leave nothing in a WAL, as people expect who copy a database file."""
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)


class Anchor:
    """Two connections that take turns in holding a read transaction."""

    def __init__(self, path: Path) -> None:
        self._held = connect(path)
        self._free = connect(path)
        _begin(self._held)
        self.is_held = True
        self._aside: tuple[int, int] | None = None  # descriptor and lock byte

    def let_go(self) -> None:
        """Hold nothing for a while: frames may be overwritten unseen. Nothing happens the second time."""
        if self.is_held:
            self.is_held = False
            _roll_back(self._held)
            self._end_aside()

    def hold(self) -> None:
        """Hold the newest state again, after `let_go`; nobody knows what was committed before."""
        if not self.is_held:
            _begin(self._held)
            self.is_held = True

    def move(self, copy: Callable[[], object]) -> None:
        """Hold the newest state instead of the present one. `copy` must capture every committed frame.

        When `copy` or SQLite fails, the old transaction stays and the error is raised.
        """
        _begin(self._free)
        try:
            copy()
        except BaseException:
            _roll_back(self._free)
            raise
        _roll_back(self._held)
        self._end_aside()
        self._held, self._free = self._free, self._held

    @property
    def is_aside(self) -> bool:
        """Is it a lock alone that holds the frames, see `stand_aside`?"""
        return self._aside is not None

    def stand_aside(self, files: DatabaseFiles) -> bool:
        """Give up the read mark, until the next `move`; False when that cannot be. A lock on any of the marks keeps the
        WAL from being restarted, so one that nobody uses holds the frames, and no checkpoint waits for that one."""
        if self._aside is None:
            byte = _lock_free_mark(files)
            if byte is None:
                return False
            self._aside = files.shm_fd, byte
            _roll_back(self._held)
        return True

    def _end_aside(self) -> None:
        if self._aside is not None:
            unlock(*self._aside)
            self._aside = None

    def close(self) -> None:
        """Let go."""
        self._end_aside()
        self._held.close()
        self._free.close()


def _begin(connection: apsw.Connection) -> None:
    connection.execute("BEGIN")
    try:
        begin_reading(connection)
    except BaseException:
        _roll_back(connection)
        raise


def _lock_free_mark(files: DatabaseFiles) -> int | None:
    """Lock the byte of a read mark that no reader has, preferably of one that says so: no checkpoint waits for that."""
    marks = files.checkpoint_info().read_marks
    for index in sorted(range(1, READ_MARKS), key=lambda index: marks[index] != READ_MARK_UNUSED):
        byte = LOCK_READ0 + index
        if not is_locked(files.shm_fd, byte) and try_lock(files.shm_fd, byte, exclusive=False):
            return byte
    return None


def _roll_back(connection: apsw.Connection) -> None:
    """Where SQLite has not done so itself, as it does when it has no memory."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
