"""A copy on its way: its pages are collected beside what they are for, and put into it when all are there.

What it ends in is seen by nobody before: the pages in the partial copy, over those of the replica where there is one,
have the database checksum of a position. That is computed before anything is put anywhere, and again by what they are
put into, from the bytes that are read back. So it does not matter how many connections, processes, primaries and terms
the pages came over: a copy that broke off is gone on with by sending the checksums of what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from walcast.checksum import PageChecksums
from walcast.errors import Unavailable
from walcast.position import Position
from walcast.shortage import free_bytes
from walcast.wal import FRAME_HEADER_SIZE
from walcast_follower.apply.applier import ChecksumMismatch
from walcast_follower.bootstrap.new_replica import Reach
from walcast_follower.bootstrap.partial_copy import PartialCopy, Stopping, never
from walcast_follower.subscribe.page_growth import check_whole
from walcast_follower.subscribe.receiver import Target

BATCH_BYTES = 1 << 20
SPARE_BYTES = 8 << 20


class CopyEnd(NamedTuple):
    """What a target's `commit` is called with."""

    term: int
    position: Position
    commit_pages: int
    timestamp_ms: int


def laid_over(base: NDArray[np.uint64], partial: PartialCopy | None) -> NDArray[np.uint64]:
    """The page checksums of what there is: those of the partial copy where it has pages, else those of the replica."""
    if partial is None or not partial.pages:
        return base
    over = partial.checksums.pages[: partial.pages]
    sums = np.zeros(max(len(base), len(over)), np.uint64)
    sums[: len(base)] = base
    np.copyto(sums[: len(over)], over, where=over != 0)
    return sums


class Collecting:
    """Takes the pages of a copy, and the stream over it, as a target. `base`: the page checksums of the replica,
    nothing where there is none. `end` is set by the commit, which makes nothing visible."""

    def __init__(self, partial: PartialCopy, base: NDArray[np.uint64], announced_pages: int, term: int) -> None:
        self.page_size = partial.page_size
        self.position = Position()
        self.term = term
        self.end: CopyEnd | None = None
        self.path = partial.path
        self._partial = partial
        self._base = base
        self._reach = Reach(partial.page_size, max(announced_pages, partial.pages, len(base)))

    def begin(self) -> None:
        """Nothing has to be prepared."""

    def write_pages(
        self, pgnos: Sequence[int] | NDArray[np.uint32], pages: Sequence[bytes | bytearray | memoryview]
    ) -> None:
        """Pages in any order; the last version of each counts. ProtocolViolation for what no database has."""
        self._reach.check(pgnos, pages)
        self._partial.write(pgnos, pages)

    def commit(self, term: int, position: Position, commit_pages: int, timestamp_ms: int = 0) -> None:
        """Everything has come. ChecksumMismatch, or ProtocolViolation for a page that is missing, when it has not."""
        sums = PageChecksums(self.page_size, laid_over(self._base, self._partial)[:commit_pages])
        check_whole(sums, commit_pages)
        if sums.database != position.checksum:
            raise ChecksumMismatch(position, sums.database)
        self.end = CopyEnd(term, position, commit_pages, timestamp_ms)

    def rollback(self) -> None:
        """What came stays: the next try compares it."""

    def put_into(self, target: Target, stopping: Stopping = never) -> None:
        """Have the target commit what has come. For a thread; after an error it is as it was before."""
        if self.end is None:
            raise RuntimeError("the copy has not ended")
        target.begin()
        try:
            if len(self._base):
                self._transfer(target, self.end.commit_pages, stopping)
            target.commit(*self.end)
        except BaseException:
            target.rollback()
            raise

    def _transfer(self, target: Target, commit_pages: int, stopping: Stopping) -> None:
        """Those of the pages that differ from the replica's, from the last one on: where there is no room for all of
        them twice, what has been put into the target is cut off here. Then a try that fails has to fetch them again."""
        partial = self._partial
        over = partial.checksums.pages[: min(partial.pages, commit_pages)]
        base = np.zeros(len(over), np.uint64)
        base[: len(self._base)] = self._base[: len(over)]
        wanted = (np.flatnonzero((over != 0) & (over != base)) + 1).tolist()
        needed_bytes = len(wanted) * (self.page_size + FRAME_HEADER_SIZE) + SPARE_BYTES
        free = free_bytes(partial.path)
        is_tight = free is not None and free < needed_bytes
        step = max(1, BATCH_BYTES // self.page_size)
        for end in range(len(wanted), 0, -step):
            if stopping():
                raise Unavailable("stopping")
            batch = wanted[max(0, end - step) : end]
            target.write_pages(batch, [partial.read(pgno) for pgno in batch])
            if is_tight:
                partial.cut(batch[0] - 1)
