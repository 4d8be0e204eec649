"""Are the files we hold open still the ones at their paths, and are they as SQLite left them?"""

from __future__ import annotations

import os
from pathlib import Path

from walcast.dbfiles import DatabaseFiles
from walcast.errors import Stopped

_REMEDY = "the next start goes on with what is there now"
_PAGE_SIZE_AT = 16  # sqlite.org/fileformat2.html, "The Database Header"
_LARGEST_PAGE = 65536  # written as 1


def check_same_files(files: DatabaseFiles) -> None:
    """Stopped when the database, its `-wal` or its `-shm` was removed or replaced: what we read is then not what
    apps read."""
    for suffix, fd in (("", files.db_fd), ("-wal", files.wal_fd), ("-shm", files.shm_fd)):
        name = f"{files.path}{suffix}"
        try:
            there = Path(name).stat()
        except FileNotFoundError:
            raise Stopped(f"{name} was removed while it was being replicated") from None
        mine = os.fstat(fd)
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise Stopped(f"{name} was replaced while it was being replicated; {_REMEDY}")


def check_page_size(files: DatabaseFiles, page_size: int) -> None:
    """OtherPages when a database with pages of another size was copied over this one. SQLite changes the size only
    outside of WAL mode, for which nobody else may have the database open."""
    stored = int.from_bytes(os.pread(files.db_fd, 2, _PAGE_SIZE_AT), "big")
    size = _LARGEST_PAGE if stored == 1 else stored
    if size not in (0, page_size):
        raise OtherPages(files.path, page_size, size)


class OtherPages(Stopped):
    """The database file has pages of `size` bytes now, and had `before`."""

    def __init__(self, path: Path, before: int, size: int) -> None:
        super().__init__(
            f"{path} was overwritten by a database with pages of {size} bytes, not {before}, while it was being "
            f"replicated; {_REMEDY}"
        )
        self.before = before
        self.size = size


class Truncated(Stopped):
    """The database file is shorter than every commit up to now: `size` bytes, where it may not have less than
    `smallest`."""

    def __init__(self, path: Path, was: int, size: int, smallest: int) -> None:
        super().__init__(f"{path} was truncated from {was} to {size} bytes under us")
        self.size = size
        self.smallest = smallest


class SizeWatch:
    """Notices a database file that somebody truncated: SQLite shrinks it only in a checkpoint, to what was the commit
    size at that moment, so never below the smallest commit since the last look."""

    def __init__(self, files: DatabaseFiles) -> None:
        self._files = files
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes that the file has now."""
        return os.fstat(self._files.db_fd).st_size

    def check(self, size: int, smallest: int) -> None:
        """Truncated when the file shrank to `size`, below the commit size of every commit up to now, `smallest`
        bytes."""
        if size < self._size and size < smallest:
            raise Truncated(self._files.path, self._size, size, smallest)
        self._size = size
