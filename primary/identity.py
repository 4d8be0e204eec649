"""Are the files we hold open still the ones at their paths, and are they as SQLite left them?"""

from __future__ import annotations

import os

from walcast.dbfiles import DatabaseFiles
from walcast.errors import Stopped


def check_same_files(files: DatabaseFiles) -> None:
    """Stopped when the database, its `-wal` or its `-shm` was removed or replaced: what we read is then not what
    apps read."""
    for suffix, fd in (("", files.db_fd), ("-wal", files.wal_fd), ("-shm", files.shm_fd)):
        name = f"{files.path}{suffix}"
        try:
            there = os.stat(name)
        except FileNotFoundError:
            raise Stopped(f"{name} was removed while it was being replicated") from None
        mine = os.fstat(fd)
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise Stopped(f"{name} was replaced while it was being replicated")


class SizeWatch:
    """Notices a database file that somebody truncated: SQLite shrinks it only in a checkpoint, to the commit size."""

    def __init__(self, files: DatabaseFiles) -> None:
        self._files = files
        self._size = os.fstat(files.db_fd).st_size

    def check(self) -> None:
        """Stopped when the file shrank to a size that no checkpoint gives it."""
        size = os.fstat(self._files.db_fd).st_size
        if size < self._size:
            header = self._files.index_header()
            if header is None:
                return
            if size != header.commit_pages * header.page_size:
                raise Stopped(f"{self._files.path} was truncated from {self._size} to {size} bytes under us")
        self._size = size
