"""A replica that is not there yet: pages into a temporary file, renamed to its place when it is whole and verified.

`NewFile` takes transactions as `Applier` does, so that whoever copies need not know which of the two it fills.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from follower.applier import ChecksumMismatch
from follower.journal import Journal
from walcast.checksum import PageChecksums, page_checksum
from walcast.filesystem import fsync_directory, pwrite_all
from walcast.position import Position
from walcast.shortage import disk_errors

TEMPORARY = "bootstrap.db.tmp"


class NewFile:
    """One transaction that makes a database."""

    def __init__(self, path: Path, state_dir: Path, page_size: int) -> None:
        self.path = path
        self.page_size = page_size
        self.position = Position()
        self.term = 0
        self.checksums = PageChecksums(page_size)
        self._state_dir = state_dir
        self._temporary = state_dir / TEMPORARY
        with disk_errors(self._temporary):
            self._fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def begin(self) -> None:
        """Nothing is visible before the one commit."""

    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None:
        """Pages in any order; the last version of each counts."""
        size = self.page_size
        numbers = np.asarray(pgnos, np.uint32)
        sums = np.empty(len(numbers), np.uint64)
        with disk_errors(self._temporary):
            for i, (pgno, page) in enumerate(zip(numbers.tolist(), pages, strict=True)):
                pwrite_all(self._fd, page, (pgno - 1) * size)
                sums[i] = page_checksum(pgno, page)
        if len(numbers):
            self.checksums.apply(numbers, sums, max(self.checksums.commit_pages, int(numbers.max())))

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        """Verify, make durable, put in place. ChecksumMismatch leaves nothing behind."""
        none = np.zeros(0, np.uint32)
        self.checksums.apply(none, none.astype(np.uint64), commit_pages)
        if self.checksums.database != position.checksum:
            self.rollback()
            raise ChecksumMismatch(position, self.checksums.database)
        with disk_errors(self._temporary):
            os.ftruncate(self._fd, commit_pages * self.page_size)
            os.fsync(self._fd)
            self.close()
            put_in_place(self._temporary, self.path, self._state_dir, term, position, timestamp_ms)
        self.term, self.position = term, position

    def rollback(self) -> None:
        """Forget it."""
        self.close()
        self._temporary.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the temporary file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def put_in_place(
    temporary: Path, path: Path, state_dir: Path, term: int, position: Position, timestamp_ms: int = 0
) -> None:
    """Make a verified, synced file the replica at `path`, with a name in the journal for what is in it."""
    journal = Journal(state_dir)
    journal.append(term, position, timestamp_ms)
    journal.sync()
    journal.close()
    for suffix in ("-wal", "-shm"):  # of a database that is no more: they would be taken for this one's
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    temporary.replace(path)
    fsync_directory(path.parent)
