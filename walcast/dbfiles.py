"""The three files of a database, opened once and kept, and consistent reads of its pages.

**Nothing here is closed before this process's SQLite connections on the database are.** POSIX locks, which SQLite
uses, belong to the process: closing any descriptor of the database or of `-shm`, also one that SQLite knows nothing
of, drops all locks that this process's connections hold on that file. Hence `close()` comes after the last
connection's, and a `DatabaseFiles` that is never closed is kept until the process ends: Python's mmap holds a
descriptor of its own, so that even a forgotten object must not be collected.

The database and `-wal` are read with pread and never mapped: another process may truncate them, which for a mapping is
SIGBUS. The wal-index is mapped, as SQLite does: while a connection of this process has it open, nobody truncates it.
"""

from __future__ import annotations

import itertools
import mmap
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import apsw
import numpy as np
from numpy.typing import NDArray

from walcast.checksum import lock_pgno
from walcast.errors import Corrupt, Unavailable
from walcast.filesystem import fsync_directory
from walcast.wal import FRAME_HEADER_SIZE, frame_dtype, frame_offset
from walcast.walindex import (
    BLOCK_SIZE,
    FRAMES_FIRST_BLOCK,
    FRAMES_PER_BLOCK,
    HEADER_SIZE,
    INDEX_HEADER_SIZE,
    CheckpointInfo,
    IndexHeader,
)

_HEADER_TRIES = 20
_HEADER_S = 10.0  # a writer that was interrupted between two writes is scheduled again within this
_HEADER_STEP_S = 0.001

# Every DatabaseFiles that is not closed, so that no garbage collection closes a descriptor (see above).
_open: set[DatabaseFiles] = set()


class DatabaseFiles:
    """The `-wal`, the `-shm` and the database file, kept open.

    SQLite must already have the database open in WAL mode in this process, and must have read from it: that is what
    creates the two other files, and what keeps them from being deleted. `writable` opens `-wal` and `-shm`
    for the replica's WAL writer; the database file itself is never written by walcast.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self.writable = writable
        mode = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        self._blocks: list[mmap.mmap] = []
        self._mapping = threading.Lock()
        # The order matters only for a failure half way: -wal carries no locks, so its close is harmless.
        self.wal_fd = self._open(f"{path}-wal", mode | os.O_NOFOLLOW)  # as SQLite opens both
        self.shm_fd = self._open(
            f"{path}-shm", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        )  # a write lock needs a writable descriptor
        self.db_fd = self._open(str(path), os.O_RDONLY | os.O_CLOEXEC)
        _open.add(self)

    @staticmethod
    def _open(name: str, mode: int) -> int:
        try:
            return os.open(name, mode)
        except FileNotFoundError as error:
            raise Unavailable(f"{name}: not there; is the database in WAL mode?") from error

    def close(self) -> None:
        """Only after this process's last SQLite connection on the database is closed."""
        if self in _open:
            _open.discard(self)
            for block in self._blocks:
                block.close()
            self._blocks.clear()
            for fd in (self.db_fd, self.shm_fd, self.wal_fd):
                os.close(fd)

    def written_ms(self) -> tuple[int, int]:
        """When somebody last wrote to the database and to its `-wal`, as their times tell: milliseconds since the
        epoch."""
        return os.fstat(self.db_fd).st_mtime_ns // 1_000_000, os.fstat(self.wal_fd).st_mtime_ns // 1_000_000

    def sync(self) -> None:
        """Make durable what was written to the database and its `-wal`, by whatever process, and that they are there.
        OSError."""
        os.fdatasync(self.wal_fd)
        os.fsync(self.db_fd)
        fsync_directory(self.path.parent)

    def block(self, index: int) -> mmap.mmap:
        """The wal-index's 32 KiB block `index` (from 0), mapped when first asked for; Corrupt when it is not there."""
        if len(self._blocks) <= index:
            with self._mapping:  # several threads read pages
                while len(self._blocks) <= index:
                    self._map(len(self._blocks))
        return self._blocks[index]

    def _map(self, index: int) -> None:
        offset = index * BLOCK_SIZE
        if os.fstat(self.shm_fd).st_size < offset + BLOCK_SIZE:
            raise Corrupt(f"{self.path}-shm: no block {index}")
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if self.writable else 0)
        self._blocks.append(mmap.mmap(self.shm_fd, BLOCK_SIZE, mmap.MAP_SHARED, prot, offset=offset))

    def extend_index(self, blocks: int) -> None:
        """Make the wal-index at least `blocks` long (writer only), allocated: no SIGBUS on a full disk later."""
        size = os.fstat(self.shm_fd).st_size
        if size < blocks * BLOCK_SIZE:
            os.posix_fallocate(self.shm_fd, size, blocks * BLOCK_SIZE - size)

    def index_header(self) -> IndexHeader | None:
        """What is committed now; None while a writer is between the two copies, or died there: try again later."""
        block = self.block(0)
        for _ in range(_HEADER_TRIES):
            header = IndexHeader.decode(block[: 2 * HEADER_SIZE])
            if header is not None:
                return header
        return None

    def checkpoint_info(self) -> CheckpointInfo:
        """How far the WAL is backfilled, and the readers' marks."""
        return CheckpointInfo.decode(self.block(0)[:INDEX_HEADER_SIZE])

    def frame_pgnos(self, mx_frame: int) -> NDArray[np.uint32]:
        """The page number of each frame 1..mx_frame: a copy, uint32[mx_frame]."""
        pgnos = np.empty(mx_frame, np.uint32)
        done = 0
        while done < mx_frame:
            first = done < FRAMES_FIRST_BLOCK
            index = 0 if first else 1 + (done - FRAMES_FIRST_BLOCK) // FRAMES_PER_BLOCK
            count = min(mx_frame - done, FRAMES_FIRST_BLOCK if first else FRAMES_PER_BLOCK)
            # bytes, not a view: a live view would make the mapping impossible to close.
            offset = INDEX_HEADER_SIZE if first else 0
            pgnos[done : done + count] = np.frombuffer(self.block(index)[offset : offset + 4 * count], np.uint32)
            done += count
        return pgnos

    def read_frames(
        self, first: int, count: int, page_size: int, out: bytearray | NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Frames from `first` (counted from 1) as a record array of `wal.frame_dtype`, in `out` when given.

        Corrupt when the file ends before the last of them.
        """
        size = count * (FRAME_HEADER_SIZE + page_size)
        buffer = memoryview(cast(Any, bytearray(size) if out is None else out)).cast("B")[:size]
        if _read_into(self.wal_fd, buffer, frame_offset(first, page_size)) < size:
            raise Corrupt(f"{self.path}-wal: ends before frame {first + count - 1}")
        return np.frombuffer(buffer, frame_dtype(page_size), count)


def begin_reading(connection: apsw.Connection) -> None:
    """Have SQLite take its read lock, and recover WAL and wal-index where that is due. Of the database only the header
    is looked at, so that pages can be read of one whose schema cannot."""
    connection.execute("PRAGMA schema_version").fetchall()


class PageReader:
    """Pages of one consistent state, read through our own descriptors while a read transaction of `connection` is open.

    `header` is the state: taken from the wal-index *after* SQLite has taken a read lock for us, so it may be newer
    than what SQLite would show on `connection`. A page is its newest frame up to `header.mx_frame`, or else what the
    database file has.

    Why this is right. With a read mark M (a lock of 1 to 4): M <= mx_frame, the WAL cannot restart, and checkpoints
    stop at M, so a page without a frame up to mx_frame is not touched in the database file. With read lock 0 no
    checkpoint may write at all; the WAL may restart once, but then all that was in it is in the database file. What
    would not be right is to look for frames of a WAL that is all backfilled: under lock 0 the next commit overwrites
    them. So when everything is backfilled only the database file is used; `header.mx_frame` still says where the
    state is.
    """

    def __init__(self, files: DatabaseFiles, connection: apsw.Connection) -> None:
        self._files = files
        self._connection = connection
        self.header: IndexHeader
        self._pgnos: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._frames: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._backfill = 0

    def __enter__(self) -> Self:
        try:
            self._connection.execute("BEGIN")
            begin_reading(self._connection)
        except apsw.BusyError as error:
            self._rollback()
            raise Unavailable(f"{self._files.path}: busy") from error
        except (apsw.CorruptError, apsw.NotADBError) as error:
            self._rollback()
            raise Corrupt(f"{self._files.path}: {error}") from error
        except BaseException:  # without memory, for example: the next reader must be able to begin
            self._rollback()
            raise
        try:
            self.header, used_frames = self._state()
            self._index_frames(used_frames)
        except BaseException:
            self._rollback()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._rollback()

    def _rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def _state(self) -> tuple[IndexHeader, int]:
        """The state, and how many frames of the WAL belong to it and must be looked at."""
        header, backfill = self._at_rest()
        if header.page_size == 0:  # recovered from an empty WAL: the header does not know
            header = replace(header, page_size=int(self._connection.pragma("page_size")))
        if header.commit_pages == 0:  # as SQLite then does: no commit in this WAL, the file's size counts
            size = os.fstat(self._files.db_fd).st_size
            header = replace(header, commit_pages=-(-size // header.page_size))
        self._backfill = backfill
        return header, 0 if backfill >= header.mx_frame else header.mx_frame

    def _at_rest(self) -> tuple[IndexHeader, int]:
        """What is committed, and how many frames of it the database file has.

        A restart of the WAL writes the header first and nBackfill = 0 then: the same header before and after means that
        nBackfill is of this WAL. And no commit came between, of which a checkpoint could know: one that has to stop
        before the last frame of a page leaves out the earlier frames of that page, too.
        """
        give_up_s = time.monotonic() + _HEADER_S
        for tried in itertools.count(1):
            header = self._files.index_header()
            backfill = self._files.checkpoint_info().backfill
            if header is not None and header == self._files.index_header():
                return header, backfill
            if tried >= _HEADER_TRIES:
                if time.monotonic() >= give_up_s:
                    break
                time.sleep(_HEADER_STEP_S)
        raise Unavailable(f"{self._files.path}-shm: the header has not come to rest for {_HEADER_S:.0f} s")

    def _index_frames(self, mx_frame: int) -> None:
        """Every page that has a frame, ascending, and its newest frame."""
        newest_first = self._files.frame_pgnos(mx_frame)[::-1]
        self._pgnos, index = np.unique(newest_first, return_index=True)
        self._frames = (mx_frame - index).astype(np.uint32)

    def read(self, first_pgno: int, count: int) -> memoryview:
        """`count` pages from `first_pgno` in one buffer; the lock page and what a short file lacks are zeros."""
        size = self.header.page_size
        last = first_pgno + count - 1
        if not 1 <= first_pgno <= last <= self.header.commit_pages:
            raise ValueError(f"pages {first_pgno} to {last} of {self.header.commit_pages}")
        buffer = memoryview(bytearray(count * size))
        _read_into(self._files.db_fd, buffer, (first_pgno - 1) * size)
        low, high = np.searchsorted(self._pgnos, (first_pgno, last + 1)).tolist()
        pairs = zip(self._pgnos[low:high].tolist(), self._frames[low:high].tolist(), strict=True)
        for pgno, frame in pairs:
            at = (pgno - first_pgno) * size
            offset = frame_offset(frame, size) + FRAME_HEADER_SIZE
            if _read_into(self._files.wal_fd, buffer[at : at + size], offset) < size:
                raise Corrupt(f"{self._files.path}-wal: ends before frame {frame}")
        if first_pgno <= lock_pgno(size) <= last:
            at = (lock_pgno(size) - first_pgno) * size
            buffer[at : at + size] = bytes(size)
        return buffer

    def versions(self, first_pgno: int, count: int) -> Iterator[tuple[int, memoryview, bool]]:
        """Every version of `count` pages from `first_pgno` that must be the page as it is in this state: its number,
        the bytes, and whether they are hidden.

        A page with a frame that a checkpoint has copied is in the WAL and in the database file; readers go on taking
        the frame until the WAL restarts, so the file's version is hidden. One with a frame that was not copied is in
        the WAL alone: what the file has is of another state. The lock page is left out.
        """
        size = self.header.page_size
        buffer = memoryview(bytearray(count * size))
        _read_into(self._files.db_fd, buffer, (first_pgno - 1) * size)
        low, high = np.searchsorted(self._pgnos, (first_pgno, first_pgno + count)).tolist()
        frames = dict(zip(self._pgnos[low:high].tolist(), self._frames[low:high].tolist(), strict=True))
        for pgno in range(first_pgno, first_pgno + count):
            if pgno == lock_pgno(size):
                continue
            at, frame = (pgno - first_pgno) * size, frames.get(pgno)
            if frame is None or frame <= self._backfill:
                yield pgno, buffer[at : at + size], frame is not None
            if frame is not None:
                page = memoryview(bytearray(size))
                _read_into(self._files.wal_fd, page, frame_offset(frame, size) + FRAME_HEADER_SIZE)
                yield pgno, page, False

    def chunks(self, pages_per_chunk: int = 256) -> Iterator[tuple[int, memoryview]]:
        """The whole database in pieces of up to `pages_per_chunk`: first page number, pages."""
        for first in range(1, self.header.commit_pages + 1, pages_per_chunk):
            yield first, self.read(first, min(pages_per_chunk, self.header.commit_pages + 1 - first))


def _read_into(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; less only at the end of the file. Returns the bytes read."""
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
