"""The pages that a copy has brought so far, in a file that outlives the connection and the process.

`copy.<page size>.partial` in the state folder has each page at its place, as a database has; where none came there is a
hole. It says nothing of a position, and nothing in it is believed but by its bytes: whoever opens it reads every page
and computes its checksum. A page that a power cut tore, or that belongs to an older state or to another database, has
another checksum than the primary's page, and is sent again. A page of zeros counts as one that has not come.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from walcast.checksum import PageChecksums, lock_pgno, page_checksum
from walcast.errors import Unavailable
from walcast.filesystem import pwrite_all
from walcast.permissions import open_or_create
from walcast.shortage import disk_errors
from walcast.statedir import PARTIAL
from walcast_follower.subscribe.message_checks import PAGE_SIZES

READ_BYTES = 1 << 20

Stopping = Callable[[], bool]


def never() -> bool:
    """For work that nobody interrupts."""
    return False


def partial_path(state_dir: Path, page_size: int) -> Path:
    """Where the pages of this size are."""
    return state_dir / f"copy.{page_size}{PARTIAL}"


def partial_sizes(state_dir: Path) -> list[int]:
    """The page sizes of the partial copies that are there, the newest copy first."""
    there = [(size, partial_path(state_dir, size)) for size in PAGE_SIZES]
    found = [(path.stat().st_mtime_ns, size) for size, path in there if path.is_file() and not path.is_symlink()]
    return [size for _, size in sorted(found, reverse=True)]


class PartialCopy:
    """An open one. `checksums` has those of the pages that are there, 0 for the others; `written_bytes` counts what was
    written since it was opened."""

    def __init__(self, state_dir: Path, page_size: int) -> None:
        """Use `open`."""
        self.path = partial_path(state_dir, page_size)
        self.page_size = page_size
        self.checksums = PageChecksums(page_size)
        self.written_bytes = 0
        with disk_errors(self.path):
            self._fd = open_or_create(self.path)

    @classmethod
    def open(cls, state_dir: Path, page_size: int, stopping: Stopping = never) -> Self:
        """What is there, every page read; an empty one where nothing is. Unavailable, also when it is `stopping`."""
        made = cls(state_dir, page_size)
        try:
            with disk_errors(made.path):
                made._scan(stopping)
        except BaseException:
            made.close()
            raise
        return made

    @property
    def is_open(self) -> bool:
        """Can more be written, and are the checksums those of the pages?"""
        return self._fd >= 0

    @property
    def pages(self) -> int:
        """The number of the last page that is there."""
        return self.checksums.commit_pages

    @property
    def size_bytes(self) -> int:
        """What it takes of the disk."""
        return os.fstat(self._fd).st_blocks * 512

    def _scan(self, stopping: Stopping) -> None:
        size, lock, zeros = self.page_size, lock_pgno(self.page_size), bytes(self.page_size)
        sums = np.zeros(os.fstat(self._fd).st_size // size, np.uint64)
        for first, data in self._extents(len(sums), stopping):
            for i in range(len(data) // size):
                page = data[i * size : (i + 1) * size]
                if page != zeros and first + i != lock:
                    sums[first + i - 1] = page_checksum(first + i, page)
        last = int(np.flatnonzero(sums)[-1]) + 1 if sums.any() else 0
        self.checksums = PageChecksums(size, sums[:last])

    def _extents(self, count: int, stopping: Stopping) -> Iterator[tuple[int, bytes]]:
        """What is no hole: the number of the first page, and pages."""
        size, step = self.page_size, max(1, READ_BYTES // self.page_size)
        pgno = 1
        while pgno <= count:
            try:
                data_at = os.lseek(self._fd, (pgno - 1) * size, os.SEEK_DATA)
                hole_at = os.lseek(self._fd, data_at, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # a hole up to the end
                    return
                raise
            pgno, end = max(pgno, data_at // size + 1), min(count, -(-hole_at // size))
            while pgno <= end:
                if stopping():
                    raise Unavailable("stopping")
                data = os.pread(self._fd, min(step, end + 1 - pgno) * size, (pgno - 1) * size)
                yield pgno, data
                pgno += max(1, len(data) // size)

    def write(self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]) -> None:
        """Pages in any order; the last version of each counts. It is closed by whatever goes wrong: then nobody knows
        what was written, and whoever opens it again reads that."""
        numbers = np.asarray(pgnos, np.uint32)
        sums = np.empty(len(numbers), np.uint64)
        try:
            with disk_errors(self.path):
                for i, (pgno, page) in enumerate(zip(numbers.tolist(), pages, strict=True)):
                    pwrite_all(self._fd, page, (pgno - 1) * self.page_size)
                    sums[i] = page_checksum(pgno, page)
            if len(numbers):
                if (numbers[1:] <= numbers[:-1]).any():
                    numbers, index = np.unique(numbers[::-1], return_index=True)
                    sums = sums[::-1][index]
                self.checksums.apply(numbers, sums, max(self.pages, int(numbers[-1])))
            self.written_bytes += len(pages) * self.page_size
        except BaseException:
            self.close()
            raise

    def read(self, pgno: int) -> bytes:
        """A page that is there."""
        with disk_errors(self.path):
            return os.pread(self._fd, self.page_size, (pgno - 1) * self.page_size)

    def cut(self, pages: int) -> None:
        """Keep the first `pages`, and give back the room of the others."""
        with disk_errors(self.path):
            os.ftruncate(self._fd, pages * self.page_size)
        none = np.zeros(0, np.uint32)
        self.checksums.apply(none, none.astype(np.uint64), pages)

    def sync(self) -> None:
        """Make it durable. When that fails it is removed: the kernel may take for written what is not, and would not
        report it again."""
        try:
            with disk_errors(self.path):
                os.fsync(self._fd)
        except BaseException:
            self.discard()
            raise

    def close(self) -> None:
        """It stays, for whoever opens it next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def discard(self) -> None:
        """Remove it."""
        self.close()
        self.path.unlink(missing_ok=True)
