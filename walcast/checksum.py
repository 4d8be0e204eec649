"""The database checksum of LTX: the XOR of CRC-64/GO-ISO(pgno ‖ page) over all pages but the lock page.

XOR makes it rolling: a commit takes out the checksums of the pages as they were and puts in those of the pages as they
are. `PageChecksums` keeps one per page (8 bytes a page), which also tells two copies' pages apart without moving them.
Source: superfly/ltx, `checksum.go`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import numpy as np
from fastcrc import crc64
from numpy.typing import NDArray

from walcast.position import CHECKSUM_FLAG

PENDING_BYTE = 0x40000000

FEW_PAGES = 16  # below, plain integers are faster than arrays

crc64_go_iso = crc64.go_iso


def lock_pgno(page_size: int) -> int:
    """The page that holds SQLite's lock bytes, at 1 GiB: it is never written and never replicated."""
    return PENDING_BYTE // page_size + 1


def page_checksum(pgno: int, page: bytes | bytearray | memoryview) -> int:
    """LTX's checksum of one page: top bit set."""
    return crc64_go_iso(page, crc64_go_iso(pgno.to_bytes(4, "big"))) | CHECKSUM_FLAG


class PageChecksums:
    """The checksum of every page of a database, and their XOR.

    `pages` is uint64[n], page number n at index n - 1; zero for the lock page and for a page not there. `database` has
    the top bit set, also for a database without pages.
    """

    __slots__ = ("commit_pages", "database", "page_size", "pages")

    def __init__(self, page_size: int, pages: NDArray[np.uint64] | None = None) -> None:
        self.page_size = page_size
        self.pages: NDArray[np.uint64] = np.zeros(0, np.uint64) if pages is None else pages
        self.commit_pages = len(self.pages)
        self.database = int(np.bitwise_xor.reduce(self.pages)) | CHECKSUM_FLAG if len(self.pages) else CHECKSUM_FLAG

    @classmethod
    def scan(cls, page_size: int, chunks: Iterator[tuple[int, bytes | bytearray | memoryview]]) -> Self:
        """Computed from `(first pgno, pages in one buffer)` pieces, in any order."""
        parts: list[tuple[int, NDArray[np.uint64]]] = []
        skip = lock_pgno(page_size)
        for first, buffer in chunks:
            view = memoryview(buffer)
            count = len(view) // page_size
            sums = np.zeros(count, np.uint64)
            for i in range(count):
                if first + i != skip:
                    sums[i] = page_checksum(first + i, view[i * page_size : (i + 1) * page_size])
            parts.append((first, sums))
        total = max((first - 1 + len(sums) for first, sums in parts), default=0)
        pages = np.zeros(total, np.uint64)
        for first, sums in parts:
            pages[first - 1 : first - 1 + len(sums)] = sums
        return cls(page_size, pages)

    def copy(self) -> Self:
        """An independent copy."""
        return type(self)(self.page_size, self.pages[: self.commit_pages].copy())

    def get(self, pgno: int) -> int:
        """The checksum of a page; 0 for the lock page and past the end."""
        return int(self.pages[pgno - 1]) if pgno <= self.commit_pages else 0

    def after(self, pgnos: NDArray[np.uint32], sums: NDArray[np.uint64], commit_pages: int) -> int:
        """The database checksum once distinct pages `pgnos` have checksums `sums` and the file has `commit_pages`.

        Changes nothing. Pages past `commit_pages` among `pgnos` are ignored, as SQLite truncates them away.
        """
        if len(pgnos) <= FEW_PAGES:
            value = self._after_few(pgnos.tolist(), sums.tolist(), commit_pages)
        else:
            value = self._after_many(pgnos, sums, commit_pages)
        if commit_pages < self.commit_pages:
            value ^= int(np.bitwise_xor.reduce(self.pages[commit_pages : self.commit_pages]))
        return value | CHECKSUM_FLAG

    def _after_few(self, pgnos: list[int], sums: list[int], commit_pages: int) -> int:
        value, pages, count = self.database, self.pages, self.commit_pages
        for pgno, checksum in zip(pgnos, sums, strict=True):
            if pgno <= commit_pages:
                value ^= checksum
                if pgno <= count:
                    value ^= int(pages[pgno - 1])
        return value

    def _after_many(self, pgnos: NDArray[np.uint32], sums: NDArray[np.uint64], commit_pages: int) -> int:
        inside = pgnos <= commit_pages
        if not inside.all():
            pgnos, sums = pgnos[inside], sums[inside]
        known = pgnos[pgnos <= self.commit_pages]
        return self.database ^ int(np.bitwise_xor.reduce(self.pages[known - 1])) ^ int(np.bitwise_xor.reduce(sums))

    def apply(
        self, pgnos: NDArray[np.uint32], sums: NDArray[np.uint64], commit_pages: int, after: int | None = None
    ) -> None:
        """Make it so: `database` becomes what `after` answers for the same arguments, or has answered already."""
        self.database = self.after(pgnos, sums, commit_pages) if after is None else after
        if len(pgnos) and int(pgnos.max()) > commit_pages:
            inside = pgnos <= commit_pages
            pgnos, sums = pgnos[inside], sums[inside]
        self.reserve(commit_pages)
        self.pages[pgnos - 1] = sums
        if commit_pages < self.commit_pages:
            self.pages[commit_pages : self.commit_pages] = 0
        self.commit_pages = commit_pages

    def reserve(self, commit_pages: int) -> None:
        """Have the memory for so many pages; the database stays as it is."""
        if commit_pages > len(self.pages):
            grown = np.zeros(commit_pages + commit_pages // 8 + 64, np.uint64)
            grown[: self.commit_pages] = self.pages[: self.commit_pages]
            self.pages = grown

    def differing(self, other: NDArray[np.uint64]) -> NDArray[np.uint32]:
        """The pages of this database that are not the same in a copy with the page checksums `other`, ascending."""
        mine = self.pages[: self.commit_pages]
        theirs = np.zeros(self.commit_pages, np.uint64)
        count = min(len(other), self.commit_pages)
        theirs[:count] = other[:count]
        return (np.nonzero(mine != theirs)[0] + 1).astype(np.uint32)
