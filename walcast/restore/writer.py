"""What a restore writes: pages into the target file, and the account of them that proves the database.

One thread writes behind the one that decodes. Kept are the checksum of every page, which files have been applied, and
how many of them agree about the database.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walcast.archive.damage import Contradiction, DamagedFile, check_header, check_size
from walcast.archive.files import ArchiveFile
from walcast.checksum import PageChecksums
from walcast.ltx import Header, Trailer
from walcast.position import Position
from walcast.restore.pages import Batch
from walcast.shortage import check_free

_WRITES_AHEAD = 8
_BLOCK_BYTES = 512  # as stat(2) counts
_NO_PGNOS = np.zeros(0, np.uint32)
_NO_SUMS = np.zeros(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a plan made: the position's checksum is computed from the pages written.

    `applied` are the files, in order. `agreeing` is how many of them said the database checksum that the pages had
    then; `unconfirmed` are those that none but themselves say to be of this database: all where files carry no database
    checksum, as Litestream's, and a snapshot alone. What was there before a file that holds all pages does not count.
    """

    position: Position
    term: int
    page_size: int
    commit_pages: int
    bytes_downloaded: int
    files: int
    checksums: PageChecksums
    timestamp_ms: int
    applied: tuple[ArchiveFile, ...] = ()
    agreeing: int = 0
    unconfirmed: tuple[ArchiveFile, ...] = ()


class Writer:
    """Pages → the target, one thread writing behind; keeps the page checksums and compares them with the files'."""

    def __init__(self, descriptor: int, target: Path) -> None:
        self._descriptor = descriptor
        self._target = target
        self._begun: tuple[ArchiveFile, Header] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="walcast-write")
        self._writes: deque[Future[None]] = deque()
        self._sums: PageChecksums | None = None
        self._pages = 0
        self._last: Header | None = None
        self._agreeing = 0
        self._unconfirmed: list[ArchiveFile] = []
        self.applied: list[ArchiveFile] = []
        self.file: ArchiveFile | None = None  # whose pages come now

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def write(self, header: Header, batch: Batch) -> None:
        """Queue a batch; waits while too many are queued."""
        self.note(header, batch.pgnos, batch.sums)
        while len(self._writes) >= _WRITES_AHEAD:
            self._writes.popleft().result()
        self._writes.append(self._pool.submit(write_batch, self._descriptor, header.page_size, batch))

    def note(self, header: Header, pgnos: NDArray[np.uint32], sums: NDArray[np.uint64]) -> None:
        """Ascending pages of this file that somebody else wrote into the target, with these checksums."""
        known = self.begin(header)
        known.apply(pgnos, sums, max(known.commit_pages, int(pgnos[-1])))

    def file_done(self, header: Header, trailer: Trailer, pages: int) -> None:
        """A proven file of this many pages is all written: the database must have the checksum that the file says."""
        sums = self.begin(header)
        sums.apply(_NO_PGNOS, _NO_SUMS, header.commit_pages)  # the lock page may be the last
        whole = pages >= header.commit_pages - 1
        if whole:
            self._agreeing = 0
            self._unconfirmed.clear()
        expected = header.database_checksum if header.no_checksum else trailer.post_checksum
        if expected and expected != sums.database:
            raise self._contradiction(
                f"database checksum {expected:016x}, but the pages restored have {sums.database:016x}"
            )
        assert self.file is not None
        self._unconfirmed.append(self.file)
        self.applied.append(self.file)
        if expected:
            self._agreeing += 1
            if not whole:
                self._unconfirmed.clear()  # the checksum is right also for pages that others brought
        self._last = header

    def restored(self) -> Restored:
        """Wait for the last page; then the facts."""
        self._drain()
        last, sums = self._last, self._sums
        assert last is not None  # a plan is not empty
        assert sums is not None
        os.ftruncate(self._descriptor, last.commit_pages * last.page_size)
        return Restored(
            position=Position(last.max_txid, sums.database),
            term=last.term,
            page_size=last.page_size,
            commit_pages=last.commit_pages,
            bytes_downloaded=sum(file.size for file in self.applied),
            files=len(self.applied),
            checksums=sums,
            timestamp_ms=last.timestamp_ms,
            applied=tuple(self.applied),
            agreeing=self._agreeing,
            unconfirmed=tuple(self._unconfirmed),
        )

    def _contradiction(self, what: str) -> Contradiction:
        assert self.file is not None
        return Contradiction(self.file, what, (self.file, *reversed(self._unconfirmed)))

    def begin(self, header: Header) -> PageChecksums:
        """Pages of this file come now. What it announces is compared with what it can hold and with the room on the
        disk; the target grows with the pages that come, never by what is announced.

        Raises DamagedFile, Contradiction, DiskFull.
        """
        assert self.file is not None
        if self._sums is not None and self._begun == (self.file, header):
            return self._sums
        check_header(header, self.file)
        if self._sums is None:
            self._sums = PageChecksums(header.page_size)
        if header.page_size != self._sums.page_size:
            raise self._contradiction(f"page size {header.page_size} after {self._sums.page_size}")
        try:
            check_size(header, self.file, self._pages)
        except DamagedFile as error:  # or those before it are another database's
            raise self._contradiction(error.what) from error
        if header.commit_pages > self._pages:
            written = os.fstat(self._descriptor).st_blocks * _BLOCK_BYTES
            check_free(self._target, header.commit_pages * header.page_size - written)
        elif header.commit_pages < self._pages:
            self._cut_off(header)
        self._pages = header.commit_pages
        self._begun = self.file, header
        return self._sums

    def _cut_off(self, header: Header) -> None:
        """What a smaller commit cut off must not come back as it was."""
        assert self._sums is not None
        self._drain()
        size = header.commit_pages * header.page_size
        if os.fstat(self._descriptor).st_size > size:
            os.ftruncate(self._descriptor, size)
        if self._sums.commit_pages > header.commit_pages:
            self._sums.apply(_NO_PGNOS, _NO_SUMS, header.commit_pages)

    def _drain(self) -> None:
        while self._writes:
            self._writes.popleft().result()


def write_batch(descriptor: int, page_size: int, batch: Batch) -> None:
    """Pages to their places: each run of neighbours with one call."""
    breaks = np.flatnonzero(np.diff(batch.pgnos) != 1) + 1
    first = 0
    for end in [*breaks.tolist(), len(batch.pages)]:
        run = batch.pages[first:end]
        offset = (int(batch.pgnos[first]) - 1) * page_size
        written = os.pwritev(descriptor, run, offset)
        if written != page_size * len(run):
            rest = b"".join(run)[written:]
            while rest:
                count = os.pwrite(descriptor, rest, offset + written)
                rest, written = rest[count:], written + count
        first = end
