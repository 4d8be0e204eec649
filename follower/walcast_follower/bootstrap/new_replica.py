"""A replica that is not there yet: the file of a copy, renamed to its place when it is whole and verified.

`NewFile` takes transactions as `Applier` does, so that whoever copies need not know which of the two it fills.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walcast.checksum import lock_pgno
from walcast.errors import ProtocolViolation
from walcast.filesystem import fsync_directory
from walcast.permissions import OWNER_ONLY, inherit
from walcast.position import Position
from walcast.shortage import disk_errors
from walcast_follower.apply.applier import ChecksumMismatch
from walcast_follower.apply.page_one import check_page_one
from walcast_follower.apply.position_journal import Journal
from walcast_follower.bootstrap.partial_copy import PartialCopy
from walcast_follower.subscribe.page_growth import check_whole, next_pgno

TEMPORARY = "bootstrap.db.tmp"


class Reach:
    """Which pages a copy may bring. `announced_pages` is the size that the database is going to have, as far as that is
    known. Pages beyond it come in their order; so the file and the memory for its checksums are never larger than that,
    or what came."""

    def __init__(self, page_size: int, announced_pages: int) -> None:
        self._page_size = page_size
        self._reach_pages = announced_pages

    def check(self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]) -> None:
        """ProtocolViolation for what no database has."""
        size, lock = self._page_size, lock_pgno(self._page_size)
        for pgno, page in zip(pgnos, pages, strict=True):
            following = next_pgno(self._reach_pages, size)
            if len(page) != size or not 1 <= pgno <= following or pgno == lock:
                raise ProtocolViolation(f"no page of this database: number {pgno}, {len(page)} bytes")
            if pgno == following:
                self._reach_pages = int(pgno)


class NewFile:
    """One transaction that makes a database of the pages in `partial` and those that are written."""

    def __init__(
        self, path: Path, state_dir: Path, partial: PartialCopy, announced_pages: int, mode: int = OWNER_ONLY
    ) -> None:
        """`mode` is for a new file; one that is at `path` leaves its owner and mode to the one that replaces it."""
        self.path = path
        self.mode = mode
        self.page_size = partial.page_size
        self.position = Position()
        self.term = 0
        self.partial = partial
        self._reach = Reach(partial.page_size, max(announced_pages, partial.pages))
        self.replacing: Callable[[], AbstractContextManager[None]] = nullcontext  # around the taking of its place
        self._state_dir = state_dir

    def begin(self) -> None:
        """Nothing is visible before the one commit."""

    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None:
        """Pages in any order; the last version of each counts. ProtocolViolation for what no database has."""
        self._reach.check(pgnos, pages)
        self.partial.write(pgnos, pages)

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        """Verify, make durable, put in place. After an error the pages are as they came: a copy of those that differ
        mends them."""
        partial = self.partial
        check_whole(partial.checksums, commit_pages)
        check_page_one(partial.read(1), self.page_size, commit_pages)
        partial.cut(commit_pages)
        if partial.checksums.database != position.checksum:
            raise ChecksumMismatch(position, partial.checksums.database)
        partial.sync()
        partial.close()  # before it is a database: closing a descriptor of one takes away SQLite's locks
        with disk_errors(partial.path), self.replacing():
            put_in_place(partial.path, self.path, self._state_dir, term, position, timestamp_ms, self.mode)
        self.term, self.position = term, position

    def rollback(self) -> None:
        """What came stays where it is."""


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
    everything must be in its file: its WAL goes first (`walcast_follower.bootstrap.replacement`)."""
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
