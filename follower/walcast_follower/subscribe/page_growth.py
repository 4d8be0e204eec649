"""How a transaction may make a database larger: by pages that it carries, without a gap.

A primary sends every page between the old size and the new one, also those that SQLite never wrote (see
`walcast_primary.capture.frame_groups.unwritten_pages`); only the lock page is never sent. So a size that a peer
announces is believed only as far as the pages of it have come, and readers are never shown a size that the replica's
files do not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from walcast.checksum import PageChecksums, lock_pgno
from walcast.errors import Corrupt, ProtocolViolation

_UNWRITTEN_PAGES_MAX = 1024


def next_pgno(pgno: int, page_size: int) -> int:
    """The page after `pgno`, which is not the lock page."""
    return pgno + 1 if pgno + 1 != lock_pgno(page_size) else pgno + 2


class Growth:
    """The pages beyond the end of a database, as they come. `pages` is the database's size before them."""

    __slots__ = ("_next_pgno", "_page_size", "_reached_pages", "pages")

    def __init__(self, page_size: int, pages: int) -> None:
        self.pages = self._reached_pages = pages
        self._page_size = page_size
        self._next_pgno = next_pgno(pages, page_size)

    @property
    def reached_pages(self) -> int:
        """The size that the database would have with what has come so far."""
        return self._reached_pages

    def add(self, pgno: int) -> None:
        """A page came. ProtocolViolation when it lies beyond the end and is not the next one there."""
        if pgno <= self.pages:
            return
        if pgno != self._next_pgno:
            raise ProtocolViolation(
                f"page {pgno} came where page {self._next_pgno} had to come: a database of {self.pages} pages cannot "
                "grow with a gap"
            )
        self._reached_pages, self._next_pgno = pgno, next_pgno(pgno, self._page_size)

    def finish(self, commit_pages: int) -> None:
        """A transaction ends that leaves `commit_pages`. ProtocolViolation when pages of it have not come."""
        if commit_pages >= self._next_pgno:
            raise ProtocolViolation(
                f"a transaction says that the database has {commit_pages} pages, which had {self.pages}, and brings "
                f"those up to page {self._reached_pages}"
            )
        self.pages = self._reached_pages = commit_pages
        self._next_pgno = next_pgno(commit_pages, self._page_size)


def check_whole(checksums: PageChecksums, commit_pages: int) -> None:
    """Has every page of a new database of `commit_pages` come? ProtocolViolation when one is missing."""
    lock = lock_pgno(checksums.page_size)
    came = int(np.count_nonzero(checksums.pages[: min(commit_pages, checksums.commit_pages)]))
    if commit_pages < 1 or came < commit_pages - (lock <= commit_pages):
        raise ProtocolViolation(f"a new database has {commit_pages} pages, of which {came} came")


def check_grown(pgnos: NDArray[np.uint32] | Sequence[int], page_size: int, pages: int, commit_pages: int) -> None:
    """Are all pages from `pages` to `commit_pages` among the distinct `pgnos`? ProtocolViolation when some are not."""
    if commit_pages <= pages:
        return
    numbers = np.asarray(pgnos, np.uint32)
    came = int(np.count_nonzero((numbers > pages) & (numbers <= commit_pages)))
    needed = commit_pages - pages - (pages < lock_pgno(page_size) <= commit_pages)
    if came < needed:
        raise ProtocolViolation(
            f"a transaction says that the database has {commit_pages} pages, which had {pages}, and carries {came} of "
            f"the {needed} new ones"
        )


def check_files_hold(path: Path, page_size: int, commit_pages: int) -> None:
    """Corrupt for a database that says of itself that it is far larger than its files: to read all of it would never
    end. SQLite may grow a file over a few pages that it never wrote, which is no reason to refuse it."""
    files = [file for file in (path, Path(f"{path}-wal")) if file.exists()]
    held_pages = sum(file.stat().st_size for file in files) // page_size
    if commit_pages > 2 * held_pages + _UNWRITTEN_PAGES_MAX:
        raise Corrupt(
            f"{path}: says that it has {commit_pages:,} pages, and its files hold at most {held_pages:,}; remove it "
            "with its -wal and -shm, and start again, so that it is copied anew"
        )
