"""A replica that is not there yet: pages into a temporary file, renamed to its place when it is whole and verified.

`NewFile` takes transactions as `Applier` does, so that whoever copies need not know which of the two it fills.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from follower.applier import ChecksumMismatch
from follower.growth import check_whole, next_pgno
from follower.journal import Journal
from follower.pageone import check_page_one
from walcast.checksum import PageChecksums, lock_pgno, page_checksum
from walcast.errors import ProtocolViolation
from walcast.filesystem import fsync_directory, pwrite_all
from walcast.permissions import OWNER_ONLY, inherit, open_or_create
from walcast.position import Position
from walcast.shortage import disk_errors

TEMPORARY = "bootstrap.db.tmp"
COPIED = "copy.db.tmp"


class NewFile:
    """One transaction that makes a database."""

    def __init__(
        self, path: Path, state_dir: Path, page_size: int, announced_pages: int, mode: int = OWNER_ONLY
    ) -> None:
        """`announced_pages` is the size that the database is going to have, as far as that is known. Pages beyond it
        come in their order; so the file and the memory for its checksums are never larger than that, or what came.
        `mode` is for a new file; one that is at `path` leaves its owner and mode to the one that replaces it."""
        self.path = path
        self.mode = mode
        self.page_size = page_size
        self.position = Position()
        self.term = 0
        self.checksums = PageChecksums(page_size)
        self._reach_pages = announced_pages
        self._page_one = b""
        self.replacing: Callable[[], AbstractContextManager[None]] = nullcontext  # around the taking of its place
        self._state_dir = state_dir
        self._temporary = state_dir / COPIED
        with disk_errors(self._temporary):
            self._fd = open_or_create(self._temporary, os.O_RDWR | os.O_TRUNC)

    @property
    def is_open(self) -> bool:
        """Is what was written still there?"""
        return self._fd >= 0

    def go_on(self, announced_pages: int) -> None:
        """What was written so far is of a copy that broke off; those pages that differ come anew, and the rest."""
        self._reach_pages = max(announced_pages, self.checksums.commit_pages)

    def begin(self) -> None:
        """Nothing is visible before the one commit."""

    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None:
        """Pages in any order; the last version of each counts. ProtocolViolation for what no database has."""
        size, lock = self.page_size, lock_pgno(self.page_size)
        for pgno, page in zip(pgnos, pages, strict=True):
            following = next_pgno(self._reach_pages, size)
            if len(page) != size or not 1 <= pgno <= following or pgno == lock:
                raise ProtocolViolation(f"no page of this database: number {pgno}, {len(page)} bytes")
            if pgno == following:
                self._reach_pages = int(pgno)
            if pgno == 1:
                self._page_one = bytes(page)
        numbers = np.asarray(pgnos, np.uint32)
        sums = np.empty(len(numbers), np.uint64)
        with disk_errors(self._temporary):
            for i, (pgno, page) in enumerate(zip(numbers.tolist(), pages, strict=True)):
                pwrite_all(self._fd, page, (pgno - 1) * size)
                sums[i] = page_checksum(pgno, page)
        if len(numbers):
            self.checksums.apply(numbers, sums, max(self.checksums.commit_pages, int(numbers.max())))

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        """Verify, make durable, put in place. ProtocolViolation leaves nothing behind. After
        ChecksumMismatch the pages are as they came: a copy of those that differ mends them."""
        none = np.zeros(0, np.uint32)
        try:
            check_whole(self.checksums, commit_pages)
            check_page_one(self._page_one, self.page_size, commit_pages)
        except ProtocolViolation:
            self.rollback()
            raise
        self.checksums.apply(none, none.astype(np.uint64), commit_pages)
        if self.checksums.database != position.checksum:
            raise ChecksumMismatch(position, self.checksums.database)
        with disk_errors(self._temporary):
            os.ftruncate(self._fd, commit_pages * self.page_size)
            os.fsync(self._fd)
            self.close()
            with self.replacing():
                put_in_place(self._temporary, self.path, self._state_dir, term, position, timestamp_ms, self.mode)
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
    temporary: Path,
    path: Path,
    state_dir: Path,
    term: int,
    position: Position,
    timestamp_ms: int = 0,
    mode: int = OWNER_ONLY,
) -> None:
    """Make a verified, synced file the replica at `path`, with a name in the journal for what is in it, and with the
    owner and the mode of what was there before, or where nothing was, with `mode`. Of a database that is there already
    everything must be in its file: its WAL goes first (`follower.replacing`)."""
    journal = Journal(state_dir)
    journal.append(term, position, timestamp_ms)
    journal.sync()
    journal.close()
    inherit(temporary, path, mode)
    # Of a database that is no more: they would be taken for this one's. A WAL without its index is whole, not so the
    # other way round.
    for suffix in ("-shm", "-wal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    temporary.replace(path)
    fsync_directory(path.parent)
