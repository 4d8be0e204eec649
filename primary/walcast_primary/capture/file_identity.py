"""Are the files we hold open still the ones at their paths, and are they as SQLite left them?"""

from __future__ import annotations

import os
from pathlib import Path

from walcast.dbfiles import DatabaseFiles
from walcast.errors import Stopped
from walcast.wal import FRAME_HEADER_SIZE, frame_offset

_REMEDY = "the next start goes on with what is there now"
_RESTORE = "put it back, or start with --restore to have it back from its archive"
_PAGE_SIZE_AT = 16  # sqlite.org/fileformat2.html, "The Database Header"
_LARGEST_PAGE = 65536  # written as 1
_VERSIONS_AT = slice(18, 20)
_ROLLBACK_VERSIONS = b"\1\1"


def check_same_files(files: DatabaseFiles) -> None:
    """Stopped when the database, its `-wal` or its `-shm` was removed or replaced: what we read is then not what
    apps read."""
    for suffix, fd in (("", files.db_fd), ("-wal", files.wal_fd), ("-shm", files.shm_fd)):
        name = f"{files.path}{suffix}"
        try:
            there = Path(name).stat()
        except FileNotFoundError:
            remedy = _REMEDY if suffix else _RESTORE
            raise Stopped(f"{name} was removed while it was being replicated; {remedy}") from None
        mine = os.fstat(fd)
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            remedy = _REMEDY if suffix else f"{beside_wal(files.path)}, and start again"
            raise Stopped(f"{name} was replaced while it was being replicated; {remedy}")


def beside_wal(path: Path) -> str:
    """What to do about the WAL of another database beside the one at `path`."""
    return f"close what has it open, remove {path}-wal and {path}-shm, which are of the database before, if there"


def check_wal(files: DatabaseFiles, frame: int, salt: tuple[int, int], page_size: int) -> None:
    """Stopped when the frame is not in the `-wal` any more though the WAL did not begin anew: SQLite says so in the
    wal-index before it writes, so that is read last."""
    if not frame:
        return
    head = os.pread(files.wal_fd, FRAME_HEADER_SIZE, frame_offset(frame, page_size))
    if head[8:16] == salt[0].to_bytes(4, "big") + salt[1].to_bytes(4, "big"):
        return
    if head[8:] == bytes(16):  # see `walcast_primary.capture.broken_chain`
        return
    header = files.index_header()
    if header is not None and header.salt == salt and header.mx_frame >= frame:
        raise Stopped(f"{files.path}-wal was overwritten while it was being replicated; {_REMEDY}")


def check_wal_mode(path: Path, page_one: bytes | memoryview) -> None:
    """NotInWalMode when a database was copied over this one that is in another mode. SQLite changes the mode only while
    nobody else has the database open."""
    if bytes(page_one[_VERSIONS_AT]) == _ROLLBACK_VERSIONS:
        raise NotInWalMode(
            f"{path} was overwritten by a database that is not in WAL mode, while it was being replicated; "
            f"{beside_wal(path)}, and start again"
        )


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


class NotInWalMode(Stopped):
    """The database file is one of another journal mode now."""


class Truncated(Stopped):
    """The database file is shorter than every commit up to now: `size` bytes, where it may not have less than
    `smallest`. `archive`: its URL, for the advice."""

    def __init__(self, path: Path, was: int, size: int, smallest: int, archive: str = "") -> None:
        super().__init__(
            f"{path} was truncated from {was} to {size} bytes while it was being replicated; stop the app, restore the "
            f"database (walcast restore {archive or 'ARCHIVE_URL'} -o {path} --force), and start again"
        )
        self.path = path
        self.was = was
        self.size = size
        self.smallest = smallest

    def knowing(self, archive: str) -> Truncated:
        """The same with the archive's URL."""
        return Truncated(self.path, self.was, self.size, self.smallest, archive)


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
