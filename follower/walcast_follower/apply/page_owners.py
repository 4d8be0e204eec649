"""Which transaction wrote each page of a replica last: what an archive that is behind misses, should it be promoted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from walcast.position import Position

_SPARE_PAGES = 1024


class Written:
    """From the position at which the replica was opened, `until` where it is now. 8 bytes a page."""

    def __init__(self, start: Position, commit_pages: int, knows: Callable[[Position], bool]) -> None:
        self.start = start
        self.until = start
        self._txids = np.zeros(commit_pages + 1, np.uint64)  # by page number
        self._knows = knows

    def note(self, pgnos: NDArray[np.uint32], commit_pages: int, position: Position) -> None:
        """The transaction that ends at `position` wrote these; the database has `commit_pages` pages then."""
        if not self.start:  # what was there before, nobody knows: a copy that mends it has only the pages that differ
            self.start = position
        if commit_pages >= len(self._txids):
            more = np.zeros(commit_pages + 1 + _SPARE_PAGES - len(self._txids), np.uint64)
            self._txids = np.concatenate((self._txids, more))
        self._txids[pgnos[pgnos <= commit_pages]] = position.txid
        self.until = position

    def after(self, position: Position) -> NDArray[np.uint32] | None:
        """The pages written since, ascending; None when that is not known: it was before, or is not on this history."""
        if position == self.until or position.txid < self.start.txid or not self._knows(position):
            return None
        return np.flatnonzero(self._txids > position.txid).astype(np.uint32)
