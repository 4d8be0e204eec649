"""What the files of a folder hold, counted as they are written: memory is a byte a page and a bounded list."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from walcast import ltx
from walcast.discarded.trees import NO_TREE, Trees
from walcast.moment import format_moment
from walcast.position import Position, format_txid

FILES_SHOWN = 50  # at each end
PAGES_SHOWN = 16  # at each end


class Kind(StrEnum):
    """What the files are."""

    TRANSACTIONS = "transactions"
    BEFORE_IMAGE = "before-image"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the one who keeps it knows: `why` is one sentence, the rest is empty or zero when it is not known.

    `new_primary` is HOST:PORT of the one whose history takes the place, `archive` the URL where the state before may
    be restored from.
    """

    database: Path
    why: str
    new_primary: str = ""
    new_term: int = 0
    archive: str = ""


class Summary:
    """One folder's. `base` is the state that the first file applies to, `end` the one after the last; both are the
    node's own history for transactions, for a before-image `base` is the new primary's."""

    def __init__(
        self, kind: Kind, circumstances: Circumstances, trees: Trees, *, base: Position, end: Position, term: int
    ) -> None:
        self.kind = kind
        self.circumstances = circumstances
        self.base = base
        self.end = end
        self.term = term
        self._trees = trees
        self._seen = np.zeros(0, np.bool_)
        self._first: list[dict[str, Any]] = []
        self._last: deque[dict[str, Any]] = deque(maxlen=FILES_SHOWN)
        self._files = self._bytes = self._pages = 0
        self._txids = (0, 0)
        self._times = (0, 0)
        self._page_size = self._commit_pages = 0

    @property
    def identity(self) -> str:
        """Names the state that is kept: of a before-image its checksum alone, since a copy that is begun again comes
        from another moment of the new history but overwrites the same state."""
        return f"{self.base}..{self.end}" if self.kind is Kind.TRANSACTIONS else f"{self.end.checksum:016x}"

    def add(self, header: ltx.Header, pgnos: NDArray[np.uint32], size: int) -> None:
        """The next file, of `size` bytes, and its pages."""
        shown = self._first if len(self._first) < FILES_SHOWN else self._last
        shown.append(self._file(header, pgnos, size))
        if not self._files:
            self._txids, self._times = (header.min_txid, 0), (header.timestamp_ms, 0)
        self._txids = self._txids[0], header.max_txid
        self._times = self._times[0], header.timestamp_ms
        self._page_size, self._commit_pages = header.page_size, header.commit_pages
        self._files += 1
        self._bytes += size
        self._pages += len(pgnos)
        most = int(pgnos.max(initial=0))
        if most >= len(self._seen):
            self._seen = np.concatenate((self._seen, np.zeros(most + 1 - len(self._seen) + most // 8, np.bool_)))
        self._seen[pgnos] = True

    def _file(self, header: ltx.Header, pgnos: NDArray[np.uint32], size: int) -> dict[str, Any]:
        return {
            "file": ltx.format_filename(header.min_txid, header.max_txid),
            "min_txid": format_txid(header.min_txid),
            "max_txid": format_txid(header.max_txid),
            "time": format_moment(header.timestamp_ms),
            "bytes": size,
            "commit_pages": header.commit_pages,
            "pages": len(pgnos),
            "page_numbers": _ends(pgnos),
            "tables": list(self._tables(pgnos)),
        }

    def _tables(self, pgnos: NDArray[np.uint32]) -> Iterator[dict[str, Any]]:
        """Nothing is said of pages in no b-tree where not all b-trees are known."""
        for tree, pages in self._trees.count(pgnos):
            if tree is not NO_TREE or not self._trees.note:
                yield {"kind": tree.kind, "name": tree.name, "table": tree.table, "pages": pages}

    def facts(self) -> dict[str, Any]:
        """What summary.json says."""
        why = self.circumstances
        distinct = np.flatnonzero(self._seen).astype(np.uint32)
        return {
            "format": 1,
            "kind": self.kind.value,
            "identity": self.identity,
            "why": why.why,
            "database": str(why.database.absolute()),
            "kept_at": format_moment(time.time_ns() // 1_000_000),
            "new_primary": why.new_primary or None,
            "new_term": why.new_term or None,
            "archive": why.archive or None,
            "term": self.term,
            "base": str(self.base),
            "end": str(self.end),
            "min_txid": format_txid(self._txids[0]),
            "max_txid": format_txid(self._txids[1]),
            "first_time": format_moment(self._times[0]),
            "last_time": format_moment(self._times[1]),
            "page_size": self._page_size,
            "commit_pages": self._commit_pages,
            "files": self._files,
            "bytes": self._bytes,
            "pages": self._pages,
            "distinct_pages": len(distinct),
            "page_numbers": _ends(distinct),
            "tables": list(self._tables(distinct)),
            "tables_note": self._trees.note or None,
            "first_files": self._first,
            "files_left_out": self._files - len(self._first) - len(self._last),
            "last_files": list(self._last),
            "python": sys.executable,
        }


def _ends(pgnos: NDArray[np.uint32]) -> dict[str, Any]:
    """The first and the last of them, and how many are left out between."""
    left_out = max(0, len(pgnos) - 2 * PAGES_SHOWN)
    if not left_out:
        return {"first": pgnos.tolist(), "left_out": 0, "last": []}
    return {"first": pgnos[:PAGES_SHOWN].tolist(), "left_out": left_out, "last": pgnos[-PAGES_SHOWN:].tolist()}
